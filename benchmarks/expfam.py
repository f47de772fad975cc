"""Exponential-family factors as matrix products against the same factors term by term: time and temporary memory.

Each factor is evaluated on random particles, alone and with its gradient in the particles, both ways in one run: a
MovieLens-sized prior (18 tastes of 300 or 943 users, mean and log scale on particle axes of their own or on one), and
the likelihood of 100 rows in each of 50 groups.

Run: python -m benchmarks.expfam [--json FILE]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from kayn.axes.request import make_request
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import Problem, build_problem, model_inputs
from kayn.evidence.weighed import links_of
from kayn.factors.elementwise import evaluate_reduced
from kayn.factors.evaluate import evaluate
from kayn.factors.task import reduction
from kayn.guides.factorised import FactorisedGuide
from models.simulated import two_level

NUM_GENRES = 18


@dataclass(frozen=True)
class Case:
    """A model, the factor of it that is measured, and its particles."""

    name: str
    model: Callable
    factor: str
    num_particles: int
    groups: tuple[tuple[str, ...], ...] = ()


def tastes(num_users: int) -> None:
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros(NUM_GENRES), 1.0).to_event(1))
    psi = numpyro.sample("psi", dist.Normal(jnp.zeros(NUM_GENRES), 0.5).to_event(1))
    with numpyro.plate("users", num_users):
        numpyro.sample("z", dist.Normal(mu, jnp.exp(psi)).to_event(1))


def cases() -> list[Case]:
    out = []
    for users, K in ((300, 10), (300, 30), (943, 10), (943, 30)):
        model = partial(tastes, users)
        out.append(Case(f"{users} users, mu and psi apart", model, "z", K))
        out.append(Case(f"{users} users, mu and psi on one axis", model, "z", K, (("mu", "psi"),)))
    model, data = two_level(50, 100)
    out += [Case("50 groups of 100 rows", partial(model, *data), "y", K) for K in (10, 30)]
    return out


def factor(case: Case) -> tuple[Problem, Callable, Callable]:
    """The problem, and the factor as a function of draws: as a product, and term by term."""
    guide = FactorisedGuide.from_model(case.model, (), {})
    request = make_request(case.num_particles, groups=case.groups)
    problem = build_problem(case.model, guide, (), {}, {}, request)
    slot = next(i for i, term in enumerate(problem.layout.plan.terms) if term.name == case.factor)
    task = reduction(problem.graph, problem.layout, slot).of(problem.model)

    def of(evaluate: Callable, numbers: Any, values: Any) -> Any:
        inputs = model_inputs(problem, numbers, {}, {})
        return evaluate(task, task.operands(values, inputs, links_of(problem, numbers, {}, {}).__getitem__))

    return problem, partial(of, evaluate), partial(of, evaluate_reduced)


def measure(function: Callable, *args: Any, seconds: float) -> dict[str, float]:
    """Median time of a call and bytes of temporaries, compiled."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compilation = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    return {
        "seconds": float(np.median(times)),
        "compile_seconds": compilation,
        "temporary_bytes": int(memory.temp_size_in_bytes),
    }


def with_gradient(function: Callable, numbers: Any, values: Any, weights: Any) -> Any:
    return jax.value_and_grad(lambda v: jnp.sum(weights * function(numbers, v)))(values)


def run(case: Case, seconds: float) -> dict[str, Any]:
    problem, product, plain = factor(case)
    numbers = problem.numbers
    values = draw_particles(problem, numbers, jax.random.key(0), {}).values
    expected, found = (np.asarray(jax.jit(f)(numbers, values)) for f in (plain, product))
    weights = jax.random.uniform(jax.random.key(1), expected.shape)
    return {
        "case": case.name,
        "K": case.num_particles,
        "entries": expected.size,
        "relative_error": float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1.0))),
        "product": measure(product, numbers, values, seconds=seconds),
        "plain": measure(plain, numbers, values, seconds=seconds),
        "product_gradient": measure(partial(with_gradient, product), numbers, values, weights, seconds=seconds),
        "plain_gradient": measure(partial(with_gradient, plain), numbers, values, weights, seconds=seconds),
    }


@click.command()
@click.option("--json", "path", type=click.Path(), help="Also write the results here.")
@click.option("--seconds", default=1.0, help="How long to repeat each measurement.")
def main(path: str | None, seconds: float) -> None:
    print(f"{'factor':38} {'K':>3}  {'forward ms':>16} {'with gradient ms':>18} {'temporaries MB':>18}")
    results = []
    for case in cases():
        result = run(case, seconds)
        results.append(result)

        def both(kind: str, unit: str, scale: float, result: dict = result) -> str:
            fast, plain = (result[f"{way}{kind}"][unit] * scale for way in ("product", "plain"))
            return f"{fast:.2f}/{plain:.2f} {plain / max(fast, 1e-9):.1f}x"

        print(
            f"{case.name:38} {case.num_particles:3}  {both('', 'seconds', 1e3):>16} "
            f"{both('_gradient', 'seconds', 1e3):>18}"
            f" {both('_gradient', 'temporary_bytes', 1e-6):>18}"
        )
    if path is not None:
        hardware = f"{jax.devices()[0].platform}, {jax.local_device_count()} device"
        with open(path, "w") as file:
            json.dump({"hardware": hardware, "dtype": "float32", "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
