"""Sum over the paths of a chain in the logarithm of its number of steps, one after the other: for devices that do many things at once.

The factors of one step are a matrix from the states before it to those after it, and the sum over all paths between the first and the last is the product of
these matrices. Multiplied in pairs, then pairs of pairs, T of them take log2(T) rounds; going through them one state vector at a time takes T,
for a K-th of the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.contraction.logmatmul import log_matmul
from kayn.contraction.plan import Chain, Plan

SHORTEST = 16
"""Steps below which a chain is gone through one by one anywhere."""
LARGEST = 2**26
"""Entries of all matrices above which it is."""


def worthwhile(plan: Plan, step: Chain) -> bool:
    """Whether the default device is likely to be quicker by rounds of products."""
    steps = plan.size[step.plate]
    before, _, states = _axes(step)
    entries = steps * math.prod(step.body.size[a] for a in before) * states
    return jax.default_backend() != "cpu" and steps >= SHORTEST and entries <= LARGEST


def sum_over_paths(step: Chain, one_step: Callable[[Any, Sequence[Any]], Any], factors: Sequence[Any]) -> Any:
    """What `one_step`, from an array over the states before a step and its factors to one over those after it, comes to after all steps.

    Args:
        factors: [T, ...].

    Returns:
        Over the axes of the first term of the step's body.
    """
    before, lags, states = _axes(step)
    shape = [step.body.size[a] for a in before]
    kept = shape[: len(shape) - len(lags)]

    def matrix(factors: Sequence[Any]) -> Any:
        """[states before, *kept, *states after]"""
        return jax.vmap(lambda start: one_step(start, factors))(_one_state_each(shape, len(lags)))

    matrices = jax.vmap(matrix)(factors)
    matrices = jnp.moveaxis(matrices.reshape((len(matrices), states, -1, states)), 1, 2)
    while (count := len(matrices)) > 1:
        paired = log_matmul(*(matrices[first : 2 * (count // 2) : 2].reshape((-1, states, states)) for first in (0, 1)))
        matrices = jnp.concatenate([paired.reshape((-1, *matrices.shape[1:])), matrices[2 * (count // 2) :]])
    return (step.start + jax.nn.logsumexp(matrices[0], 1)).reshape((*kept, *shape[len(kept) :]))


def _axes(step: Chain) -> tuple[tuple[str, ...], list[str], int]:
    """The axes of an array over the states before a step, those that are states, last, and how many states there are."""
    before = step.body.axes[0]
    lags = [v for names in step.states for v in names[1:]]
    return before, lags, math.prod(step.body.size[a] for a in lags)


def _one_state_each(shape: Sequence[int], rank: int) -> Any:
    """For every joint state an array that is possible there only: [states, *shape]."""
    states = math.prod(shape[len(shape) - rank :])
    alone = np.where(np.eye(states, dtype=bool), 0.0, -np.inf).reshape(
        (states, *(1,) * (len(shape) - rank), *shape[len(shape) - rank :])
    )
    return jnp.asarray(np.broadcast_to(alone, (states, *shape)), jnp.result_type(float))
