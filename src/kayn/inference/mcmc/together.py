"""Latents that share an index for every element of their plates: steps with the covariance that each element's
coordinates had in warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from kayn.axes.types import Axis
from kayn.evidence.problem import Problem
from kayn.graph.types import Graph, Kind, Latent
from kayn.support.arrays import Array

MOST = 8
"""Coordinates of an element that get a covariance."""


def elements(problem: Problem, axis: Axis, values: Mapping[str, Array], leading: int = 0) -> Array:
    """Coordinates of an axis's latents, side by side by element: [*leading, *sorted scope, d]."""
    parts = []
    for name in axis.latents:
        front = _front(problem, axis, name, leading)
        rest = [d for d in range(values[name].ndim) if d not in front]
        moved = jnp.transpose(values[name], [*front, *rest])
        parts.append(moved.reshape((*moved.shape[: len(front)], -1)))
    return jnp.concatenate(parts, -1)


def apart(problem: Problem, axis: Axis, found: Array, like: Mapping[str, Array], leading: int = 0) -> dict[str, Array]:
    """The way back from `elements`: by latent, [*leading, *shape of `like`]."""
    out, first = {}, 0
    for name in axis.latents:
        shape = (*found.shape[:leading], *like[name].shape)
        front = _front(problem, axis, name, leading)
        order = [*front, *(d for d in range(len(shape)) if d not in front)]
        size = math.prod(shape[d] for d in order[len(front) :])
        moved = found[..., first : first + size].reshape([shape[d] for d in order])
        out[name] = jnp.transpose(moved, [order.index(d) for d in range(len(shape))])
        first += size
    return out


def _front(problem: Problem, axis: Axis, name: str, leading: int) -> list[int]:
    dims = dict(problem.graph.latent(name).plates)
    return [*range(leading), *(leading + dims[p] for p in sorted(axis.scope))]


def correlated(noise: Array, covariance: Array) -> Array:
    """Independent noise [..., d] with the covariance of each element, [*scope, d, d]."""
    ridge = 1e-4 * jnp.eye(covariance.shape[-1]) * (covariance + 1e-8)
    factor = jnp.linalg.cholesky(covariance + ridge)
    return (factor @ noise[..., None])[..., 0]


def read_together(graph: Graph, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of some latents that a likelihood reads together and that run over the same plates.

    Their elements' coordinates are correlated a posteriori: an intercept and a slope of a group, what an item has of
    difficulty and discrimination.
    """
    groups: list[list[str]] = []
    for factor in (f for f in graph.factors if f.kind is Kind.LIKELIHOOD):
        mine = [n for n in factor.latents if n in names]
        for one in mine:
            like = [n for n in mine if _plates(graph, n) and _plates(graph, n) == _plates(graph, one)]
            known = [g for g in groups if set(g) & set(like)]
            joined = dict.fromkeys(n for g in (*known, like) for n in g)
            groups = [g for g in groups if g not in known] + [list(joined)]
    order = [tuple(n for n in names if n in g) for g in groups]
    return [g for g in order if len(g) > 1 and sum(_numbers(graph, n) for n in g) <= MOST]


def _several(graph: Graph, latent: Latent) -> dict[str, int]:
    return {p: graph.plate(p).size for p in latent.plate_names if graph.plate(p).size > 1}


def _plates(graph: Graph, name: str) -> frozenset[str]:
    """Plates of several elements; none for latents of a loop, whose elements are tied to each other."""
    found = _several(graph, graph.latent(name))
    looped = any(graph.plate(p).steps for p in found) or any(a.base == name for a in graph.aliases)
    return frozenset() if looped else frozenset(found)


def _numbers(graph: Graph, name: str) -> int:
    latent = graph.latent(name)
    return math.prod(latent.shape) // math.prod(_several(graph, latent).values())
