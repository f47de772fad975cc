"""Run a plan for the log evidence."""

from __future__ import annotations

from collections.abc import Iterable

from kayn.contraction.fuse import joined
from kayn.contraction.plan import Plan, PlateLink
from kayn.contraction.ways import Index, LinkKey, Slots, Way, sum_rule
from kayn.support.arrays import Array


def log_contract(plan: Plan, arrays: Slots, index: Index) -> Array:
    """`log mean_k prod exp(terms)`: a scalar, differentiable in the arrays.

    Args:
        arrays: log factors by slot, one for every term of the plan (axes in the term's order) or for its settled slot.
        index: index vectors of the plan's links.
    """
    return total(plan, forward(joined(plan), arrays, Way(index, sum_rule)))


def forward(plan: Plan, arrays: Slots, way: Way) -> dict[int, Array]:
    """All slots."""
    slots = dict(arrays)
    for step in plan.steps:
        if step.out not in slots and step.is_due(slots):
            slots[step.out] = step.forward(plan, slots, way)
    return slots


def total(plan: Plan, slots: Slots) -> Array:
    """What is left of all factors at the end: a scalar."""
    found = slots[plan.results[0]]
    for slot in plan.results[1:]:
        found = found + slots[slot]
    return found


def look_up(links: Iterable[PlateLink], index: Index) -> dict[LinkKey, Array]:
    """Index vectors, looked up before a loop or a function begins: a memo must not keep what is computed inside."""
    return {link.key: index(link.key) for link in links}
