"""How the cost of a QEM step grows: in K, in rows, in groups, in steps of a chain; and a million-row model.

Run: python -m benchmarks.scaling [--json FILE] [--plot FILE]

For every curve an exponent is fitted to the last half of the points of log time against log size, and printed beside
that of the planner's own count of operations (contraction and largest factor).
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import kayn
from benchmarks._machine import seconds
from benchmarks.steps import operations
from kayn import QEM
from models.case import Case
from models.simulated import three_level, two_level

STEPS = 4
MILLION = 10**6


def ragged(rows: int, groups: int) -> Case:
    """mu, sd, sigma; `groups` means; rows of random groups."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, groups, rows).astype(np.int32)
    y = (rng.normal(0, 1, groups)[group] + rng.normal(0, 1, rows)).astype(np.float32)

    def model(group: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("groups", groups):
            theta = numpyro.sample("theta", dist.Normal(mu, sd))
        with numpyro.plate("rows", rows):
            numpyro.sample("y", dist.Normal(theta[group], sigma), obs=y)

    return model, (group, y)


def chain(steps: int) -> Case:
    """A random walk observed at every step."""
    y = np.random.default_rng(0).normal(size=steps).cumsum().astype(np.float32)

    def model(y: Any) -> None:
        def step(level: Any, now: Any) -> tuple[Any, None]:
            level = numpyro.sample("level", dist.Normal(level, 1.0))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=now)
            return level, None

        scan(step, jnp.array(0.0), y)

    return model, (y,)


CURVES: dict[str, tuple[Callable[[int], Case], Callable[[int], int], tuple[int, ...]]] = {
    "K, two levels": (lambda k: two_level(), lambda k: k, (10, 30, 100, 300)),
    "K, three levels": (lambda k: three_level(), lambda k: k, (10, 30, 100, 300)),
    "rows in 100 groups": (lambda n: ragged(n, 100), lambda n: 10, (100, 1000, 10_000, 100_000, MILLION)),
    "groups of 20 rows": (lambda n: ragged(20 * n, n), lambda n: 10, (10, 30, 100, 300, 1000)),
    "steps of a chain": (chain, lambda n: 10, (10, 100, 1000, 10_000)),
}
"""Model, number of particles, and sizes."""


def point(case: Case, particles: int) -> dict[str, float]:
    model, args = case
    analysis = kayn.analyze(model, *args, num_particles=particles)
    start = time.perf_counter()
    qem = QEM(model, num_particles=particles)
    state = qem.init(0, *args)
    numbers = qem._problem().numbers
    compiled = qem._advance.lower(numbers, state, 1.0, STEPS).compile()
    first = time.perf_counter() - start
    for _ in range(8):
        state, _ = compiled(numbers, state, 1.0)
    best, _ = seconds(partial(compiled, numbers, state, 1.0), 5)
    memory = compiled.memory_analysis()
    return {
        "step_seconds": best / STEPS,
        "first_step_seconds": first,
        "operations": operations(analysis),
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory is not None else 0,
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half - 1 :]), np.log(values[half - 1 :]), 1)[0])


@click.command()
@click.option("--curves", multiple=True, type=click.Choice(list(CURVES)), help="All by default.")
@click.option("--json", "path", type=click.Path(dir_okay=False))
@click.option("--plot", type=click.Path(dir_okay=False))
def main(curves: tuple[str, ...], path: str | None, plot: str | None) -> None:
    """Print every point, and the fitted exponents."""
    out: dict[str, Any] = {}
    for name in curves or CURVES:
        make, particles, sizes = CURVES[name]
        points = []
        for size in sizes:
            found = point(make(size), particles(size))
            points.append({"size": size, **found})
            click.echo(
                f"{name:<22}{size:>9}  step {1e3 * found['step_seconds']:>9.2f} ms  first "
                f"{found['first_step_seconds']:>5.1f} s  "
                f"temporaries {found['temporary_bytes'] / 1e6:>8.1f} MB  {found['operations']:.2g} operations"
            )
            jax.clear_caches()
        own = exponent([p["size"] for p in points], [p["step_seconds"] for p in points])
        planned = exponent([p["size"] for p in points], [p["operations"] for p in points])
        click.echo(f"{name:<22}time ~ size^{own:.2f}, counted operations ~ size^{planned:.2f}\n")
        out[name] = {"points": points, "exponent": own, "counted_exponent": planned}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    click.echo(f"peak memory of the whole process, a million rows included: {peak / 1e9:.2f} GB")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"device": jax.devices()[0].device_kind, "peak_bytes": peak, "curves": out}, file, indent=1)
    if plot:
        draw(out, plot)


def draw(curves: dict[str, Any], path: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name, curve in curves.items():
        sizes, times = zip(*((p["size"], 1e3 * p["step_seconds"]) for p in curve["points"]), strict=True)
        axes.loglog(
            sizes, times, "o-", label=f"{name}: {curve['exponent']:.2f} (counted {curve['counted_exponent']:.2f})"
        )
    axes.set(xlabel="size", ylabel="milliseconds per step")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
