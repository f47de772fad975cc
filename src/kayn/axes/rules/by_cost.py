"""What the time of a step demands: axes of a factor share an index where all their combinations would take too long.

A factor's result may be small and what it takes to compute it large: a sum over thousands of rows, a series, an
integral. Latents of the same plates then share an axis. The many groups of a model give the gain of all combinations,
not the few latents inside of one, so that this costs little, as long as the guide can hold their correlations.
"""

from __future__ import annotations

from itertools import combinations

from kayn.axes.state import State
from kayn.axes.types import Axis
from kayn.graph.types import Output

OPERATIONS = 2**9
"""A factor may take so many operations for each entry that an array may have (`target_elements`), by default 5e8 in
all: less than a tenth of a second on two cores."""


def slow_factor(state: State, output: Output) -> State | None:
    """Two axes of a factor that takes too long to compute: those that leave the least to do, over the same plates."""
    operations = evaluating(state, output)
    if operations <= OPERATIONS * state.case.request.target_elements:
        return None
    found = [(evaluating(s, output), s) for s in _mergers(state, output, operations)]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def evaluating(state: State, output: Output) -> float:
    """How many operations it takes to compute a factor on all particles of its axes."""
    return sum(operations * state.combinations(latents) for latents, operations in output.work)


def _mergers(state: State, output: Output, operations: float) -> list[State]:
    axes = state.real_axes(n for latents, _ in output.work for n in latents)
    free = [a for a in axes if not a.enumerated and a.size > 1]
    reason = f"{output.name} would take {operations:.2g} operations"
    return [state.merged(a, b, reason) for a, b in combinations(free, 2) if _alike(a, b)]


def _alike(a: Axis, b: Axis) -> bool:
    return a.size == b.size and set(a.scope) == set(b.scope)
