"""Particles in an order in which neighbours are alike, for draws that are spread evenly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.axes.types import Axis
from kayn.evidence.problem import Problem
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced

BITS, MOST = 30, 6
"""Of a place along the curve, and coordinates that it goes through: there are too few particles to tell more apart."""


def alike(problem: Problem, values: Mapping[str, Array]) -> dict[str, Array]:
    """The particles of every axis along a curve through their values: int [R, *scope, K].

    The curve is Morton's through the ranks of the coordinates; one coordinate is simply sorted.

    Args:
        values: [R, K, *shape] for every latent.
    """
    xp: Any = jnp if is_traced(values) else np
    return {a.name: _along_curve(_coordinates(problem, a, values, xp), xp) for a in problem.layout.axes}


def _coordinates(problem: Problem, axis: Axis, values: Mapping[str, Array], xp: Any) -> Array:
    """Numbers of an axis' particles: [R, *scope, coordinates, K]."""
    parts, scope = [], problem.layout.plan.scope[axis.name]
    for name in axis.latents:
        plates, own = dict(problem.graph.latent(name).plates), xp.asarray(values[name])
        at = [2 + plates[p] for p in scope]
        rest = [d for d in range(2, own.ndim) if d not in at]
        own = xp.transpose(own, (0, *at, *rest, 1))
        parts.append(own.reshape((*own.shape[: 1 + len(at)], -1, own.shape[-1]))[..., :MOST, :])
    return xp.concatenate(parts, -2)[..., :MOST, :]


def _along_curve(coordinates: Array, xp: Any) -> Array:
    """[..., K], from [..., coordinates, K]."""
    count, size = coordinates.shape[-2:]
    whole = (size - 1).bit_length()
    bits = min(BITS // count, whole)
    ranks = xp.argsort(xp.argsort(coordinates, -1), -1).astype("int32") >> (whole - bits)
    # what never differs tells nothing
    ranks = xp.where((coordinates != coordinates[..., :1]).any(-1, keepdims=True), ranks, 0)
    code = xp.zeros(ranks[..., 0, :].shape, "int32")
    for bit in reversed(range(bits)):
        for i in range(count):
            code = (code << 1) | ((ranks[..., i, :] >> bit) & 1)
    return xp.argsort(code, -1).astype("int32")
