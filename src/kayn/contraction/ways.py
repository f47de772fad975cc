"""Ways along a plan: forward, how sums are taken; back, how one of their summands is picked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from kayn.contraction.logsum import log_sum_exp
from kayn.support.arrays import Array

LinkKey = Hashable

Index = Callable[[LinkKey], Array]
"""Looks up the index vector of a link."""

Slots = Mapping[int, Any]
"""Arrays by slot of the plan: terms, or what `settled` steps made of them.

In the place of a term with the axis of a sliced variable may stand a `jax.tree_util.Partial` that makes, from the
number of the first particle of a part, what the body's settled steps make of that part.
"""

Rule = Callable[[Array, Array, int], Array]
"""How a pairwise step sums over the last so many axes of both operands' sum."""


def sum_rule(left: Array, right: Array, count: int) -> Array:
    """Sums of weights. Steps may take them in any way that gives the same, e.g. as a matrix product."""
    return log_sum_exp(left, right, count)


def max_rule(left: Array, right: Array, count: int) -> Array:
    """The largest weight in the place of a sum."""
    total = left + right
    return jnp.max(total, tuple(range(total.ndim - count, total.ndim)))


@dataclass(frozen=True, eq=False)
class Way:
    """A way forward.

    Attributes:
        index: looks up the links' index vectors.
        rule: how sums are taken.
    """

    index: Index
    rule: Rule


@dataclass(frozen=True, eq=False)
class WayBack(Way):
    """A way back along steps that were gone forward.

    Attributes:
        pick: chooses an index of the last dimension of logits by a number for each of their other entries.
        numbers: those numbers for picks of several shapes at a place, which further arguments tell.
        orders: in which indices of a variable are lined up to be picked from, int [*scope, K], where not as they are.
    """

    pick: Callable[[Array, Any], Array]
    numbers: Callable[..., Sequence[Array]]
    orders: Mapping[str, Array] = field(default_factory=dict)

    def inside(self, place: Any) -> WayBack:
        """The way along what is inside of a place, whose places begin with it; variables have other sizes there."""
        return replace(self, numbers=lambda shapes, *places: self.numbers(shapes, place, *places), orders={})
