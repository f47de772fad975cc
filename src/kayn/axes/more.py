"""More particles where a number was not given and they are affordable.

An index that several numbers share needs more particles than one of a single number, and costs next to nothing where
there is so much less to combine. Where each of many elements has an index of its own, what a few particles lack in each
adds up, and pulls the latents that all of them depend on: these get more as long as a step stays short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from kayn.axes.request import MORE
from kayn.axes.rules.by_cost import operations, takes_long
from kayn.axes.rules.by_size import large_factor, large_particles, large_step
from kayn.axes.state import State
from kayn.axes.types import Axis

SHARED, OWN = 2**28, 2**27
"""More particles are taken where a step stays below so many operations: on an axis that a rule has made what it is,
a few tenths of a second on two cores at most; on one with an index of its own over plates, half of that."""
EACH = 2**21
"""And as long as it stays below so many for every element of these plates: what few particles lack in each of a few
does not add up to much."""


def with_more_for_shared(state: State, begun: State) -> State:
    """The state with `MORE` particles on axes that a rule has made what they are, where that is affordable.

    Args:
        begun: the state that the rules began with.
    """
    return _with_more(state, [a for a in state.axes if a not in begun.axes], lambda _: SHARED)


def with_more_for_groups(state: State, begun: State) -> State:
    """The state with `MORE` particles on other axes that have an index of their own over plates, where that is
    affordable."""
    own = [a for a in state.axes if a in begun.axes and a.scope]
    return _with_more(state, own, lambda a: min(OWN, EACH * math.prod(state.case.sizes[p] for p in a.scope)))


def _with_more(state: State, axes: Iterable[Axis], most: Callable[[Axis], float]) -> State:
    if not state.case.request.more:
        return state
    for axis in axes:
        if not axis.enumerated and axis.size < MORE and _affordable(more := state.resized(axis, MORE), most(axis)):
            state = more
    return state


def _affordable(state: State, most: float) -> bool:
    factors = state.case.graph.factors
    if any(large_factor(state, f) is not None or takes_long(state, f) for f in factors):
        return False
    return large_particles(state) is None and large_step(state) is None and operations(state) <= most
