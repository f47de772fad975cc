"""Time and memory of one QEM step: compile time, time of a compiled step, and temporary memory of the compiled program.

Run: python benchmarks/steps.py [--particles K ...] [--models NAME ...] [--json FILE]

A step is draws, weights, contraction, marginals and moments. Beside it stands the time of one iteration of a published PyTorch
implementation at K = 10, where it is known (median on two quiet CPU cores of the same kind).
"""

from __future__ import annotations

import json
import time
from typing import Any

import click
import jax
from models import MODELS

from kayn import QEM

STEPS = 8
WARM = 64
"""Steps before any is timed: the first ones, far from the posterior, need exact sums more often."""
REFERENCE = {
    "bus": 0.018,
    "radon, 4 states": 0.320,
    "chimpanzees": 0.029,
    "movielens, 300 x 5": 0.104,
    "occupancy": 3.1,
}


def measure(name: str, particles: int, repeats: int = 9) -> dict[str, Any]:
    """Seconds to trace and compile, best and median seconds per step, bytes of temporaries, and the particle axes."""
    model, args = MODELS[name]()
    start = time.perf_counter()
    qem = QEM(model, num_particles=particles)
    state = qem.init(0, *args)
    advance = qem._advance.lower(qem._problem().numbers, state, 1.0, STEPS).compile()
    first = time.perf_counter() - start
    for _ in range(WARM // STEPS):
        state, _ = advance(qem._problem().numbers, state, 1.0)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        state, kept = jax.block_until_ready(advance(qem._problem().numbers, state, 1.0))
        seconds.append((time.perf_counter() - begin) / STEPS)
    memory = advance.memory_analysis()
    return {
        "model": name,
        "particles": particles,
        "first_step_seconds": first,
        "step_seconds": sorted(seconds)[len(seconds) // 2],
        "best_step_seconds": min(seconds),
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory is not None else None,
        "log_evidence": float(kept[0][-1]),
        "axes": [[a.name, list(a.scope)] for a in qem._problem().layout.axes],
        "reference_seconds": REFERENCE.get(name) if particles == 10 else None,
    }


@click.command()
@click.option("--particles", multiple=True, default=(3, 10, 30), show_default=True)
@click.option("--models", multiple=True, type=click.Choice(list(MODELS)), help="All by default.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the figures there too.")
def main(particles: tuple[int, ...], models: tuple[str, ...], path: str | None) -> None:
    """Print one line for every model and K."""
    click.echo(f"{'model':<22}{'K':>5}{'first step s':>14}{'step ms':>10}{'best ms':>10}{'temp MB':>10}{'ratio':>8}")
    rows = []
    for name in models or MODELS:
        for count in particles:
            row = measure(name, count)
            rows.append(row)
            known = row["reference_seconds"]
            ratio = f"{known / row['step_seconds']:.0f}x" if known else ""
            click.echo(
                f"{name:<22}{count:>5}{row['first_step_seconds']:>14.1f}{1e3 * row['step_seconds']:>10.2f}"
                f"{1e3 * row['best_step_seconds']:>10.2f}{row['temporary_bytes'] / 1e6:>10.1f}{ratio:>8}"
            )
            jax.clear_caches()
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"device": jax.devices()[0].device_kind, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
