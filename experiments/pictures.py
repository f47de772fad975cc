"""Draw all pictures and tables of the experiments again, from their JSON:
`python experiments/pictures.py [NAME ...]`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import click
from _common import present

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*/results/**/results.json"))


def experiment(source: Path) -> str:
    return source.relative_to(HERE).parts[0]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(dict.fromkeys(map(experiment, SOURCES)))))
def main(names: tuple[str, ...]) -> None:
    """Of all experiments with a `results.json`, or of those that are named."""
    for source in SOURCES:
        if names and experiment(source) not in names:
            continue
        run = runpy.run_path(str(HERE / experiment(source) / "run.py"))
        results = json.loads(source.read_text(encoding="utf-8"))["results"]
        present(source.parent, results, run["table"], run.get("draw"))
        click.echo(f"drawn from {source.relative_to(HERE)}")


if __name__ == "__main__":
    main()
