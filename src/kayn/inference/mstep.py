"""The M step of QEM: the guide's mean parameters move towards those of the weighted particles.

All axes of a size are tempered at once (`kayn.inference.together` says why).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.types import Axis
from kayn.evidence.problem import Problem
from kayn.evidence.queries import latent_weights
from kayn.guides.families import Moments
from kayn.inference.together import Block
from kayn.posterior.diagnostics import UNSETTLED, poor_below
from kayn.support.arrays import Array
from kayn.support.validate import Rule
from kayn.xla.compilation import is_traced

FIRST_RATE, RATE, FALL = 0.5, 5.0, 0.75
"""The default rate: that of the first steps, and what it falls from with this power of the step."""
FULL_RATE_ESS = 5.0
"""Effective particles of a latent from which it takes the whole step; with fewer, a share in proportion."""

Schedule = Callable[[Any], Any]
Rate = Annotated[
    float | Schedule,
    Rule(
        "the step towards new moments, a number in (0, 1] or a function of the step",
        lambda r: callable(r) or 0 < r <= 1,
    ),
]
LeastSize = Annotated[float, Rule("a number of particles, 1 (no tempering) or more", lambda n: 1 <= n < math.inf)]


def default_rate(step: Array) -> Array:
    """0.5 for the first steps, then falling as step^-0.75: large moves first, averaging later."""
    return jnp.minimum(FIRST_RATE, RATE / (step + 1.0) ** FALL)


def steps_ahead(block: Block, moments: Moments) -> float:
    """How many steps of `default_rate` lie before one whose averages know a block's covariance: over as many effective
    particles as it has entries, where half of all particles are."""
    if "covariance" not in moments:
        return 0.0
    rate = block.size / 2 / np.shape(moments["covariance"])[-1] ** 2
    return (RATE / rate) ** (1 / FALL) - 1 if rate < FIRST_RATE else 0.0


def step(
    problem: Problem,
    blocks: Sequence[Block],
    moments: Mapping[str, Moments],
    values: Mapping[str, Array],
    by_axis: Mapping[str, Array],
    rates: Mapping[str, Array],
    min_ess: float,
    usable: Array,
    rows: Mapping[str, Array],
) -> dict[str, dict[str, Array]]:
    """The mean parameters of every block after a step.

    Args:
        values: [K, *shape] particles of every latent.
        by_axis: [*scope, K] marginal weights of every axis.
        rates: of the step, by block.
        usable: whether the weights mean anything; if not, or where the new moments are not finite, nothing moves.
        rows: indices of subsampled plates; elements that were not drawn stay where they are.
    """
    tempered: dict[int, tuple[Array, Array]] = {}
    for size in {b.size for b in blocks}:
        own = [by_axis[a.name] for a in _axes(problem, size)]
        weights = temper(jnp.concatenate([w.reshape(-1, size) for w in own]).T, min_ess)
        counts = np.array([w.size // size for w in own])
        owners = np.repeat(np.arange(len(own)), counts)
        sums = jax.ops.segment_sum(effective(weights), owners, len(own), indices_are_sorted=True)
        tempered[size] = weights, sums / counts
    out = {}
    for block in blocks:
        weights, sizes = tempered[block.size]
        columns, owners = _columns(problem, block)
        rate = rates[block.name] * jnp.minimum(sizes[owners] / FULL_RATE_ESS, 1.0)
        every, at = dict(moments[block.name]), block.index(rows)
        old = every if at is None else {n: m[at] for n, m in every.items()}
        new = block.family.blend(old, block.expect(values, weights[:, columns]), rate)
        new = jax.tree.map(lambda b, o: jnp.where(usable & jnp.isfinite(b), b, o), dict(new), old)
        out[block.name] = new if at is None else {n: m.at[at].set(new[n]) for n, m in every.items()}
    return out


def moments_of(
    problem: Problem, block: Block, values: Mapping[str, Array], by_axis: Mapping[str, Array], shares: Array
) -> Moments:
    """A block's mean parameters under the particles of several replicates.

    Args:
        values: by latent [R, K, *shape].
        by_axis: marginal weights of the axes with so many particles as the block has, [R, *scope, K].
        shares: how much replicates count [R], all of them above zero.
    """
    axes, columns = _axes(problem, block.size), _columns(problem, block)[0]
    parts = {s.name: values[s.name] for s in block.sites}, [by_axis[a.name] for a in axes]

    def expected(own: Mapping[str, Array], weights: Sequence[Array]) -> Moments:
        return dict(block.expect(own, jnp.concatenate([w.reshape(-1, block.size) for w in weights]).T[:, columns]))

    def mixed(known: Moments, part: tuple[tuple[Mapping[str, Array], Sequence[Array]], Array]) -> tuple[Moments, None]:
        (own, weights), rate = part
        return dict(block.family.blend(known, expected(own, weights), rate)), None

    first, rest = (jax.tree.map(lambda x, own=own: x[own], parts) for own in (0, slice(1, None)))
    return jax.lax.scan(mixed, expected(*first), (rest, (shares / jnp.cumsum(shares))[1:]))[0]


def _axes(problem: Problem, size: int) -> list[Axis]:
    return [a for a in problem.layout.axes if not a.enumerated and a.size == size]


def _columns(problem: Problem, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Where a block's weights are among those of all axes of its size, and the numbers of these axes,
    as `by_coordinate` lays them out."""
    axes = _axes(problem, block.size)
    shapes = [tuple(problem.layout.plan.size[p] for p in a.scope) for a in axes]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    places = {
        a.name: np.repeat(np.arange(end - math.prod(shape), end).reshape(*shape, 1), block.size, -1)
        for a, shape, end in zip(axes, shapes, ends, strict=True)
    }
    found = [latent_weights(problem, places, s.name)[0] for s in block.sites]
    names = [a.name for a in axes]
    numbers = [np.array(names.index(problem.layout.axis_of(s.name).name)) for s in block.sites]
    return block.by_coordinate(found), block.by_coordinate(numbers)


def effective(weights: Array) -> Array:
    """Effective number of particles: [K, ...] to [...], for weights that sum to one over K."""
    return 1 / jnp.sum(weights**2, 0)


def sizes(problem: Problem, by_axis: Mapping[str, Array]) -> dict[str, Array]:
    """Effective numbers of particles of every drawn axis: [*scope]."""
    axes = [a for a in problem.layout.axes if not a.enumerated]
    return {a.name: effective(jnp.moveaxis(by_axis[a.name], -1, 0)) for a in axes}


EVEN = 0.5
"""Efficiency of the worst weights from which half as many steps tell, and other starts need no look."""


@dataclass(frozen=True)
class Weights:
    """What the weights of some steps say of the guide.

    Attributes:
        good: whether at every latent they are such that the guide can be where it should be: not tempered at all of the
            steps, and of an effective sample size that is not poor.
        starved: whether those of some latent were tempered at all of the steps.
        worst: the least efficiency (`kayn.posterior.diagnostics.efficiency`) of any latent.
    """

    good: Array
    starved: Array
    worst: Array

    @property
    def even(self) -> bool:
        """Whether all are so even that the guide is near the posterior, where these are known numbers."""
        return bool(self.good) and float(self.worst) > EVEN


def judged(problem: Problem, found: Mapping[str, Array], target: float) -> Weights:
    """See `Weights`.

    Args:
        found: by axis, effective numbers of particles at every step [steps, *scope].
        target: that below which weights are tempered.
    """
    xp: Any = jnp if is_traced(found) else np
    starved, poor, worst = xp.asarray(False), xp.asarray(False), xp.asarray(1.0)
    for axis in problem.layout.axes:
        if axis.name in found and axis.size > 1:
            own = xp.asarray(found[axis.name])
            starved = starved | xp.any(xp.all(own < min(target, 0.9 * axis.size), 0))
            least = xp.min((xp.mean(own, 0) - 1) / (axis.size - 1))
            poor, worst = poor | ~(least >= poor_below(axis.size, UNSETTLED)), xp.minimum(worst, least)
    return Weights(~starved & ~poor, starved, worst)


def temper(weights: Array, target: float) -> Array:
    """Raise weights [K, ...] that sum to one over K to the largest power in
    (0, 1] with an effective size of `target`."""
    log_w = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
    target = min(target, 0.9 * len(weights))

    def powered(power: Array) -> Array:
        return jax.nn.softmax(power * log_w, 0)

    low, high = jnp.zeros(weights.shape[1:], weights.dtype), jnp.ones(weights.shape[1:], weights.dtype)
    enough = effective(weights) >= target

    def quarter(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, low, high = state
        between = low + (high - low) * jnp.arange(1, 4).reshape(3, *(1,) * low.ndim) / 4
        good = jax.vmap(lambda power: effective(powered(power)))(between) >= target
        return left - 1, jnp.max(jnp.where(good, between, low), 0), jnp.min(jnp.where(good, high, between), 0)

    # most loops end here: tempering is for guides that are far from the posterior
    needed = jnp.where(jnp.all(enough), 0, 6)
    _, low, _ = jax.lax.while_loop(lambda state: state[0] > 0, quarter, (needed, low, high))
    return jnp.where(enough, weights, powered(low))
