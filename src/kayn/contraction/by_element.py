"""The log evidence as a sum over the elements of a plate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kayn.contraction.execute import forward
from kayn.contraction.plan import Plan
from kayn.contraction.steps.product import products
from kayn.contraction.ways import Index, Slots, Way, sum_rule
from kayn.support.arrays import Array


def by_element(plan: Plan, arrays: Slots, index: Index, plate: str) -> tuple[Array, Array]:
    """`log_contract` as a sum over the elements of a plate that all variables have an index over.

    Args:
        arrays: as for `log_contract`, but with that plate where a term has it (see `settled_slot`).

    Returns:
        The summands, [plate], before the plate's own scale, and what no element owns: the sum of the terms without the
        plate, a scalar.
    """
    slots = forward(plan, arrays, Way(index, sum_rule))
    scales = {s.plate: s.scale for s in products(plan)}
    ends = {s.out: s.source for s in products(plan) if s.plate == plate}
    dtype = jax.tree.leaves(dict(arrays))[0].dtype
    summands, owned = jnp.zeros(plan.size[plate], dtype), set()
    for step in plan.steps:
        if step.out in ends:
            axes = plan.axes[ends[step.out]]
            rest = [a for a in axes if a != plate]
            part = jnp.sum(slots[ends[step.out]], tuple(axes.index(a) for a in rest))
            summands = summands + part * math.prod(scales[a] for a in rest)
            owned.add(step.out)
        elif owned.intersection(step.read):
            owned.add(step.out)
    others = [slots[r] for r in plan.results if r not in owned]
    return summands, sum(others, jnp.zeros((), dtype))
