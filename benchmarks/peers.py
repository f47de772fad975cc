"""A gradient step of `kayn.VI` against one of NumPyro's `RenyiELBO` with the same K,
and of Pyro's `TraceTMC_ELBO` where Pyro is installed.

Run: python -m benchmarks.peers [--particles K ...] [--json FILE]

All optimise AutoNormal guides of the two- and three-level Gaussian models with Adam, in one run, alternating.
`RenyiELBO(alpha=0)` weighs K joint draws; kayn weighs all combinations of K draws of 51 and 111 latents. Pyro's model
is the same, with `infer={"num_samples": K}` and its own mean-field guide.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import click
import jax
import numpy as np
import numpyro
from numpyro.infer import SVI, RenyiELBO
from numpyro.infer.autoguide import AutoNormal

import kayn
from models import MODELS

STEPS = 20
ROUNDS = 15


def compiled_steps(model: Any, args: tuple, loss: Any) -> tuple[Any, float]:
    """A call that makes `STEPS` steps, and seconds to trace and compile it."""
    start = time.perf_counter()
    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(1e-2), loss)
    state = svi.init(jax.random.key(0), *args)

    def steps(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: svi.update(s, *args), state, None, length=STEPS)

    compiled = jax.jit(steps).lower(state).compile()
    first = time.perf_counter() - start
    for _ in range(3):
        state, _ = jax.block_until_ready(compiled(state))
    return partial(compiled, state), first


def pyro_step(name: str, args: tuple, particles: int) -> Any:
    """One step of Pyro's tensor Monte Carlo, or None where Pyro is not installed."""
    try:
        import pyro
        import pyro.distributions as pdist
        import torch
    except ImportError:
        return None
    y = torch.tensor(np.asarray(args[0]))
    names, sizes = (("theta",), (50,)) if name == "two-level" else (("a", "b"), (10, 10))

    def model(y: Any) -> None:
        value = pyro.sample("mu", pdist.Normal(0.0, 1.0))
        descend(value, 0, lambda n, v: pyro.sample(n, pdist.Normal(v, 1.0)), y)

    def descend(value: Any, level: int, draw: Any, y: Any) -> None:
        if level == len(names):
            if y is not None:
                with pyro.plate("rows", y.shape[-1], dim=-1):
                    pyro.sample("y", pdist.Normal(value, 1.0), obs=y)
            return
        with pyro.plate(f"level{level}", sizes[level], dim=level - len(names) - 1):
            descend(draw(names[level], value), level + 1, draw, y)

    def guide(y: Any) -> None:
        def normal(name: str, _: Any) -> Any:
            shape = [*sizes[: names.index(name) + 1], *([1] * (len(names) - names.index(name)))] if name != "mu" else []
            loc = pyro.param(f"{name}_loc", lambda: torch.zeros(shape))
            scale = pyro.param(f"{name}_scale", lambda: torch.ones(shape) * 0.1, constraint=pdist.constraints.positive)
            return pyro.sample(
                name,
                pdist.Normal(loc, scale),
                infer={"num_samples": particles, "enumerate": "parallel", "expand": False},
            )

        normal("mu", None)
        descend(None, 0, normal, None)

    elbo = pyro.infer.TraceTMC_ELBO(max_plate_nesting=len(names) + 1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    svi.step(y)
    return lambda: svi.step(y)


@click.command()
@click.option("--particles", multiple=True, default=(10, 30), show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False))
def main(particles: tuple[int, ...], path: str | None) -> None:
    """Print one line for every model and K."""
    rows = []
    for name in ("two-level", "three-level"):
        model, args = MODELS[name]()
        for count in particles:
            losses = {"kayn.VI": kayn.VI(count), "RenyiELBO": RenyiELBO(0.0, num_particles=count)}
            calls = {n: compiled_steps(model, args, loss) for n, loss in losses.items()}
            taken: dict[str, list[float]] = {n: [] for n in calls}
            for _ in range(ROUNDS):
                for n, (call, _) in calls.items():
                    start = time.perf_counter()
                    jax.block_until_ready(call())
                    taken[n].append((time.perf_counter() - start) / STEPS)
            median = {n: float(np.median(t)) for n, t in taken.items()}
            row = {
                "model": name,
                "particles": count,
                "step_seconds": median,
                "first_step_seconds": {n: c[1] for n, c in calls.items()},
                "ratio": float(np.median(np.divide(taken["kayn.VI"], taken["RenyiELBO"]))),
            }
            line = "  ".join(
                f"{n} {1e3 * t:.3f} ms (first {row['first_step_seconds'][n]:.1f} s)" for n, t in median.items()
            )
            click.echo(f"{name:<12} K={count:<4} {line}  ratio {row['ratio']:.2f}")
            step = pyro_step(name, args, count)
            if step is not None:
                start = time.perf_counter()
                for _ in range(5):
                    step()
                row["pyro_seconds"] = (time.perf_counter() - start) / 5
                click.echo(
                    f"{'':<12} Pyro TraceTMC_ELBO {1e3 * row['pyro_seconds']:.1f} ms, "
                    f"{row['pyro_seconds'] / median['kayn.VI']:.0f} times kayn's"
                )
            rows.append(row)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"device": jax.devices()[0].device_kind, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
