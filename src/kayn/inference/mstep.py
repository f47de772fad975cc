"""The M step of QEM: the guide's mean parameters move towards those of the weighted particles.

Compiling a program takes time in proportion to its kernels, and site by site the M step would be most of them. Sites
with independent Normal coordinates and equally many particles are therefore kept side by side in one array, and all
axes of a size are tempered at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.minibatches import row_index
from kayn.axes.types import Axis
from kayn.evidence.problem import Problem
from kayn.evidence.queries import latent_weights
from kayn.guides.factorised import GuideSite
from kayn.guides.families import Family, Moments, Params
from kayn.guides.normal import Normal
from kayn.posterior.diagnostics import POOR_EFFICIENCY
from kayn.support.arrays import Array
from kayn.support.names import RESERVED, joined
from kayn.xla.compilation import is_traced

FULL_RATE_ESS = 5.0
"""Effective particles of a latent from which it takes the whole step; with fewer, a share in proportion."""


@dataclass(frozen=True, eq=False)
class Single:
    """One site of any family, its mean parameters as the family has them.

    Attributes:
        size: its number of particles.
        widening: factor on the variance of its proposal.
    """

    site: GuideSite
    size: int
    widening: float

    @property
    def sites(self) -> tuple[GuideSite, ...]:
        """The one site, as a block of several has them."""
        return (self.site,)

    @property
    def name(self) -> str:
        """The site's own name."""
        return self.site.name

    @property
    def family(self) -> Family:
        """The site's own family."""
        return self.site.family

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the member with these parameters."""
        return self.family.moments(by_site[self.name])

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        found = self.family.from_moments(moments)
        return found, self.family.widened(found, self.widening)

    def by_site(self, params: Params) -> dict[str, Params]:
        """Parameters, or mean parameters, of every site."""
        return {self.name: params}

    def by_coordinate(self, of_sites: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers for the batch of every site, laid out as weights are to be."""
        return of_sites[0]

    def index(self, rows: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """Where the elements of the particles are among all of the batch; None if these are all."""
        shape = np.shape(next(iter(self.site.start.values())))[: self.site.batch_ndim]
        return row_index(shape, self.site.subsampled, rows) if self.site.subsampled else None

    def expect(self, values: Mapping[str, Array], weights: Array) -> Moments:
        """Mean parameters under particles [K, *B, *E] with weights [K, *B]."""
        own = values[self.name]
        return self.family.expect(own, weights.reshape((*weights.shape, *(1,) * (own.ndim - weights.ndim))))


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Sites of independent Normal coordinates, their mean parameters as those of one Normal in [M],
    in the order of the sites.

    Attributes:
        size: the number of particles of each.
        widening: factors on the variance of their proposals, one a site.
    """

    sites: tuple[GuideSite, ...]
    size: int
    widening: tuple[float, ...]
    family: Normal = field(default_factory=Normal)

    @property
    def name(self) -> str:
        """A name that no site has, made of all of theirs."""
        return RESERVED + joined(s.name for s in self.sites)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of u of every site."""
        return [np.shape(s.start["loc"]) for s in self.sites]

    @property
    def dtype(self) -> Any:
        """The type of the joint array, which holds the numbers of every site."""
        return jnp.result_type(*(s.start["loc"] for s in self.sites))

    @cached_property
    def lengths(self) -> list[int]:
        """How many coordinates of the joint array are each site's."""
        return [math.prod(shape) for shape in self.shapes]

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the members with these parameters."""

        def together(name: str) -> Array:
            own = [by_site[s.name][name] for s in self.sites]
            # plain NumPy for plain arrays: nothing to compile before the first step
            xp: Any = jnp if is_traced(own) else np
            return xp.concatenate(
                [xp.broadcast_to(xp.asarray(v), n).ravel() for v, n in zip(own, self.shapes, strict=True)]
            )

        return self.family.moments({name: together(name) for name in self.family.parameters})

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        units = [_normal(s).unit for s in self.sites]
        found = self.family.from_moments(moments, np.repeat(units, self.lengths).astype(self.dtype))
        return found, self.family.widened(found, np.repeat(self.widening, self.lengths))

    def by_site(self, params: Params) -> dict[str, Params]:
        """Parameters, or mean parameters, of every site."""
        ends = np.cumsum(self.lengths)
        return {
            s.name: {p: v[end - n : end].reshape(shape) for p, v in params.items()}
            for s, shape, n, end in zip(self.sites, self.shapes, self.lengths, ends, strict=True)
        }

    def by_coordinate(self, of_sites: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers for the batch of every site, laid out as weights are to be."""
        # a subsampled site has particles of some of its coordinates
        lengths = [math.prod(s.sampled(shape)) for s, shape in zip(self.sites, self.shapes, strict=True)]
        return np.concatenate(
            [np.repeat(np.ravel(own), n // own.size) for own, n in zip(of_sites, lengths, strict=True)]
        )

    def index(self, rows: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """Where the coordinates of the particles are among all of them; None if these are all."""
        if not any(s.subsampled for s in self.sites):
            return None
        found, first = [], 0
        for site, shape, length in zip(self.sites, self.shapes, self.lengths, strict=True):
            places = jnp.arange(first, first + length).reshape(shape)
            found.append(places[row_index(shape, site.subsampled, rows)].ravel())
            first += length
        return (jnp.concatenate(found),)

    def expect(self, values: Mapping[str, Array], weights: Array) -> Moments:
        """Mean parameters under particles [K, ...] of every site with weights [K, M]."""
        u = [_normal(s).unconstrained(values[s.name]).reshape(self.size, -1) for s in self.sites]
        return self.family.unconstrained_moments(jnp.concatenate(u, 1), weights)


Block = Single | SideBySide
"""Sites whose mean parameters are kept together."""


def _normal(site: GuideSite) -> Normal:
    assert isinstance(site.family, Normal)
    return site.family


def blocks(problem: Problem, sites: Sequence[GuideSite], widening: Mapping[str, float]) -> tuple[Block, ...]:
    """How the sites of a guide are kept together."""
    sizes = {s.name: problem.layout.axis_of(s.name).size for s in sites}
    normal: dict[int, list[GuideSite]] = {}
    for site in sites:
        if type(site.family) is Normal:
            normal.setdefault(sizes[site.name], []).append(site)
    joint = [SideBySide(tuple(own), size, tuple(widening[s.name] for s in own)) for size, own in normal.items()]
    others = [s for s in sites if type(s.family) is not Normal]
    return (*joint, *(Single(s, sizes[s.name], widening[s.name]) for s in others))


def step(
    problem: Problem,
    blocks: Sequence[Block],
    moments: Mapping[str, Moments],
    values: Mapping[str, Array],
    by_axis: Mapping[str, Array],
    rate: Array,
    min_ess: float,
    usable: Array,
    rows: Mapping[str, Array],
) -> dict[str, dict[str, Array]]:
    """The mean parameters of every block after a step.

    Args:
        values: [K, *shape] particles of every latent.
        by_axis: [*scope, K] marginal weights of every axis.
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
        rates = rate * jnp.minimum(sizes[owners] / FULL_RATE_ESS, 1.0)
        every, at = dict(moments[block.name]), block.index(rows)
        old = every if at is None else {n: m[at] for n, m in every.items()}
        new = block.family.blend(old, block.expect(values, weights[:, columns]), rates)
        new = jax.tree.map(lambda b, o: jnp.where(usable & jnp.isfinite(b), b, o), dict(new), old)
        out[block.name] = new if at is None else {n: m.at[at].set(new[n]) for n, m in every.items()}
    return out


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


def judged(problem: Problem, found: Mapping[str, Array], target: float) -> Weights:
    """See `Weights`.

    Args:
        found: by axis, effective numbers of particles at every step [steps, *scope].
        target: that below which weights are tempered.
    """
    xp: Any = jnp if is_traced(found) else np
    starved, worst = xp.asarray(False), xp.asarray(1.0)
    for axis in problem.layout.axes:
        if axis.name in found and axis.size > 1:
            own = xp.asarray(found[axis.name])
            starved = starved | xp.any(xp.all(own < min(target, 0.9 * axis.size), 0))
            worst = xp.minimum(worst, xp.min((xp.mean(own, 0) - 1) / (axis.size - 1)))
    return Weights(~starved & (worst >= POOR_EFFICIENCY), starved, worst)


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
