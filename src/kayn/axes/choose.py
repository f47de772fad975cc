"""Choose particle axes: what a strategy proposes, less what the guide, the factor graph or the memory cannot support.

Each of `RULES` says what one of these demands. The first that has something to change does, and all are asked again,
until none has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kayn.axes.fewer import with_fewer_axes
from kayn.axes.memory import cut_to_fit, step_bytes
from kayn.axes.request import Request
from kayn.axes.rules.by_cost import operations, slow_contraction, slow_factor
from kayn.axes.rules.by_guide import several_elements, there_and_back
from kayn.axes.rules.by_order import no_order
from kayn.axes.rules.by_reads import unlike_reads
from kayn.axes.rules.by_size import large_contraction, large_factor, large_particles, large_step, much_work
from kayn.axes.state import Case, Change, FactorRule, GuideParents, Rule, State, TooLarge
from kayn.axes.strategies import proposed
from kayn.axes.types import Constraint, Layout
from kayn.errors import StructureError
from kayn.graph.discover import Structure
from kayn.graph.types import Graph
from kayn.support.memory import format_bytes


def factor_by_factor(*rules: FactorRule) -> Rule:
    """One rule of several that look at a single factor: all of them for the first factor, then for the second, ..."""

    def rule(state: State) -> Change:
        return _first(rule(state, output) for output in state.case.graph.factors for rule in rules)

    return rule


FACTORS = factor_by_factor(unlike_reads, much_work, slow_factor, large_factor)
"""What every factor demands for itself, before there is a plan."""

RULES: tuple[Rule, ...] = (
    several_elements,
    there_and_back,
    FACTORS,
    no_order,
    large_contraction,
    slow_contraction,
    large_particles,
    large_step,
)


def choose_layout(
    structure: Structure,
    request: Request,
    constraints: Sequence[Constraint] = (),
    guide_parents: GuideParents | None = None,
    parameters: int = 0,
) -> Layout:
    """Choose particle axes and plan the contraction.

    Args:
        structure: the model's graph and links.
        constraints: demands of the guide.
        guide_parents: where densities are mixtures over guide parents, the parents of every guide site, each with the
            plates over which element i of the site depends on element i of the parent only.
        parameters: how many numbers the parameters of guide and model are.

    Raises:
        StructureError: a request names an unknown latent or plate, an enumerated latent would have to be coupled, or a
            step would take more memory than allowed however axes are merged.
    """
    _check_names(structure.graph, request)

    def choose(request: Request) -> State | TooLarge:
        begun = proposed(Case(structure, request, guide_parents or {}, parameters), constraints)
        found = settled(begun)
        return found if isinstance(found, TooLarge) else with_fewer_axes(found, begun, settled)

    found = choose(request)
    if isinstance(found, TooLarge):
        fits = _most_particles(choose, request)
        advice = f"num_particles={fits} would fit" if fits else "not even one particle of every latent would fit"
        raise StructureError(
            f"{found.what}, over memory={format_bytes(request.memory)}; {advice}, or raise memory=, or put latents on "
            "one axis with groups="
        )
    beside, each = found.beside, operations(found)
    return Layout(found.axes, found.couplings, found.cut, found.batched, request.memory, beside, each)


def settled(state: State) -> State | TooLarge:
    """The state that no rule changes any more. There is one: every change leaves fewer axes, or fewer plates of one."""
    change: Change = state
    while isinstance(change, State):
        state, change = change, _first(rule(change) for rule in RULES)
    return change or state


def _first(changes: Iterable[Change]) -> Change:
    return next((c for c in changes if c is not None), None)


def kept_layout(structure: Structure, layout: Layout) -> Layout | None:
    """A plan for the axes of a layout and further factors; None where these would need other axes."""
    state = State(Case(structure, Request(memory=layout.memory)), layout.axes)
    if FACTORS(state) is not None or state.stuck is not None:
        return None
    plan = cut_to_fit(state.plan, layout.memory_left)
    if step_bytes(plan) > layout.memory_left:
        return None
    return Layout(state.axes, (), plan, state.batched, layout.memory, layout.beside, layout.operations)


def _most_particles(choose: Callable[[Request], State | TooLarge], request: Request) -> int:
    """The largest K, the same for all latents, with which a request fits; 0 if there is none."""
    counts = request.num_particles
    low, high = 0, counts if isinstance(counts, int) else max(k for _, k in counts)
    while high - low > 1:
        middle = (low + high) // 2
        fits = isinstance(choose(replace(request, num_particles=middle)), State)
        low, high = (middle, high) if fits else (low, middle)
    return low


def _check_names(graph: Graph, request: Request) -> None:
    known = set(graph.latent_names)
    counts = () if isinstance(request.num_particles, int) else tuple(n for n, _ in request.num_particles if n)
    for argument, names in (
        ("num_particles", counts),
        ("groups", tuple(n for g in request.groups for n in g)),
        ("couple", tuple(n for n, _ in request.couple)),
    ):
        unknown = [n for n in names if n not in known]
        if unknown:
            raise StructureError(
                f"{argument}= names {unknown}, which are no latents of the model; latents: {sorted(known)}"
            )
    twice = [n for n in known if sum(n in g for g in request.groups) > 1]
    if twice:
        raise StructureError(f"groups= puts {twice} in two groups; a latent has one particle axis")
    for name, wanted in request.couple:
        runs = list(graph.latent(name).plate_names)
        unknown = [p for p in wanted if p not in runs]
        if unknown:
            raise StructureError(
                f"couple= asks {name!r} to give up plates {unknown}; it can give up those that it runs over: {runs}"
            )
