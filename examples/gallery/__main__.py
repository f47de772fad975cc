"""`python -m examples.gallery` writes the pages."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from examples.gallery import events, groups, hidden
from examples.gallery.case import Case, write
from kayn.datasets import DatasetError

CASES = {c.name: c for c in (*groups.CASES, *events.CASES, *hidden.CASES)}


def index(cases: list[Case]) -> str:
    """The page that leads to the others."""
    lines = [f"- [{c.title}]({c.name}.md)" for c in cases]
    return "\n".join(
        ["# Gallery", "", "Real questions, each answered twice; the pages are made by running them.", "", *lines, ""]
    )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*CASES]))
@click.option("--missing", is_flag=True, help="Only pages that are not there yet.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("docs/gallery"))
def main(names: tuple[str, ...], missing: bool, out: Path) -> None:
    """Write the pages called NAMES, or all."""
    for case in (CASES[n] for n in names or CASES):
        if missing and (out / f"{case.name}.md").exists():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                worst = write(case, out)
        except DatasetError as error:
            click.echo(f"{case.name}: left out, {error}")
            continue
        click.echo(f"{case.name}: {worst:.2f} sd from {case.tool}")
    there = [c for c in CASES.values() if (out / f"{c.name}.md").exists()]
    (out / "index.md").write_text(index(there), encoding="utf-8")


if __name__ == "__main__":
    main()
