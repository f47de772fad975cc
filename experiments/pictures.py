"""Draw all pictures and tables of the experiments again, from their JSON:
`python -m experiments.pictures [NAME ...]`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from experiments._common import present

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
        run = importlib.import_module(f"experiments.{experiment(source)}.run")
        results = json.loads(source.read_text(encoding="utf-8"))["results"]
        present(source.parent, results, run.table, getattr(run, "draw", None))
        click.echo(f"drawn from {source.relative_to(HERE)}")


if __name__ == "__main__":
    main()
