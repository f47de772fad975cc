"""What the pieces of a contraction cost on this device: log-matmul beside a plain product,
chains step by step or in rounds, precision of products.

Run: python -m benchmarks.kernels [--json FILE]
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import click
import jax
import jax.numpy as jnp

import kayn
from benchmarks._machine import described, limit_seconds, save, seconds
from benchmarks.scaling import chain, point
from benchmarks.steps import after, qem_step
from kayn.contraction import chain_rounds
from kayn.contraction.logmatmul import log_matmul
from models import MODELS

PRODUCTS = ((1, 1024, 1024), (300, 100, 100), (1000, 30, 30), (4000, 10, 10))
"""Products at a time, terms summed, and rows and columns of the result."""
WIDE = ((16, 2048, 2048), (3000, 300, 300))
"""Such as take a CPU too long."""
CHAINS = ((100, 10), (1000, 10), (1000, 30))
"""Steps and particles."""


def products() -> list[dict[str, Any]]:
    """Log-matmuls of spread-out log weights, in float32: time,
    and how often the plain product's and the least time for operations and bytes."""
    plain = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    semiring = jax.jit(log_matmul)
    rows = []
    for batch, terms, wide in (*PRODUCTS, *(WIDE if jax.default_backend() != "cpu" else ())):
        keys = jax.random.split(jax.random.key(0))
        left = 3 * jax.random.normal(keys[0], (batch, wide, terms))
        right = 3 * jax.random.normal(keys[1], (batch, terms, wide))
        own, other = (seconds(partial(product, left, right))[0] for product in (semiring, plain))
        limit = limit_seconds(2 * batch * terms * wide**2, left.nbytes + right.nbytes + 4 * batch * wide**2)
        shape = [batch, wide, terms, wide]
        rows.append({"shape": shape, "seconds": own, "of_product": own / other, "of_limit": own / limit})
    return rows


def chains() -> list[dict[str, Any]]:
    """A QEM step on a Gaussian walk, its steps one after the other and in rounds of products."""
    rows = []
    for steps, particles in CHAINS:
        row: dict[str, Any] = {"steps": steps, "particles": particles}
        for name, rounds in (("one_by_one", False), ("in_rounds", True)):
            with mock.patch.object(chain_rounds, "worthwhile", lambda *_, rounds=rounds: rounds):
                found = point(chain(steps), particles)
            row[name] = {what: found[what] for what in ("step_seconds", "first_step_seconds")}
        rows.append(row)
    return rows


def precision(name: str = "bus", particles: int = 30) -> dict[str, Any]:
    """A QEM step and the log evidence of one set of particles,
    with full products and with those of ten-bit operands where the device has them."""
    model, args = MODELS[name]()
    qem = kayn.QEM(model, num_particles=particles)
    params = qem.get_params(after(qem, qem.init(0, *args)))
    found: dict[str, Any] = {"model": name, "particles": particles}
    for kind in ("highest", "tensorfloat32"):
        with jax.default_matmul_precision(kind):
            _, warmed, steps = qem_step(model, args, particles)
            best, _ = seconds(warmed())
            weighing = kayn.Importance(model, qem.guide, num_particles=particles, num_replicates=4)
            posterior = weighing.run(1, params, *args)
        found[kind] = {"step_seconds": best / steps, "log_evidence": float(posterior.log_evidence)}
    return found


@click.command()
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the figures there too.")
def main(path: str | None) -> None:
    """Print the three tables."""
    click.echo(described())
    found = {"products": products()}
    for row in found["products"]:
        batch, wide, terms, _ = row["shape"]
        click.echo(
            f"log-matmul {batch} x ({wide} x {terms} x {wide}): {1e3 * row['seconds']:.3f} ms, "
            f"{row['of_product']:.1f} times a plain product, "
            f"{row['of_limit']:.1f} times the limit"
        )
    found["chains"] = chains()
    for row in found["chains"]:
        ways = ", ".join(
            f"{name.replace('_', ' ')} {1e3 * row[name]['step_seconds']:.2f} ms (first "
            f"{row[name]['first_step_seconds']:.1f} s)"
            for name in ("one_by_one", "in_rounds")
        )
        click.echo(f"chain of {row['steps']} steps, K = {row['particles']}: {ways}")
    found["precision"] = precision()
    for kind in ("highest", "tensorfloat32"):
        row = found["precision"][kind]
        click.echo(f"{kind}: {1e3 * row['step_seconds']:.2f} ms, log evidence {row['log_evidence']:.4f}")
    if path:
        save(path, **found)


if __name__ == "__main__":
    main()
