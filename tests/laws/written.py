"""One likelihood of rows that each read one group's latent, written in many forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import sparse

GROUPS, EACH = 6, 4
GROUP = np.repeat(np.arange(GROUPS), EACH)
INDEX = jnp.asarray(GROUP)
ROWS = GROUP.size
MATRIX = np.eye(GROUPS, dtype=np.float32)[GROUP]
ONES, PLACES = np.ones(ROWS, np.float32), np.arange(ROWS)
SPARSE = sparse.BCOO((ONES, np.stack([PLACES, GROUP], 1)), shape=MATRIX.shape)
COMPRESSED = sparse.BCSR((ONES, GROUP, np.arange(ROWS + 1)), shape=MATRIX.shape)
"""Written down, since `fromdense` compiles some forty programs."""


def newton(z: Any) -> Any:
    """The root of x^3 + x = z, all groups' until none moves."""

    def step(state: Any) -> Any:
        x = state[0]
        return x - (x**3 + x - z) / (3 * x**2 + 1), x

    def moves(state: Any) -> Any:
        return jnp.max(jnp.abs(state[0] - state[1])) > 1e-5

    return lax.while_loop(moves, step, (jnp.zeros(GROUPS), jnp.ones(GROUPS)))[0]


def cubed(x: Any) -> Any:
    return x**3 + x


def solved(v: Any) -> Any:
    return jnp.linalg.solve(jnp.array([[2.0, 0.0], [1.0, 1.0]]) + 0.0 * v, jnp.stack([2 * v, v]))[0]


def branched(z: Any) -> Any:
    return jax.vmap(lambda i: lax.cond(i > 2, lambda: z[i], lambda: z[i] + 0.0))(INDEX)


def where_by_where(z: Any) -> Any:
    found = jnp.zeros(ROWS)
    for group in range(GROUPS):
        found = jnp.where(group == INDEX, z[group], found)
    return found


SAME: dict[str, Callable[[Any], Any]] = {
    "take": lambda z: jnp.take(z, INDEX),
    "take_along_axis": lambda z: jnp.take_along_axis(jnp.tile(z, (ROWS, 1)), INDEX[:, None], 1)[:, 0],
    "vmap of a lookup": lambda z: jax.vmap(lambda i: z[i])(INDEX),
    "dynamic_slice in a vmap": lambda z: jax.vmap(lambda i: lax.dynamic_slice(z, (i,), (1,))[0])(INDEX),
    "indicator matrix": lambda z: MATRIX @ z,
    "one_hot": lambda z: jax.nn.one_hot(INDEX, GROUPS) @ z,
    "einsum": lambda z: jnp.einsum("rg,g->r", MATRIX, z),
    "matrix, masked sum": lambda z: (MATRIX * z).sum(-1),
    "BCOO": lambda z: SPARSE @ z,
    "BCSR": lambda z: COMPRESSED @ z,
    "repeat": lambda z: jnp.repeat(z, EACH),
    "tile, reshape": lambda z: jnp.tile(z[:, None], (1, EACH)).reshape(-1),
    "stack, reshape": lambda z: jnp.stack([z] * EACH, 1).reshape(-1),
    "concatenate": lambda z: jnp.concatenate([jnp.zeros(1), z])[INDEX + 1],
    "append": lambda z: jnp.append(z, 0.0)[INDEX],
    "pad": lambda z: jnp.pad(z, (2, 1))[INDEX + 2],
    "roll": lambda z: jnp.roll(z, 2)[(INDEX + 2) % GROUPS],
    "split": lambda z: jnp.concatenate(jnp.split(z, 3)[::-1])[(INDEX + 4 - 4 * (INDEX // 2)) % GROUPS],
    "where": lambda z: jnp.where(INDEX == 0, z[0], z[jnp.clip(INDEX, 1)]),
    "a chain of where": where_by_where,
    "at add": lambda z: jnp.zeros(ROWS).at[jnp.arange(ROWS)].add(z[INDEX]),
    "at set": lambda z: jnp.zeros(GROUPS + 1).at[jnp.arange(1, GROUPS + 1)].set(z)[INDEX + 1],
    "scan over rows": lambda z: lax.scan(lambda c, i: (c + 1, z[i]), 0, INDEX)[1],
    "fori_loop": lambda z: lax.fori_loop(0, ROWS, lambda i, out: out.at[i].set(z[INDEX[i]]), jnp.zeros(ROWS)),
    "recursion of all groups": lambda z: lax.scan(lambda c, t: (c + t * z, None), 0 * z, jnp.array([0.5, 0.5]))[0][
        INDEX
    ],
    "lax.map": lambda z: lax.map(lambda i: z[i], INDEX),
    "Newton's method": lambda z: cubed(newton(z))[INDEX],
    "cond in a vmap": branched,
    "solve by group": lambda z: jax.vmap(solved)(z)[INDEX],
    "associative_scan": lambda z: lax.associative_scan(jnp.add, jnp.stack([0.25 * z, 0.75 * z]))[-1][INDEX],
    "convolve": lambda z: jax.vmap(lambda v: jnp.convolve(jnp.stack([v, v]), jnp.array([0.5, 0.5])))(z)[INDEX, 1],
    "segment_sum": lambda z: jax.ops.segment_sum(z[INDEX], jnp.arange(ROWS), ROWS),
}
"""Functions of a latent of every group that are `z[INDEX]`."""
