"""Draw all pictures and tables of the experiments again, from their JSON: `python experiments/pictures.py [NAME ...]`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
FILES = {
    "gmm": ("results",),
    "sbn": ("bars", "mnist"),
    "vae": ("results",),
    "air": ("results",),
}
"""JSON files by experiment."""


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_run", HERE / name / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FILES)))
def main(names: tuple[str, ...]) -> None:
    """Draw."""
    for name in names or FILES:
        out = HERE / name / "results"
        for file in FILES[name]:
            source = out / f"{file}.json"
            if not source.exists():
                click.echo(f"{name}: no {source.name}; run experiments/{name}/run.py first")
                continue
            module = load(name)
            results = json.loads(source.read_text(encoding="utf-8"))["results"]
            if file == "results":
                module.draw(results, out)
            else:
                module.draw(results, out, file)
            table = out / (f"{file}.txt" if file != "results" else "table.txt")
            table.write_text(module.table(results) + "\n", encoding="utf-8")
            click.echo(f"{name}: {table.name} and pictures from {source.name}")


if __name__ == "__main__":
    main()
