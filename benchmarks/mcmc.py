"""Effective draws a second of sweeps over all combinations of particles, beside NUTS, in one run.

Run: python -m benchmarks.mcmc [--cases NAME ...] [--particles K ...] [--warmup N] [--samples N]

Each gets four chains, at once on one device. Reading the model, first values and compiling are timed apart from
running, which is warm-up and sampling. Effective draws are those of all chains together, of the worst latent and of the
median one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import NUTS

import kayn
from models.case import Case

CHAINS = 4


def schools() -> Case:
    """Eight schools, centred."""
    effect = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    error = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def model(error: Any, effect: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("effect", dist.Normal(theta, error), obs=effect)

    return model, (error, effect)


def item_response(persons: int = 100, items: int = 20) -> Case:
    """Two parameters an item, every person answers all of them."""
    rng = np.random.default_rng(0)
    ability, difficulty = rng.normal(size=persons), 0.3 + rng.normal(size=items)
    slope = np.exp(0.3 * rng.normal(size=items))
    person, item = (i.ravel() for i in np.divmod(np.arange(persons * items), items))
    chance = 1 / (1 + np.exp(-slope[item] * (ability[person] - difficulty[item])))
    right = jnp.asarray(rng.random(persons * items) < chance, jnp.float32)

    def model(person: Any, item: Any, right: Any) -> None:
        level = numpyro.sample("level", dist.Normal(0, 2))
        sd_difficulty = numpyro.sample("sd_difficulty", dist.HalfNormal(1.0))
        sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(0.5))
        sd_ability = numpyro.sample("sd_ability", dist.HalfNormal(1.0))
        with numpyro.plate("persons", persons):
            ability = numpyro.sample("ability", dist.Normal(0, sd_ability))
        with numpyro.plate("items", items):
            difficulty = numpyro.sample("difficulty", dist.Normal(level, sd_difficulty))
            slope = numpyro.sample("slope", dist.LogNormal(0, sd_slope))
        with numpyro.plate("answers", len(person)):
            logits = slope[item] * (ability[person] - difficulty[item])
            numpyro.sample("right", dist.Bernoulli(logits=logits), obs=right)

    return model, (jnp.asarray(person), jnp.asarray(item), right)


CASES: dict[str, Callable[[], Case]] = {"schools": schools, "item response": item_response}


def measured(kernel: Any, args: tuple, warmup: int, samples: int) -> str:
    """Seconds of compiling and of running, and effective draws."""
    start = time.perf_counter()
    state = kernel.init(jax.random.split(jax.random.key(0), CHAINS), warmup, None, args, {})
    made = jax.vmap(jax.vmap(kernel.postprocess_fn(args, {})))

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, args, {})
        return state, state.z

    def run(state: Any) -> Any:
        # no draws of warm-up are kept
        state, _ = jax.lax.scan(lambda s, _: (kernel.sample(s, args, {}), None), state, None, length=warmup)
        return made(jax.lax.scan(step, state, None, length=samples)[1])

    compiled = jax.jit(run).lower(state).compile()
    ready = time.perf_counter()
    draws = jax.tree.map(lambda v: np.swapaxes(np.asarray(v), 0, 1), compiled(state))
    taken = time.perf_counter() - ready
    sizes = {n: np.ravel(effective_sample_size(v)) for n, v in draws.items()}
    ratio = max(float(np.max(split_gelman_rubin(v))) for v in draws.values())
    worst = min(sizes, key=lambda n: sizes[n].min())
    least, middle = sizes[worst].min(), np.median(np.concatenate(list(sizes.values())))
    return (
        f"{ready - start:6.1f} s to begin, {taken:6.2f} s to run; effective draws: least {least:6.0f} ({worst}), "
        f"median {middle:6.0f}; least a second {least / taken:7.1f}; R-hat at most {ratio:.3f}"
    )


@click.command()
@click.option("--cases", multiple=True, type=click.Choice(list(CASES)), default=list(CASES))
@click.option("--particles", multiple=True, type=int, default=[5, 10])
@click.option("--warmup", default=300)
@click.option("--samples", default=500)
def main(cases: tuple[str, ...], particles: tuple[int, ...], warmup: int, samples: int) -> None:
    """Print a line for each case and kernel."""
    for name in cases:
        model, args = CASES[name]()
        kernels = {f"MPGibbs, K = {k}": kayn.MPGibbs(model, k) for k in particles}
        for label, kernel in {**kernels, "NUTS": NUTS(model)}.items():
            print(f"{name}: {label:15} {measured(kernel, args, warmup, samples)}", flush=True)


if __name__ == "__main__":
    main()
