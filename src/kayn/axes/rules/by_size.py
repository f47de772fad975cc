"""What work and memory demand: two axes on one, where arrays would be too large.

For the sake of speed axes without plates are merged, and inside of groups those over the same plates, which costs
little accuracy; to fit into memory, any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from kayn.axes.memory import step_bytes
from kayn.axes.state import Change, State, TooLarge
from kayn.axes.types import Axis, pairs_of
from kayn.graph.types import Link, Output
from kayn.support.memory import format_bytes
from kayn.support.names import whole

MAX_MERGED_COORDINATES = 8
"""Latents without plates are merged for the sake of speed only up to so many scalars on one axis."""


def much_work(state: State, output: Output) -> State | None:
    """Two axes without plates of a factor that would be too much work."""
    work = state.entries(output)
    pair = cheapest_pair(state, state.real_axes(output.latents), plates=False)
    if work <= state.case.request.target_elements or pair is None:
        return None
    return state.merged(*pair, f"{whole(output.name)} would have {work:.2g} entries")


def large_factor(state: State, output: Output) -> Change:
    """Two axes of a factor that would be too large to hold."""
    mine = state.real_axes(output.latents)
    held = state.combinations(output.latents) * math.prod(state.case.sizes[d] for d in _kept_dims(output, mine))
    # the particles of one axis without plates can be gone through one by one
    alone = max((a.size for a in state.axes_read(output.latents) if not (a.scope or a.alias_of)), default=1)
    size = held * jnp.result_type(float).itemsize // alone
    if 4 * size <= state.case.request.memory:
        return None
    pair = cheapest_pair(state, mine, plates=True)
    if pair is None:
        return TooLarge(f"factor {whole(output.name)!r} would have {held:.3g} entries ({format_bytes(size)})")
    return state.merged(*pair, f"{whole(output.name)} would have {held:.2g} entries")


def large_contraction(state: State) -> State | None:
    """Two axes without plates of the largest array that the contraction forms, if it is too large for speed."""
    plan = state.plan
    pair = cheapest_pair(state, [a for a in state.axes if a.name in plan.peak_axes], plates=False)
    if plan.peak_elements <= state.case.request.target_elements or pair is None:
        return None
    return state.merged(*pair, f"the contraction would form {plan.peak_elements:.2g} entries")


def large_particles(state: State) -> TooLarge | None:
    """Nothing helps where particles and guide alone take too much memory."""
    if state.beside <= state.case.request.memory:
        return None
    return TooLarge(f"particles and guide alone would take about {format_bytes(state.beside)}")


def large_step(state: State) -> Change:
    """Two axes, if a step would take too much memory, in parts where that helps: those of its largest array first."""
    total = step_bytes(state.cut) + state.beside
    if total <= state.case.request.memory:
        return None
    mine = [a for a in state.axes if a.name in state.plan.peak_axes]
    attempts = ((mine, False), (mine, True), (state.axes, True))
    pairs = (cheapest_pair(state, axes, plates) for axes, plates in attempts)
    pair = next((p for p in pairs if p is not None), None)
    what = f"a step would take about {format_bytes(total)}"
    return TooLarge(what) if pair is None else state.merged(*pair, what)


def cheapest_pair(state: State, axes: Sequence[Axis], plates: bool) -> tuple[Axis, Axis] | None:
    """The two axes that lose least when merged: equal and small scopes, few latents.

    Args:
        plates: also consider axes with an index of their own over plates, which loses far more combinations.
    """
    # the particles of a long vector are poor enough without a second one
    pairs = pairs_of(axes) if plates else pairs_without_plates(state, axes, MAX_MERGED_COORDINATES)
    if not pairs:
        return None
    return min(pairs, key=lambda p: (p[0].scope != p[1].scope, len(p[0].scope), len(p[0].latents) + len(p[1].latents)))


def pairs_without_plates(state: State, axes: Sequence[Axis], most: int) -> list[tuple[Axis, Axis]]:
    """Those that have no index of their own over plates and are up to `most` numbers together."""
    pairs = pairs_of([a for a in axes if not a.scope])
    return [p for p in pairs if sum(map(state.coordinates, p)) <= most]


def pairs_within_groups(state: State, axes: Sequence[Axis], most: int) -> list[tuple[Axis, Axis]]:
    """Those that have an index over the same plates, of numbers that no other step reads, up to `most` for every
    element of the plates."""
    graph, sizes = state.case.graph, state.case.sizes
    chains = {a.base for a in graph.aliases}

    def inside(axis: Axis) -> int:
        return state.coordinates(axis) // math.prod(sizes[p] for p in axis.scope)

    def free(axis: Axis) -> bool:
        return bool(axis.scope) and not any(n in chains or graph.latent(n).discrete for n in axis.latents)

    pairs = pairs_of([a for a in axes if free(a)])
    return [(a, b) for a, b in pairs if set(a.scope) == set(b.scope) and inside(a) + inside(b) <= most]


def _kept_dims(output: Output, axes: Sequence[Axis]) -> list[str]:
    """Plates left after rows that no axis needs have been multiplied out (rows are never all held at once)."""
    scopes = {p for a in axes for p in a.scope}
    links = {how.source: how.target for r in output.reads for _, how in r.through if isinstance(how, Link)}
    return [d if d in scopes else links[d] for d in output.dims if d and (d in scopes or links.get(d) in scopes)]
