"""Sum over the paths of a chain in the logarithm of its number of steps: for devices that do many things at once.

The factors of one step are a matrix from the states before it to those after it, and the sum over all paths between the
first and the last is the product of these matrices. Multiplied in pairs, then pairs of pairs, T of them take log2(T)
rounds; going through them one state vector at a time takes T, for a K-th of the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kayn.contraction.logmatmul import log_matmul
from kayn.support.arrays import Array

SHORTEST = 16
"""Steps below which a chain is gone through one by one anywhere."""
LARGEST = 2**26
"""Entries of all matrices above which it is."""


def worthwhile(steps: int, shape: Sequence[int], lags: int) -> bool:
    """Whether the default device is likely to be quicker by rounds of products.

    Args:
        shape: of an array over the states before a step, which are its last dimensions, `lags` of them.
    """
    states = math.prod(shape[len(shape) - lags :])
    entries = steps * math.prod(shape) * states
    return jax.default_backend() != "cpu" and steps >= SHORTEST and entries <= LARGEST


def sum_over_paths(
    one_step: Callable[[Array, Sequence[Array]], Array], factors: Sequence[Array], shape: Sequence[int], lags: int
) -> Array:
    """What `one_step` comes to after all steps, from an array of zeros.

    Args:
        one_step: from an array over the states before a step and its factors to one over those after it.
        factors: [T, ...].
        shape: of such an array: [*kept, *states], the states `lags` dimensions.

    Returns:
        An array of that shape.
    """
    kept = shape[: len(shape) - lags]
    states = math.prod(shape[len(kept) :])

    def matrix(factors: Sequence[Array]) -> Array:
        """[states before, *kept, *states after]"""
        return jax.vmap(lambda start: one_step(start, factors))(_one_state_each(shape, lags))

    matrices = jax.vmap(matrix)(factors)
    matrices = jnp.moveaxis(matrices.reshape((len(matrices), states, -1, states)), 1, 2)
    while (count := len(matrices)) > 1:
        paired = log_matmul(*(matrices[first : 2 * (count // 2) : 2].reshape((-1, states, states)) for first in (0, 1)))
        matrices = jnp.concatenate([paired.reshape((-1, *matrices.shape[1:])), matrices[2 * (count // 2) :]])
    return jax.nn.logsumexp(matrices[0], 1).reshape(shape)


def _one_state_each(shape: Sequence[int], rank: int) -> Array:
    """For every joint state an array that is possible there only: [states, *shape]."""
    states = math.prod(shape[len(shape) - rank :])
    alone = np.where(np.eye(states, dtype=bool), 0.0, -np.inf).reshape(
        (states, *(1,) * (len(shape) - rank), *shape[len(shape) - rank :])
    )
    return jnp.asarray(np.broadcast_to(alone, (states, *shape)), jnp.result_type(float))
