"""Effective draws a CPU second of sweeps over all combinations of particles, beside kernels of NumPyro, in one run.

Run: python -m benchmarks.mcmc [--cases NAME ...] [--particles K ...] [--warmup N] [--samples N] [--alone]

Each gets four chains. Reading the model, first values and compiling are timed apart from running, which is warm-up and
sampling. Effective draws are those of all chains together, of real latents in the coordinates that they move in, of the
worst coordinate and of the median one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import jax
import numpy as np
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import HMC, NUTS, DiscreteHMCGibbs, MixedHMC

import kayn
from kayn.inference.mcmc.state import GibbsState
from models import published, sampled
from models.case import Case

CHAINS, CHUNK = 4, 50

CASES: dict[str, Callable[[], Case]] = {
    "schools": sampled.schools,
    "radon": published.radon_counties,
    "item response": sampled.item_response,
    "item response, large": lambda: sampled.item_response(2000, 50),
    "slopes": sampled.slopes,
    "chimpanzees": sampled.chimpanzees,
    "election": sampled.election,
    "ratings": lambda: sampled.effects(3000, 1100, 73_000),
    "mixture": sampled.mixture,
    "accidents": sampled.accidents,
    "sightings": sampled.sightings,
    "volatility": sampled.volatility,
    "million rows": lambda: sampled.effects(100_000, 100, 1_000_000),
}
"""The last is not among those that are run where no names are given: its chains say what a sweep costs."""


def measured(kernel: Any, args: tuple, warmup: int, samples: int) -> str:
    """CPU seconds of compiling and of running, and effective draws."""
    start = time.process_time()
    keys = jax.random.split(jax.random.key(0), CHAINS)
    # peers take their chains one after the other: those of NUTS would wait for the longest path
    starts = [keys] if isinstance(kernel, kayn.MPGibbs) else [*keys]
    states = [kernel.init(key, warmup, None, args, {}) for key in starts]

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, args, {})
        return state, state.z

    run = jax.jit(lambda state: jax.lax.scan(step, state, None, length=CHUNK)).lower(states[0]).compile()
    ready = time.process_time()
    chains = [_draws(run, state, warmup, samples) for state in states]
    taken = time.process_time() - ready
    draws = {n: np.concatenate([c[n] for c in chains]) for n in chains[0]}
    sizes = {n: np.nan_to_num(np.ravel(effective_sample_size(v))) for n, v in draws.items() if v.dtype.kind == "f"}
    ratio = max(float(np.nanmax(split_gelman_rubin(draws[n]))) for n in sizes)
    worst = min(sizes, key=lambda n: sizes[n].min())
    least, middle = sizes[worst].min(), np.median(np.concatenate(list(sizes.values())))
    each = 1e3 * taken / CHAINS / (warmup + samples)
    return (
        f"{ready - start:6.1f} CPU s to begin, {taken:6.2f} to run, {each:.3g} ms a sweep; effective draws: least "
        f"{least:6.0f} ({worst}), median {middle:6.0f}; least a CPU second {least / taken:7.2f}, all counted "
        f"{least / (time.process_time() - start):6.2f}; R-hat at most {ratio:.3f}"
    )


def _draws(run: Callable, state: Any, warmup: int, samples: int) -> dict[str, np.ndarray]:
    """Draws after warm-up, in the coordinates that chains have: [chains, samples, *shape]."""
    kept = []
    for number in range(-(-(warmup + samples) // CHUNK)):
        state, z = run(state)
        if number >= warmup // CHUNK:
            kept.append(jax.tree.map(np.asarray, z))
    found = {n: np.concatenate([k[n] for k in kept]) for n in kept[0]}
    several = state.i.ndim if isinstance(state, GibbsState) else 0
    return {n: np.swapaxes(v, 0, 1) if several else v[None] for n, v in found.items()}


def peers(model: Callable, args: tuple) -> dict[str, Any]:
    """Kernels of NumPyro for the same model: those that take its kinds of latents."""
    sites = handlers.trace(handlers.seed(model, 0)).get_trace(*args)
    latents = [s for s in sites.values() if s["type"] == "sample" and not s["is_observed"]]
    if not any(s["fn"].support.is_discrete for s in latents):
        return {"NUTS": NUTS(model)}
    return {
        "DiscreteHMCGibbs": DiscreteHMCGibbs(NUTS(model), modified=True),
        "MixedHMC": MixedHMC(HMC(model, trajectory_length=1.2), num_discrete_updates=20),
    }


@click.command()
@click.option("--cases", multiple=True, type=click.Choice(list(CASES)), default=list(CASES)[:-1])
@click.option("--particles", multiple=True, type=int, default=[5, 10])
@click.option("--warmup", default=300)
@click.option("--samples", default=500)
@click.option("--alone", is_flag=True, help="Without kernels of NumPyro.")
def main(cases: tuple[str, ...], particles: tuple[int, ...], warmup: int, samples: int, alone: bool) -> None:
    """Print a line for each case and kernel."""
    for name in cases:
        model, args = CASES[name]()
        kernels = {f"MPGibbs, K = {k}": kayn.MPGibbs(model, k) for k in particles}
        for label, kernel in {**kernels, **({} if alone else peers(model, args))}.items():
            print(f"{name}: {label:16} {measured(kernel, args, warmup, samples)}", flush=True)


if __name__ == "__main__":
    main()
