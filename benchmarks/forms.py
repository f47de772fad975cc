"""CPU seconds of one QEM step of a model whose rows each read one group, written in many forms; and of its analysis.

Run: python -m benchmarks.forms [--groups N] [--each N] [--form NAME ...] [--large] [--json FILE]

Forms that keep each group's particle index give the plain form's contraction. What is left of them is the evaluation of
the rows' likelihood, a product with a dense matrix of rows x groups being the most. CPU seconds count the threads of
all cores, and do not count what other programs do. `--large` analyses a million rows of 100,000 groups instead, in
forms for which nothing of size rows x groups is written by the model itself.
"""

from __future__ import annotations

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
from jax import lax
from jax.experimental import sparse

import kayn
from benchmarks._machine import save
from kayn import QEM

WARM, STEPS, REPEATS = 20, 20, 3
Form = Callable[[Any, np.ndarray, int], Any]
"""Latents of groups, the group of each row in order, and rows in each group, to what each row reads."""


def _matrix(group: np.ndarray) -> np.ndarray:
    return np.eye(int(group.max()) + 1, dtype=np.float32)[group]


def _where(z: Any, group: np.ndarray, each: int) -> Any:
    padded = jnp.concatenate([jnp.zeros(1), z])
    return jnp.where(group < 0, 0.0, padded[group + 1])


def _loop(z: Any, group: np.ndarray, each: int) -> Any:
    return lax.scan(lambda state, _: (state, state), z, None, length=each)[1].T.ravel()


def _filled(z: Any, group: np.ndarray, each: int) -> Any:
    return lax.fori_loop(0, each, lambda i, x: x.at[:, i].set(z), jnp.zeros((z.size, each))).ravel()


FORMS: dict[str, Form] = {
    "z[group]": lambda z, g, e: z[g],
    "take": lambda z, g, e: jnp.take(z, g),
    "at[].get": lambda z, g, e: z.at[g].get(),
    "take_along_axis": lambda z, g, e: jnp.take_along_axis(z, jnp.asarray(g), 0),
    "vmap of a lookup": lambda z, g, e: jax.vmap(lambda i: z[i])(jnp.asarray(g)),
    "vmap of a slice": lambda z, g, e: jax.vmap(lambda i: lax.dynamic_slice(z, (i,), (1,))[0])(jnp.asarray(g)),
    "repeat": lambda z, g, e: jnp.repeat(z, e),
    "broadcast": lambda z, g, e: jnp.broadcast_to(z[:, None], (z.size, e)).ravel(),
    "tile": lambda z, g, e: jnp.tile(z, (e, 1)).T.ravel(),
    "stack": lambda z, g, e: jnp.stack([z] * e, 1).ravel(),
    "a reference in front": lambda z, g, e: jnp.concatenate([jnp.zeros(1), z])[g + 1],
    "append": lambda z, g, e: jnp.append(z, 0.0)[g],
    "pad": lambda z, g, e: jnp.pad(z, (1, 0))[g + 1],
    "roll": lambda z, g, e: jnp.roll(z, 1)[(g + 1) % z.size],
    "reversed": lambda z, g, e: z[::-1][z.size - 1 - g],
    "where": _where,
    "segment_sum": lambda z, g, e: jax.ops.segment_sum(z, np.arange(z.size), z.size)[g],
    "at[].set": lambda z, g, e: jnp.zeros(z.size + 1).at[np.arange(z.size)].set(z)[g],
    "lax.map": lambda z, g, e: lax.map(lambda x: jnp.broadcast_to(x, (e,)), z).ravel(),
    "scan": _loop,
    "fori_loop": _filled,
    "sparse matrix": lambda z, g, e: sparse.BCOO.fromdense(_matrix(g), nse=g.size) @ z,
    "one_hot": lambda z, g, e: jax.nn.one_hot(g, z.size) @ z,
    "indicator matrix": lambda z, g, e: _matrix(g) @ z,
}
LARGE = ("z[group]", "vmap of a lookup", "a reference in front", "repeat", "segment_sum", "scan")


def model(form: Form, group: np.ndarray, each: int, y: np.ndarray) -> None:
    """Effects of groups around a mean, with a spread; `each` rows of every group, in order."""
    mean, spread = numpyro.sample("mean", dist.Normal(0.0, 1.0)), numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("groups", len(y) // each):
        z = numpyro.sample("z", dist.Normal(mean, spread))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(form(z, group, each), 1.0), obs=y)


def _data(groups: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    rng, group = np.random.default_rng(0), np.repeat(np.arange(groups), each)
    return group, (rng.normal(size=groups)[group] + rng.normal(size=group.size)).astype(np.float32)


def step_seconds(form: Form, groups: int, each: int) -> tuple[float, float]:
    """CPU seconds of a warm step, the best of several, and the log evidence that it finds."""
    group, y = _data(groups, each)
    qem = QEM(partial(model, form), num_particles=30)
    state = qem.init(0, group, each, y)
    state, found = qem.advance(state, WARM)
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        state, found = qem.advance(state, STEPS)
        jax.block_until_ready(found)
        taken.append((time.process_time() - start) / STEPS)
    return min(taken), float(np.asarray(jax.tree.leaves(found)[0]).ravel()[-1])


def analysis_seconds(form: Form, groups: int, each: int) -> float:
    """CPU seconds until the structure of a model is known."""
    group, y = _data(groups, each)
    start = time.process_time()
    kayn.analyze(partial(model, form), group, each, y)
    return time.process_time() - start


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--groups", default=300, show_default=True)
@click.option("--each", default=10, show_default=True, help="Rows of a group.")
@click.option(
    "--form", "names", multiple=True, type=click.Choice(FORMS), help="Only these; the first is the plain one."
)
@click.option("--large", is_flag=True, help="Analyse a million rows of 100,000 groups.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the figures to this file.")
def main(groups: int, each: int, names: tuple[str, ...], large: bool, path: str | None) -> None:
    """Print one line a form."""
    figures: dict[str, Any] = {}
    plain = 0.0
    for name, form in FORMS.items():
        if name not in (names or (LARGE if large else FORMS)):
            continue
        if large:
            found, last = analysis_seconds(form, 100_000, 10), 0.0
        else:
            found, last = step_seconds(form, groups, each)
        plain = plain or found
        figures[name] = {"seconds": found, "of_plain": found / plain, "found": last}
        click.echo(f"{name:22s} {found:8.4f} s   {found / plain:5.2f} of the plain form   {last:.3f}")
    if path:
        save(path, forms=figures, groups=groups, each=each, large=large)


if __name__ == "__main__":
    main()
