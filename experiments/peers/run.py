"""NumPyro's examples and tests, rewritten, through kayn: right, refused with a remedy, or wrong.

Run: python -m experiments.peers.run [--only TEXT ...] [--out DIRECTORY]

Every model has an oracle: a closed form, an enumeration, quadrature, or the forward algorithm, in plain NumPy
(NumPyro's sampler where there is none). Writes `results.json` and `table.md` into `experiments/peers/results`, the rows
of other models staying as they are. Exit status 1 if any is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from experiments._common import rows_of_others, save_json
from experiments.peers import (  # noqa: F401
    annotators,
    captures,
    hierarchies,
    incomplete,
    losses,
    potentials,
    regressions,
    scores,
    series,
)
from experiments.peers.cases import CASES, judge, plain

OUT = Path(__file__).parent / "results"


def table(rows: list[dict[str, Any]]) -> str:
    """One line a model: the figure that is furthest off by its tolerance, and the verdict."""
    lines = ["| model | after | kayn | right | verdict |", "|---|---|---|---|---|"]
    for r in rows:
        worst = max(r["figures"], key=lambda f: abs(f["found"] - f["right"]) / f["tolerance"], default=None)
        found, right = (f"{worst['what']} {worst['found']:.4g}", f"{worst['right']:.4g}") if worst else ("", "")
        lines.append(f"| {r['model']} | {r['follows']} | {found} | {right} | {plain(r['verdict'])[:300]} |")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--only", multiple=True, help="models whose name holds one of these texts")
@click.option("--out", type=click.Path(path_type=Path), default=OUT)
def main(only: tuple[str, ...], out: Path) -> None:
    chosen = [c for c in CASES.values() if not only or any(text in c.name for text in only)]
    path = out / "results.json"
    rows = {r["model"]: r for r in rows_of_others(path, [c.name for c in chosen])}
    for one in chosen:
        rows[one.name] = judge(one)
        click.echo(f"{one.name:55} {rows[one.name]['s']:6.1f} s  {rows[one.name]['verdict'][:120]}")
        for f in rows[one.name]["figures"]:
            click.echo(
                f"    {f['what']:30} {f['found']:12.5g} {f['right']:12.5g} +- "
                f"{f['tolerance']:.2g}{'' if f['good'] else '   <'}"
            )
        ordered = [rows[n] for n in CASES if n in rows]
        save_json(path, {"rows": ordered})
        (out / "table.md").write_text(table(ordered) + "\n", encoding="utf-8")
    wrong = [r["model"] for r in ordered if r["verdict"].startswith("wrong")]
    click.echo(json.dumps({"models": len(ordered), "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
