"""How tight is the evidence bound? Massively parallel against global particles on two Gaussian hierarchies.

Two-level: mu ~ N(0,1); 50 theta_m ~ N(mu,1); 100 observations each ~ N(theta_m,1). Three-level: mu; 10 a_i ~ N(mu,1);
10 x 10 b_ij ~ N(a_i,1); 20 observations each. The proposal is the best mean field with every scale doubled. Printed is
the mean gap between the exact log evidence and log Z, in nats, over independent keys, with its standard error.

Run: python -m benchmarks.tightness [--json FILE]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from kayn.axes.request import make_request
from kayn.evidence.problem import build_problem
from kayn.evidence.queries import weighted_draws
from models import simulated


@dataclass(frozen=True)
class Case:
    """A Gaussian hierarchy with its data, the precision matrix of its latents given data,
    and the exact log evidence."""

    name: str
    model: Callable
    data: np.ndarray
    mean: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    log_evidence: float


def two_level(seed: int = 0, groups: int = 50, rows: int = 100) -> Case:
    rng = np.random.default_rng(seed)
    data = rng.normal(rng.normal(rng.normal(), 1, groups)[:, None], 1, (groups, rows))

    model, _ = simulated.two_level(groups, rows)
    parent = np.full(groups, 0)
    return _case("two-level", model, data, {"mu": (1,), "theta": (groups, 1)}, [None, *parent], slice(1, None), rows)


def three_level(seed: int = 0, outer: int = 10, inner: int = 10, rows: int = 20) -> Case:
    rng = np.random.default_rng(seed)
    a = rng.normal(rng.normal(), 1, outer)
    b = rng.normal(a[:, None], 1, (outer, inner))
    data = rng.normal(b[..., None], 1, (outer, inner, rows))

    model, _ = simulated.three_level(outer, inner, rows)
    parents = [None, *[0] * outer, *(1 + i for i in range(outer) for _ in range(inner))]
    shapes = {"mu": (1,), "a": (outer, 1, 1), "b": (outer, inner, 1)}
    return _case("three-level", model, data, shapes, parents, slice(1 + outer, None), rows)


def _case(name: str, model: Callable, data: np.ndarray, shapes: dict, parents: list, leaves: slice, rows: int) -> Case:
    """Closed forms from the precision matrix of all latents; every edge and every observation has unit variance."""
    size = len(parents)
    prior = np.zeros((size, size))
    for child, parent in enumerate(parents):
        prior[child, child] += 1
        if parent is not None:
            prior[parent, parent] += 1
            prior[child, parent] -= 1
            prior[parent, child] -= 1
    posterior, linear = prior.copy(), np.zeros(size)
    flat = data.reshape(-1, rows)
    index = np.arange(size)[leaves]
    posterior[index, index] += rows
    linear[index] = flat.sum(1)
    mean = np.linalg.solve(posterior, linear)
    log_evidence = 0.5 * (
        np.linalg.slogdet(prior)[1]
        - np.linalg.slogdet(posterior)[1]
        + linear @ mean
        - (data**2).sum()
        - data.size * np.log(2 * np.pi)
    )
    # the best mean field (exclusive KL) has the posterior means and the inverse diagonal of the precision
    scale = 2 / np.sqrt(np.diag(posterior))
    means, scales, at = {}, {}, 0
    for latent, shape in shapes.items():
        count = int(np.prod(shape))
        means[latent], scales[latent] = mean[at : at + count].reshape(shape), scale[at : at + count].reshape(shape)
        at += count
    means["mu"], scales["mu"] = means["mu"][0], scales["mu"][0]
    return Case(name, model, data.astype(np.float32), means, scales, float(log_evidence))


def guide_of(case: Case) -> Callable:
    def guide(y: np.ndarray) -> None:
        for latent, mean in case.mean.items():
            # unplated batch dimensions are plates of their own
            numpyro.sample(latent, dist.Normal(jnp.asarray(mean), jnp.asarray(case.scale[latent])))

    return guide


def gap(case: Case, strategy: str, num_particles: int, repeats: int) -> tuple[float, float]:
    """Mean gap to the exact log evidence and its standard error, in nats."""
    problem = build_problem(case.model, guide_of(case), (case.data,), {}, {}, make_request(num_particles, strategy))
    run = jax.jit(lambda keys: jax.lax.map(lambda key: weighted_draws(problem, problem.numbers, {}, key)[0], keys))
    log_z = np.asarray(run(jax.random.split(jax.random.key(1), repeats)), np.float64)
    return case.log_evidence - log_z.mean(), log_z.std(ddof=1) / np.sqrt(repeats)


@click.command()
@click.option("--repeats", default=200, show_default=True, help="Independent keys for every entry.")
@click.option("--json", "json_path", default=None, help="Also write the table to this file.")
def main(repeats: int, json_path: str | None) -> None:
    rows = []
    print(f"{'model':12s} {'strategy':10s} {'K':>4s} {'gap (nats)':>12s} {'s.e.':>7s}")
    for case in (two_level(), three_level()):
        for strategy in ("parallel", "global"):
            measure = partial(gap, case, strategy, repeats=repeats)
            for num_particles in (10, 30):
                mean, error = measure(num_particles)
                rows.append({"model": case.name, "strategy": strategy, "K": num_particles, "gap": mean, "error": error})
                print(f"{case.name:12s} {strategy:10s} {num_particles:4d} {mean:12.2f} {error:7.2f}", flush=True)
    if json_path:
        with open(json_path, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
