"""What axes are proposed: by the strategy, by the user's groups and by the guide. A strategy is an entry of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from kayn.axes.state import Case, State
from kayn.axes.types import Axis, Constraint, axis_name, axis_of
from kayn.errors import StructureError
from kayn.graph.types import Latent

Group = tuple[str, ...]


@dataclass(frozen=True)
class Strategy:
    """How latents that are drawn share axes, as far as nothing else is asked for. Those enumerated are left alone.

    Attributes:
        groups: latents that share an axis; every other latent is a group of its own.
        scope: of the plates that all latents of an axis have, those over which it has an index of its own.
    """

    groups: Callable[[Case], list[Group]]
    scope: Callable[[Case, frozenset[str]], frozenset[str]]


def _drawn(case: Case) -> list[Latent]:
    return [z for z in case.graph.latents if not z.enumerated]


def _all_together(case: Case) -> list[Group]:
    names = tuple(z.name for z in _drawn(case))
    return [names] if names else []


def _by_outer_plate(case: Case) -> list[Group]:
    outer: dict[str, list[str]] = {}
    for z in _drawn(case):
        runs = [p for p in z.plate_names if p in case.real - case.steps]
        outer.setdefault(runs[0] if runs else "", []).append(z.name)
    return [tuple(names) for names in outer.values()]


STRATEGIES = {
    "parallel": Strategy(lambda case: [], lambda case, plates: plates),
    "global": Strategy(_all_together, lambda case, plates: frozenset()),
    # the particles of a datum that is a sequence are whole paths
    "local": Strategy(_by_outer_plate, lambda case, plates: plates - case.steps),
}


def proposed(case: Case, constraints: Sequence[Constraint] = ()) -> State:
    """The axes to begin with.

    Args:
        constraints: demands of the guide.

    Raises:
        StructureError: latents that share an axis cannot, or ask for different numbers of particles.
    """
    groups = _joined(
        case.graph.latent_names,
        [*STRATEGIES[case.request.strategy].groups(case), *case.request.groups, *(c.latents for c in constraints)],
    )
    state = State(case, tuple(_axis(case, g) for g in groups))
    for constraint in constraints:
        if len(constraint.latents) > 1:
            state = state.reported(axis_of(state.axes, constraint.latents[0]), (), constraint.reason)
    for latents, plates, reason in (
        *((c.latents, _plates_at(case, c.joint_dims), c.reason) for c in constraints),
        *(((name,), plates, "asked for") for name, plates in case.request.couple),
    ):
        axis = axis_of(state.axes, latents[0])
        gone = tuple(p for p in plates if p in axis.scope)
        if gone:
            state = state.dropped(axis, gone, reason)
    return state


def _plates_at(case: Case, dims: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The plates that latents have in some batch dimensions."""
    return tuple(dict.fromkeys(p for name, dim in dims for p, d in case.graph.latent(name).plates if d == dim))


def _joined(names: Sequence[str], groups: Sequence[Collection[str]]) -> list[Group]:
    """Overlapping groups as one; every other name as a group of its own. All in the order of the names."""
    joined: list[set[str]] = []
    for group in (*map(set, groups), *({n} for n in names)):
        mine = group.union(*(other for other in joined if other & group))
        joined = [*(other for other in joined if not other & group), mine]
    order = {n: i for i, n in enumerate(names)}
    return sorted((tuple(sorted(g, key=order.__getitem__)) for g in joined), key=lambda g: order[g[0]])


def _axis(case: Case, names: Sequence[str]) -> Axis:
    latents = [case.graph.latent(n) for n in names]
    plates = frozenset.intersection(*(frozenset(z.plate_names) for z in latents))
    enumerated = latents[0].support_size
    if len(latents) > 1 and any(z.enumerated for z in latents):
        which = next(z.name for z in latents if z.enumerated)
        others = [n for n in names if n != which]
        raise StructureError(
            f"latent {which!r} is enumerated, so it cannot share an axis with {others}; "
            "its axis is its support. Leave it out of the group, or sample it from the guide",
            which,
            f"it shares an axis with {', '.join(map(repr, others))}",
        )
    if enumerated is None:
        plates = STRATEGIES[case.request.strategy].scope(case, plates)
    counts = {case.request.particles_of(n) for n in names}
    if enumerated is None and len(counts) > 1:
        raise StructureError(
            f"latents {list(names)} share a particle axis but ask for {sorted(counts)} particles; give them one number"
        )
    scope = tuple(p for p in latents[0].plate_names if p in plates and p in case.real)
    size = counts.pop() if enumerated is None else enumerated
    return Axis(axis_name(names), tuple(names), scope, size, enumerated is not None)
