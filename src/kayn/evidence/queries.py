"""Questions to a weighted set of particles: marginals, joint marginals, draws, the best combination.

All four are answered by one contraction of the log factors (Bowyer, Heap & Aitchison, Using autodiff to estimate
posterior moments, marginals and samples, UAI 2024): the derivative of log Z with respect to a log factor is the
posterior marginal of the particle indices on that factor's axes, and a backward walk that draws instead of
differentiating gives samples. None of them differentiates through the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.types import Axis, proposal_name
from kayn.contraction import backward
from kayn.contraction.backward import best, draw, draw_and_total
from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import Problem
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import weigh
from kayn.support.arrays import Array, KeyArray


def marginals(weighed: Weighed) -> tuple[Array, dict[str, Array]]:
    """The log evidence, and the marginal weights of every particle axis.

    Returns:
        log Z (a scalar), and for every axis name w [*scope, K], nonnegative, summing to one over K (to zero when no
        combination of particles is possible).
    """
    names = [t.name for t in weighed.plan.terms]
    own = {names.index(proposal_name(a)): a for a in weighed.problem.layout.axes}
    value, gradient = jax.value_and_grad(weighed.log_evidence)({slot: weighed[slot] for slot in own})
    return value, {a.name: gradient[slot] / _scale(weighed.problem, a.scope) for slot, a in own.items()}


def weighted_draws(
    problem: Problem, numbers: Mapping, params: Mapping, key: KeyArray
) -> tuple[Array, dict[str, Array], Draws]:
    """One set of particles: log Z, a scalar in nats, marginal weights of every axis [*scope, K], and the particles."""
    draws = draw_particles(problem, numbers, key, params)
    weighed = weigh(problem, numbers, draws, params)
    log_z, weights = marginals(weighed)
    return log_z, weights, replace(draws, unsound=weighed.unsound)


def latent_weights(problem: Problem, axis_weights: Mapping[str, Array], name: str) -> Array:
    """Marginal weights of one latent's particles: [K, *batch shape], from those of its axis."""
    latent = problem.graph.latent(name)
    axis = problem.layout.axis_of(name)
    dims = dict(latent.plates)
    order = sorted(axis.scope, key=dims.__getitem__)
    weights = axis_weights[axis.name]
    # plain NumPy for plain arrays: nothing to compile when a finished posterior is read
    xp: Any = np if isinstance(weights, np.ndarray) else jnp
    weights = xp.transpose(weights, (weights.ndim - 1, *(axis.scope.index(p) for p in order)))
    shape = [latent.shape[d] if any(dims[p] == d for p in order) else 1 for d in range(latent.batch_ndim)]
    return xp.broadcast_to(weights.reshape((axis.size, *shape)), (axis.size, *latent.shape[: latent.batch_ndim]))


def joint_marginals(weighed: Weighed, asked: Sequence[int]) -> list[Array]:
    """Joint marginal weights on the axes of some terms of the plan: for each [*plates, *(K of every axis)],
    summing to one per plate element."""
    plan = weighed.plan
    found = jax.grad(weighed.log_evidence)({slot: weighed[slot] for slot in asked})
    plates = {slot: [a for a in plan.axes[slot] if a not in plan.scope] for slot in asked}
    return [found[slot] / _scale(weighed.problem, plates[slot]) for slot in asked]


def draw_indices(weighed: Weighed, keys: KeyArray) -> dict[str, Array]:
    """Exact joint draws of particle indices: int [num draws, *scope] for every axis."""
    return draw(weighed.plan, weighed.slots, weighed.index, keys)


def draw_evenly(
    weighed: Weighed, key: KeyArray, room: int, count: Array, orders: Mapping[str, Array]
) -> dict[str, Array]:
    """As `draw_indices`, draws that are spread evenly, see `kayn.contraction.backward.draw_evenly`."""
    return backward.draw_evenly(weighed.plan, weighed.slots, weighed.index, key, room, count, orders)


def draw_combination(weighed: Weighed, key: KeyArray) -> tuple[dict[str, Array], Array]:
    """One joint draw of particle indices, int [*scope] for every axis, and log Z, which says whether there was any to
    draw."""
    found, log_z = draw_and_total(weighed.plan, weighed.slots, weighed.index, key[None])
    return {name: index[0] for name, index in found.items()}, log_z


def take_latent(problem: Problem, name: str, values: Array, index: Array) -> Array:
    """A latent's values at particle indices of its axis: [*batch, *event] from [K, *batch, *event].

    Args:
        index: int [*scope], as `draw_indices` gives it.
    """
    places = aligned(problem, problem.layout.axis_of(name), name, index, values.ndim - 1)
    return jnp.broadcast_to(jnp.take_along_axis(values, places[None], axis=0, mode="clip")[0], values.shape[1:])


def aligned(problem: Problem, axis: Axis, name: str, array: Array, ndim: int) -> Array:
    """An array [*sorted scope] of an axis in the `ndim` dimensions of a latent, of size one where it has no index."""
    dims, own = dict(problem.graph.latent(name).plates), sorted(axis.scope)
    order = sorted(own, key=dims.__getitem__)
    ordered = jnp.transpose(array, [own.index(p) for p in order])
    sizes = {dims[p]: n for p, n in zip(order, ordered.shape, strict=True)}
    return ordered.reshape([sizes.get(d, 1) for d in range(ndim)])


def best_indices(weighed: Weighed) -> tuple[Array, dict[str, Array]]:
    """The largest log weight, and its combination of particles: int [*scope] for every axis."""
    return best(weighed.plan, weighed.slots, weighed.index)


def _scale(problem: Problem, plates: Any) -> float:
    """Subsampled plates count their log-sum `scale` times, and so does its derivative."""
    return math.prod(problem.graph.plate(p).scale for p in plates)
