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

from kayn.axes.types import proposal_name
from kayn.contraction import execute
from kayn.contraction.backward import best, draw
from kayn.contraction.plan import Plan
from kayn.contraction.ways import Index
from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import Problem, link_index, model_inputs
from kayn.evidence.weights import weigh_noticing
from kayn.support.arrays import Array, KeyArray


def marginals(problem: Problem, slots: Mapping[int, Array], index: Index) -> tuple[Array, dict[str, Array]]:
    """The log evidence, and the marginal weights of every particle axis.

    Returns:
        log Z (a scalar), and for every axis name w [*scope, K], nonnegative, summing to one over K (to zero when no
        combination of particles is possible).
    """
    plan = problem.layout.plan
    names = [t.name for t in plan.terms]
    own = {names.index(proposal_name(a)): a for a in problem.layout.axes}

    def log_z(proposals: Mapping[int, Array]) -> Array:
        return execute.log_contract(plan, {**slots, **proposals}, index)

    value, gradient = jax.value_and_grad(log_z)({slot: slots[slot] for slot in own})
    return value, {a.name: gradient[slot] / _scale(problem, a.scope) for slot, a in own.items()}


def weighted_draws(
    problem: Problem, numbers: Mapping, params: Mapping, key: KeyArray
) -> tuple[Array, dict[str, Array], Draws]:
    """One set of particles: log Z, a scalar in nats, marginal weights of every axis [*scope, K], and the particles."""
    draws = draw_particles(problem, numbers, key, params)
    slots, unsound = weigh_noticing(problem, numbers, draws, params)
    index = link_index(problem, model_inputs(problem, numbers, params, draws.subsample))
    log_z, weights = marginals(problem, slots, index)
    return log_z, weights, replace(draws, unsound=unsound)


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


def joint_marginals(problem: Problem, asked: Sequence[int], slots: Mapping[int, Array], index: Index) -> list[Array]:
    """Joint marginal weights on the axes of some terms of the plan: for each [*plates, *(K of every axis)],
    summing to one per plate element."""
    plan = problem.layout.plan

    def log_z(terms: Sequence[Array]) -> Array:
        return execute.log_contract(plan, {**slots, **dict(zip(asked, terms, strict=True))}, index)

    found = jax.grad(log_z)([slots[slot] for slot in asked])
    plates = [[a for a in plan.axes[slot] if a not in plan.scope] for slot in asked]
    return [weights / _scale(problem, own) for weights, own in zip(found, plates, strict=True)]


def draw_indices(plan: Plan, slots: Mapping[int, Array], index: Index, keys: KeyArray) -> dict[str, Array]:
    """Exact joint draws of particle indices: int [num draws, *scope] for every axis."""
    return draw(plan, slots, index, keys)


def best_indices(plan: Plan, slots: Mapping[int, Array], index: Index) -> tuple[Array, dict[str, Array]]:
    """The largest log weight, and its combination of particles: int [*scope] for every axis."""
    return best(plan, slots, index)


def _scale(problem: Problem, plates: Any) -> float:
    """Subsampled plates count their log-sum `scale` times, and so does its derivative."""
    return math.prod(problem.graph.plate(p).scale for p in plates)
