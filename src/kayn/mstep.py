"""The M step of QEM: the guide's mean parameters move towards those of the weighted particles.

Compiling a program takes time in proportion to its kernels, and site by site the M step would be most of them. Sites with independent Normal
coordinates and equally many particles are therefore kept side by side in one array, and all axes of a size are tempered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn import queries
from kayn.evidence import Problem
from kayn.families import Family, Moments, Params
from kayn.guides import GuideSite
from kayn.normals import Normal

FULL_RATE_ESS = 5.0
"""Effective particles of a latent from which it takes the whole step; with fewer, a share in proportion."""


@dataclass(frozen=True, eq=False)
class Block:
    """Sites whose mean parameters are kept together: several of independent Normal coordinates, side by side in [M], or one of any family.

    Attributes:
        size: their number of particles.
        widening: factor on the variance of their proposal, for each of the sites.
    """

    sites: tuple[GuideSite, ...]
    size: int
    widening: tuple[float, ...]

    @property
    def name(self) -> str:
        return ", ".join(s.name for s in self.sites)

    @property
    def joint(self) -> bool:
        return _is_plain(self.sites[0])

    @property
    def family(self) -> Family:
        return Normal() if self.joint else self.sites[0].family

    @cached_property
    def lengths(self) -> list[int]:
        """Coordinates of every site of a joint block."""
        return [np.size(s.start["loc"]) for s in self.sites]

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the members with these parameters."""
        if not self.joint:
            return dict(self.family.moments(by_site[self.sites[0].name]))
        together = {
            p: _side_by_side([by_site[s.name][p] for s in self.sites], [s.start[p] for s in self.sites])
            for p in self.sites[0].start
        }
        return dict(self.family.moments(together))

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        found = self.family.from_moments(moments)
        factor: Any = np.repeat(self.widening, self.lengths) if self.joint else self.widening[0]
        return found, self.family.widened(found, factor)

    def by_site(self, params: Params) -> dict[str, Params]:
        if not self.joint:
            return {self.sites[0].name: params}
        ends = np.cumsum(self.lengths)
        return {
            s.name: {p: v[end - n : end].reshape(np.shape(s.start[p])) for p, v in params.items()}
            for s, n, end in zip(self.sites, self.lengths, ends, strict=True)
        }

    def expect(self, values: Mapping[str, Any], weights: Any) -> Moments:
        """Mean parameters under particles [K, ...] of every site, weights [K, M] or, for one site, [K, *B]."""
        if not self.joint:
            own = values[self.sites[0].name]
            return dict(self.family.expect(own, weights.reshape((*weights.shape, *(1,) * (own.ndim - weights.ndim)))))
        family = self.family
        assert isinstance(family, Normal)
        u = [s.family.unconstrained(values[s.name]).reshape(self.size, -1) for s in self.sites]  # type: ignore[attr-defined]
        return dict(family.unconstrained_moments(jnp.concatenate(u, 1), weights))


def _is_plain(site: GuideSite) -> bool:
    return type(site.family) is Normal


def _side_by_side(arrays: Sequence[Any], like: Sequence[Any]) -> Any:
    # plain NumPy for plain arrays: nothing to compile before the first step
    xp: Any = jnp if any(isinstance(a, jax.core.Tracer) for a in arrays) else np
    full = [xp.broadcast_to(xp.asarray(a), np.shape(b)) for a, b in zip(arrays, like, strict=True)]
    return xp.concatenate([a.ravel() for a in full])


def blocks(problem: Problem, sites: Sequence[GuideSite], widening: Mapping[str, float]) -> tuple[Block, ...]:
    """How the sites of a guide are kept together."""
    together: dict[Any, list[GuideSite]] = {}
    for site in sites:
        size = problem.layout.axis_of(site.name).size
        together.setdefault(size if _is_plain(site) else site.name, []).append(site)
    return tuple(
        Block(tuple(own), problem.layout.axis_of(own[0].name).size, tuple(widening[s.name] for s in own))
        for own in together.values()
    )


def step(
    problem: Problem,
    blocks: Sequence[Block],
    moments: Mapping[str, Moments],
    values: Mapping[str, Any],
    by_axis: Mapping[str, Any],
    rate: Any,
    min_ess: float,
    usable: Any,
) -> dict[str, dict[str, Any]]:
    """The mean parameters of every block after a step.

    Args:
        values: [K, *shape] particles of every latent.
        by_axis: [*scope, K] marginal weights of every axis.
        usable: whether the weights mean anything; if not, or where the new moments are not finite, nothing moves.
    """
    tempered: dict[int, tuple[Any, Any]] = {}
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
        old = moments[block.name]
        new = block.family.blend(old, block.expect(values, weights[:, columns]), rates)
        out[block.name] = jax.tree.map(lambda b, o: jnp.where(usable & jnp.isfinite(b), b, o), dict(new), dict(old))
    return out


def _axes(problem: Problem, size: int) -> list[Any]:
    return [a for a in problem.layout.axes if not a.enumerated and a.size == size]


def _columns(problem: Problem, block: Block) -> tuple[np.ndarray, Any]:
    """Where a block's weights are among those of all axes of its size: [M] or, for one site, [*B]; and the numbers of its axes: [M] or one."""
    axes = _axes(problem, block.size)
    shapes = [tuple(problem.layout.plan.size[p] for p in a.scope) for a in axes]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    places = {
        a.name: np.repeat(np.arange(end - int(np.prod(shape)), end).reshape(*shape, 1), block.size, -1)
        for a, shape, end in zip(axes, shapes, ends, strict=True)
    }
    found = [queries.latent_weights(problem, places, s.name)[0] for s in block.sites]
    numbers = [[a.name for a in axes].index(problem.layout.axis_of(s.name).name) for s in block.sites]
    if not block.joint:
        return found[0], numbers[0]
    each = [np.repeat(np.ravel(own), length // own.size) for own, length in zip(found, block.lengths, strict=True)]
    return np.concatenate(each), np.repeat(numbers, block.lengths)


def effective(weights: Any) -> Any:
    """Effective number of particles (first axis), for weights that sum to one."""
    return 1 / jnp.sum(weights**2, 0)


def temper(weights: Any, target: float) -> Any:
    """Raise weights (first axis sums to one) to the largest power in (0, 1] at which their effective size reaches `target`."""
    log_w = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
    target = min(target, 0.9 * len(weights))

    def powered(power: Any) -> Any:
        return jax.nn.softmax(power * log_w, 0)

    low, high = jnp.zeros(weights.shape[1:], weights.dtype), jnp.ones(weights.shape[1:], weights.dtype)
    enough = effective(weights) >= target

    def quarter(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        left, low, high = state
        between = low + (high - low) * jnp.arange(1, 4).reshape(3, *(1,) * low.ndim) / 4
        good = jax.vmap(lambda power: effective(powered(power)))(between) >= target
        return left - 1, jnp.max(jnp.where(good, between, low), 0), jnp.min(jnp.where(good, high, between), 0)

    # most loops end here: tempering is for guides that are far from the posterior
    needed = jnp.where(jnp.all(enough), 0, 6)
    _, low, _ = jax.lax.while_loop(lambda state: state[0] > 0, quarter, (needed, low, high))
    return jnp.where(enough, weights, powered(low))
