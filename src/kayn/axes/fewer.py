"""Fewer axes where a step is slow, then fewer particles, if their number is left to kayn.

The gain of all combinations comes from the many groups of a model and not from splitting the few latents above them, or
those inside of one: on one axis, with a joint covariance and more particles, these are known as well, and a step has as
much less to combine.
What is slow even then, such as a series whose step reads two earlier states, has fewer particles than usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from kayn.axes.more import SHARED, with_more_for_groups, with_more_for_shared
from kayn.axes.rules.by_cost import evaluating, of_a_step, operations
from kayn.axes.rules.by_size import pairs_within_groups, pairs_without_plates
from kayn.axes.state import State, TooLarge
from kayn.axes.types import Axis

STEP = 2**5
"""Operations of a step for each entry that an array may have (`target_elements`), by default 3e7 in all, above which
axes are merged: a hundredth of a second, which a fit takes a hundred times."""
LARGEST, MOST_IN_A_GROUP = 64, 8
"""Coordinates on such an axis, at most: more of them want more particles. And of those with an index over plates, for
each of its elements."""
FEWEST = 10
"""Particles that are left at least where a step is slow however axes are merged."""


def with_fewer_axes(state: State, begun: State, settled: Callable[[State], State | TooLarge]) -> State:
    """The state with more particles where they are affordable, and before that with fewer axes where steps are slow and
    each that is given up halves them, if not by itself then with those that follow. Groups come last: what more
    particles of theirs take says nothing of what is gained above them.

    Args:
        begun: the state that the rules began with.
        settled: what the rules make of a state.
    """
    if not state.case.request.more:
        return state
    best = raised = with_more_for_shared(state, begun)
    least = takes = of_a_step(raised)
    given_up = 0  # axes since the best
    while takes > STEP * state.case.request.target_elements:
        merged = _merged(state, f"a step would take {takes:.2g} operations")
        found = None if merged is None else settled(merged)
        if not isinstance(found, State):
            break
        state, raised, given_up = found, with_more_for_shared(found, begun), given_up + 1
        takes = of_a_step(raised)
        # one alone may save little, and open the way to what saves much
        if takes <= least / 2**given_up:
            best, least, given_up = raised, takes, 0
    return with_fewer_particles(with_more_for_groups(best, begun))


def with_fewer_particles(state: State) -> State:
    """The state with fewer particles where steps are slow: a third at a time, of the axis for which that saves most."""
    while (before := operations(state)) > SHARED:
        axes = [a for a in state.axes if not a.enumerated and a.size > FEWEST]
        smaller = [state.resized(a, max(FEWEST, 2 * a.size // 3)) for a in axes]
        found = min(smaller, key=operations, default=state)
        if operations(found) >= before:
            break
        state = found
    return state


def _merged(state: State, reason: str) -> State | None:
    """Two axes without plates that leave the least to compute; of such pairs one whose numbers have no ends, since a
    joint Normal is for these. Where no pair leaves fewer operations of factors, those that leave the least to contract:
    factors of a series may read either, and only its running state both. Then two that have an index over the same
    plates: what is inside a group has a joint Normal, too."""

    def states(pairs: Iterable[tuple[Axis, Axis]]) -> list[tuple[State, int]]:
        return [(state.merged(a, b, reason), _with_ends(state, a) + _with_ends(state, b)) for a, b in pairs]

    above = states(pairs_without_plates(state, state.axes, LARGEST))
    inside = states(pairs_within_groups(state, state.axes, MOST_IN_A_GROUP))
    for merged, cost in ((above, _work), (above, _step), (inside, _step)):
        found = [(cost(s), ends, s) for s, ends in merged]
        least, _, best = min(found, key=lambda f: f[:2], default=(cost(state), 0, state))
        if least < cost(state):
            return best
    return None


def _work(state: State) -> float:
    """Operations of all factors and their entries before rows are summed."""
    return sum(state.entries(f) + evaluating(state, f) for f in state.case.graph.factors)


def _step(state: State) -> float:
    return of_a_step(state) if state.stuck is None else math.inf


def _with_ends(state: State, axis: Axis) -> int:
    return sum(not state.case.graph.latent(n).endless for n in axis.latents)
