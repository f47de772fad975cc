"""Whether each work-around for a compiler is still needed: `python -m experiments.workarounds [NAME ...]`.

Every one is measured with and without, on something small: seconds, or whether the result is right. One that shows no
gain, on a machine that does nothing else and with any release that kayn supports, is a candidate to go: read the
comment at its place, take it out, and let
`benchmarks` have the last word.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import kayn
from kayn.contraction import logmatmul
from kayn.objectives.relaxed import RelaxedOneHot
from kayn.particles import lattice
from kayn.programs.squeeze import run_squeezed
from kayn.support import keys, shuffle
from kayn.support.table import format_table
from kayn.xla import compilation
from kayn.xla.fallback import guarded

REPEATS = 25
GAIN = 1.15
"""A work-around is kept that makes something so many times quicker."""


@dataclass(frozen=True)
class WorkAround:
    """One of them.

    Attributes:
        says: what is done.
        place: where it stands in kayn, as `module:name`.
        measure: figures with and without it, in seconds; infinite where it does not work.
    """

    says: str
    place: str
    measure: Callable[[], tuple[float, float]]


def compiled(function: Callable, *args: Any, options: dict[str, Any] | None = None) -> tuple[Callable, float]:
    """A compiled program, by default made as kayn makes its own, and the seconds that the compiler took."""
    lowered, options = jax.jit(function).lower(*args), compilation.quick_options() if options is None else options
    start = time.perf_counter()
    return lowered.compile(options), time.perf_counter() - start


def seconds(run: Callable, *args: Any) -> float:
    """The least of a few runs."""
    jax.block_until_ready(run(*args))
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        taken.append(time.perf_counter() - start)
    return min(taken)


def both(make: Callable[[], Callable], without: Callable[[], Any], *args: Any) -> tuple[float, float]:
    """Seconds of a program that is traced with and without a work-around."""
    kept = seconds(compiled(make(), *args)[0], *args)
    with without():
        return kept, seconds(compiled(make(), *args)[0], *args)


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Something else in the place of a function."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def at_once(array: Any, witness: Any) -> Any:
    """`apart` without doing anything."""
    return array


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# -- how programs are compiled


def _model(group: np.ndarray, y: Any) -> None:
    mu, sd = numpyro.sample("mu", dist.Normal(0.0, 1.0)), numpyro.sample("sd", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 8):
        a = numpyro.sample("a", dist.Normal(mu, sd))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(a[group], 0.5), obs=y)


def _step() -> tuple[Callable, jax.Array]:
    group = np.arange(80) % 8
    importance = kayn.Importance(_model, num_particles=10)
    return (lambda key, y: importance.run(key, {}, group, y).axis_weights), normal(80)


def _quick() -> tuple[float, float]:
    function, y = _step()
    first = compiled(function, jax.random.key(0), y, options=compilation.quick_options())[1]
    return first, compiled(function, jax.random.key(0), y, options={})[1]


def _once() -> tuple[float, float]:
    function, y = _step()
    first = compiled(function, jax.random.key(0), y, options=compilation.once_options())[1]
    return first, compiled(function, jax.random.key(0), y, options=compilation.quick_options())[1]


def _scatter() -> tuple[float, float]:
    rows, values = np.random.default_rng(0).integers(0, 500, 10**6), normal(10**6)

    def total(values: jax.Array) -> jax.Array:
        return jnp.zeros(500).at[rows].add(values)

    usual, quick = (compiled(total, values, options=o)[0] for o in ({}, None))
    return seconds(usual, values), seconds(quick, values)


# -- what is kept apart from what


def _matmul() -> tuple[float, float]:
    left, right = normal(2000, 10, 10), normal(2000, 10, 10)
    return both(
        lambda: lambda a, b: logmatmul.log_matmul(a, b), lambda: replaced(logmatmul, "apart", at_once), left, right
    )


def _lattice() -> tuple[float, float]:
    def make() -> Callable:
        return lambda key: [
            x[:, None] * jnp.ones(50) for x in lattice.even_normal(key, 30, ((20, 30), (1, 5)), jnp.float32)
        ]

    return both(make, lambda: replaced(lattice, "apart", at_once), jax.random.key(0))


def _short_rows() -> tuple[float, float]:
    x, y = normal(3000), normal(5)

    def direct(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.exp(-((x[:, None, None] - y[:, None]) ** 2) * jnp.log1p(jnp.abs(y))).sum(1)

    def along(x: jax.Array, y: jax.Array) -> jax.Array:
        rows = jnp.exp(-((x - y[:, None, None]) ** 2) * jnp.log1p(jnp.abs(y))[:, None])
        return compilation.apart(rows, y[0]).sum(0).T

    return seconds(compiled(along, x, y)[0], x, y), seconds(compiled(direct, x, y)[0], x, y)


def _stored() -> tuple[float, float]:
    def program(divide: bool) -> Callable:
        def run(x: jax.Array, seed: jax.Array) -> jax.Array:
            drawn = jnp.tanh(jnp.sin(x)) * 2
            drawn = drawn / (1.0 + 0.0 * seed) if divide else drawn
            return jnp.sum((drawn[:, None, None] + drawn[None, :, None] * drawn) ** 2, (1, 2))

        return run

    args = normal(150), jnp.ones(())
    kept, left_out = (seconds(compiled(program(d), *args)[0], *args) for d in (True, False))
    return kept, left_out


def _extremes() -> tuple[float, float]:
    """Right (zero seconds) or wrong (infinite): a square of what is divided by 1e-25, at zero."""

    def density(scale: Any) -> float:
        found = jax.jit(lambda x: (x / scale()) ** 2)(jnp.zeros(4))
        return 0.0 if bool((found == 0).all()) else math.inf

    return density(lambda: jax.lax.optimization_barrier(jnp.float32(1e-25))), density(lambda: jnp.float32(1e-25))


# -- shapes and loops


def _ones() -> tuple[float, float]:
    x, y = normal(60, 400, 1), normal(400, 1)

    def one(x: jax.Array) -> jax.Array:
        return jnp.exp(-((x - y) ** 2)) * jnp.log1p(x**2)

    jaxpr = jax.make_jaxpr(one)(x[0])

    def squeezed(x: jax.Array) -> jax.Array:
        given = dict(zip((*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars), (*jaxpr.consts, x), strict=True))
        return run_squeezed(jaxpr.jaxpr.eqns, given, jaxpr.jaxpr.outvars, jaxpr.jaxpr.debug_info)[0]

    kept, left_out = (compiled(jax.vmap(f, out_axes=-1), x)[0] for f in (squeezed, one))
    return seconds(kept, x), seconds(left_out, x)


def _selection() -> tuple[float, float]:
    x = normal(10**6)

    def chain(x: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.abs(x)) * jnp.tanh(x) + jnp.log1p(x * x)

    after = compiled(lambda x: chain(x).reshape(1000, 1000).sum(1), x)[0]
    within = compiled(lambda x: jnp.where(x > -9.0, chain(x), -jnp.inf).reshape(1000, 1000).sum(1), x)[0]
    return seconds(after, x), seconds(within, x)


def _written_out() -> tuple[float, float]:
    bits = jax.random.bits(jax.random.key(0), (shuffle.ROWS, 3000), jnp.uint32)
    count, rounds = 100, shuffle.ROUNDS
    numbered = jnp.arange(count, dtype=jnp.uint32)[:, None]

    def looped(numbers: jax.Array) -> jax.Array:
        drawn, coins = numbers[: rounds + 1] % count, numbers[rounds + 1 :]
        places = shuffle.rotated(numbered, drawn[0], count)

        def one(i: Any, places: jax.Array) -> jax.Array:
            pair = drawn[i + 1]
            partner = jnp.minimum(pair - places, pair - places + jnp.uint32(count))
            mixed = (jnp.maximum(places, partner) * jnp.uint32(0x9E3779B1) ^ coins[i]) * jnp.uint32(0x85EBCA77)
            return places + (mixed >> 16 & 1) * (partner - places)

        return jax.lax.fori_loop(0, rounds, one, places)

    kept, left_out = compiled(lambda b: shuffle.shuffled(b, numbered, count), bits)[0], compiled(looped, bits)[0]
    return seconds(kept, bits), seconds(left_out, bits)


def _classes_first() -> tuple[float, float]:
    """Densities of relaxed categories, as `RelaxedOneHot` has them and with sums over the last dimension."""
    logits, value = normal(50000, 5), jax.nn.softmax(normal(50000, 5), -1)

    def plain(value: jax.Array, logits: jax.Array) -> jax.Array:
        logs = jnp.log(value)
        return jnp.sum(logits - 1.5 * logs, -1) - 5 * jax.nn.logsumexp(logits - 0.5 * logs, -1)

    ours = compiled(lambda x, z: RelaxedOneHot(0.5, z).log_prob(x), value, logits)[0]
    return seconds(ours, value, logits), seconds(compiled(plain, value, logits)[0], value, logits)


def _length() -> tuple[float, float]:
    x = normal(3 * 10**6)
    kept = compiled(lambda x: jnp.sqrt(jnp.vdot(x, x)), x)[0]
    return seconds(kept, x), seconds(compiled(lambda x: jnp.max(jnp.abs(x)), x)[0], x)


def _long_rows() -> tuple[float, float]:
    rows = normal(24, 90_000)
    return both(
        lambda: lambda x: compilation.sum_of_rows(x, 0), lambda: replaced(compilation, "LONG_ROW", math.inf), rows
    )


# -- a fast computation with an exact one in reserve


def _in_reserve() -> tuple[float, float]:
    """The gradient of a normal factor by moments of its rows, row by row where these would lose digits."""
    rows, args = normal(1000), (normal(60), normal(60))

    def prepare(args: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        moments = jnp.stack([jnp.sum(rows**2), jnp.sum(rows), jnp.float32(len(rows))])
        return (moments, args), jnp.all(jnp.abs(args[0]) < 100)

    def finish(prepared: Any) -> jax.Array:
        (squares, total, count), (loc, log_sd) = prepared
        square = squares - 2 * loc[:, None] * total + count * loc[:, None] ** 2
        return -0.5 * square * jnp.exp(-2 * log_sd) - count * log_sd

    def exact(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        loc, log_sd = args
        return jnp.sum(-0.5 * ((rows - loc[:, None, None]) / jnp.exp(log_sd)[:, None]) ** 2 - log_sd[:, None], -1)

    def plain(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        prepared, safe = prepare(args)
        return jax.lax.cond(safe, lambda: finish(prepared), lambda: exact(args))

    def step(factor: Callable) -> Callable:
        return jax.grad(lambda args: jax.nn.logsumexp(factor(args)))

    kept, left_out = (compiled(step(f), args)[0] for f in (lambda a: guarded(prepare, finish, exact, a), plain))
    return seconds(kept, args), seconds(left_out, args)


def _flat_branches() -> tuple[float, float]:
    """A product in front of one that is made row by row: branches that would like other layouts."""
    left, right, which = normal(30, 400, 8), normal(40, 400, 8), jnp.array(True)

    def program(flat: bool) -> Callable:
        def fast(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.einsum("irf,jrf->rij", x, y)

        def exact(x: jax.Array, y: jax.Array) -> jax.Array:
            return jax.vmap(jax.vmap(lambda a, b: jnp.sum(a * b, -1), (None, 0), -1), (0, None), -2)(x, y)

        def run(x: jax.Array, y: jax.Array, which: jax.Array) -> jax.Array:
            if not flat:
                return jax.lax.cond(which, fast, exact, x, y)
            found = jax.lax.cond(which, lambda *z: fast(*z).ravel(), lambda *z: exact(*z).ravel(), x, y)
            return found.reshape(x.shape[1], len(x), len(y))

        return run

    args = left, right, which
    kept, left_out = (seconds(compiled(program(f), *args)[0], *args) for f in (True, False))
    return kept, left_out


# -- random numbers


def _philox() -> tuple[float, float]:
    def draws(impl: str) -> float:
        key = jax.random.key(0, impl=impl)
        return compiled(lambda k: [jax.random.normal(k, (n,)) for n in (3, 5, 7)], key)[1]

    return draws(keys.QUICK), draws(keys.DEFAULT)


CUT = """
import jax, jax.numpy as jnp
mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
jax.jit(lambda k, x: x + jax.random.uniform(k, (4,)))(jax.random.key(0, impl="{}"), rows).block_until_ready()
"""


def _devices() -> tuple[float, float]:
    """Works (zero seconds) or not (infinite): a program that is cut between two devices."""

    def works(impl: str) -> float:
        environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        ran = subprocess.run(
            [sys.executable, "-c", CUT.format(impl)], env=environment, capture_output=True, check=False
        )
        return 0.0 if ran.returncode == 0 else math.inf

    return works(keys.DEFAULT), works(keys.QUICK)


def _dependent_draws() -> tuple[float, float]:
    """Of a prior of 60 scalars, each given the one before."""

    def one(key: jax.Array) -> jax.Array:
        x = jnp.zeros(())
        for k in jax.random.split(key, 60):
            x = dist.StudentT(4.0, x, 1.0).sample(k)
        return x

    many = jax.random.split(jax.random.key(0), 30)
    start = time.perf_counter()
    jax.block_until_ready(jax.vmap(one)(many))
    kept = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(jax.jit(lambda k: jax.lax.map(one, k))(many))
    return kept, time.perf_counter() - start


WORK_AROUNDS = {
    "quick": WorkAround("programs are compiled in XLA's older way", "kayn.xla.jit:QuickJit", _quick),
    "once": WorkAround("programs that run once are hardly optimised", "kayn.xla.compilation:once_options", _once),
    "scatter": WorkAround("but not those with long scatters", "kayn.xla.jit:LONG_SCATTER", _scatter),
    "products": WorkAround("products are apart from logarithms", "kayn.xla.compilation:apart", _matmul),
    "quantiles": WorkAround("quantiles are apart from their parts", "kayn.xla.compilation:apart", _lattice),
    "rows": WorkAround("long dimensions come last", "kayn.factors.elementwise:along_plates", _short_rows),
    "draws": WorkAround("draws are divided by one, and stored", "kayn.evidence.draws:_stored", _stored),
    "extremes": WorkAround("extreme scales are hidden", "kayn.densities.log_prob:_kept_apart", _extremes),
    "ones": WorkAround("dimensions of size one are left out", "kayn.programs.squeeze:run_squeezed", _ones),
    "selection": WorkAround("selections come after arithmetic", "kayn.factors.elementwise:finite", _selection),
    "rounds": WorkAround("rounds are written out, no loop", "kayn.support.shuffle:shuffled", _written_out),
    "classes": WorkAround("classes come first", "kayn.objectives.relaxed:RelaxedOneHot", _classes_first),
    "sums": WorkAround("sums of long rows are products", "kayn.xla.compilation:sum_of_rows", _long_rows),
    "length": WorkAround("length in place of the largest", "kayn.factors.by_product:_length", _length),
    "reserve": WorkAround("paths are computed again for the gradient", "kayn.xla.fallback:guarded", _in_reserve),
    "branches": WorkAround("branches have flat results", "kayn.xla.fallback:guarded", _flat_branches),
    "philox": WorkAround("philox in place of threefry", "kayn.support.keys:generator", _philox),
    "devices": WorkAround("but not on several devices", "kayn.support.keys:generator", _devices),
    "dependent": WorkAround("long priors are not compiled", "kayn.guides.start:_draws_of", _dependent_draws),
}


FIGURES = {0.0: "right", math.inf: "wrong"}
"""In the place of seconds."""


def verdict(kept: float, left_out: float) -> str:
    """What the figures with and without a work-around say."""
    if math.isinf(kept):
        return "does not help"
    return "keep" if left_out > GAIN * kept else "no gain"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(WORK_AROUNDS)))
def main(names: tuple[str, ...]) -> None:
    """Measure all work-arounds, or those that are named."""
    click.echo(f"JAX {jax.__version__}, {jax.default_backend()}")
    rows = []
    for name in names or WORK_AROUNDS:
        it = WORK_AROUNDS[name]
        kept, left_out = it.measure()
        shown = [FIGURES.get(x, f"{x:.2e} s") for x in (kept, left_out)]
        rows.append((name, it.says, *shown, verdict(kept, left_out), it.place))
    click.echo(format_table(("name", "work-around", "with", "without", "so", "at"), rows))


if __name__ == "__main__":
    main()
