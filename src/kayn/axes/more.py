"""More particles where a number was not given, and latents or elements have to share an index.

An index that several numbers share needs more particles than one of a single number. They cost next to nothing where
an axis has lost its index over a plate, or has taken in others, since there is so much less to combine.
"""

from __future__ import annotations

import math
from dataclasses import replace

from kayn.axes.request import MORE
from kayn.axes.rules.by_cost import evaluating
from kayn.axes.rules.by_size import large_factor, large_particles, large_step
from kayn.axes.state import State

OPERATIONS = 2**28
"""More particles are taken where a step stays below so many operations: well below a tenth of a second on two cores."""


def with_more_particles(state: State, begun: State) -> State:
    """The state with `MORE` particles on every axis that a rule has made what it is, where that is affordable.

    Args:
        begun: the state that the rules began with.
    """
    for axis in state.axes if state.case.request.more else ():
        if axis in begun.axes or axis.enumerated or axis.size >= MORE:
            continue
        more = replace(state, axes=tuple(replace(a, size=MORE) if a == axis else a for a in state.axes))
        if _affordable(more):
            state = more
    return state


def _affordable(state: State) -> bool:
    factors = state.case.graph.factors
    if any(large_factor(state, f) is not None for f in factors):
        return False
    return large_particles(state) is None and large_step(state) is None and _operations(state) <= OPERATIONS


def _operations(state: State) -> float:
    """Of a step: the contraction, every entry of every factor before rows are multiplied out, and computing these."""
    plan = state.plan
    entries = sum(math.prod(plan.size[a] for a in plan.axes[slot]) for slot in range(len(plan.terms)))
    return plan.flops + entries + sum(evaluating(state, f) for f in state.case.graph.factors)
