"""Equations with small triangular matrices, for many right sides at a time."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from kayn.support.arrays import Array

SMALL = 8
"""Unknowns up to which the inverse is formed."""


def solved(tril: Array, vector: Array) -> Array:
    """The solution [..., D] of `tril` [..., D, D] times it equals `vector` [..., D], or [..., 1] of equal entries.

    `MultivariateNormal` and `MultivariateStudentT` of NumPyro 0.22 (`distributions/continuous.py`) keep a location that
    is one number, as by default, with one entry: `loc` is of another shape than the event, only `mean` is of its shape.

    Batched over right sides a solution is one call of LAPACK for each matrix, with all of them as its columns. From
    thousands of columns on it is divided among threads that wait for one another longer than they compute. With few
    unknowns the inverse is known as well, and what is left are sums of products. A single equation stays as it is:
    which of its unknowns depend on each other is read from it (`kayn.graph.marks`).
    """
    size = tril.shape[-1]
    vector = jnp.broadcast_to(vector, (*vector.shape[:-1], size))
    if size <= SMALL and max(tril.ndim - 1, vector.ndim) > 1:
        tril = tril.astype(jnp.result_type(tril, vector))
        inverse = solve_triangular(tril, jnp.broadcast_to(jnp.eye(size, dtype=tril.dtype), tril.shape), lower=True)
        return jnp.sum(inverse * vector[..., None, :], -1)
    shape = jnp.broadcast_shapes(tril.shape[:-1], vector.shape)
    tril = jnp.broadcast_to(tril, (*shape, size))
    return solve_triangular(tril, jnp.broadcast_to(vector, shape)[..., None], lower=True)[..., 0]
