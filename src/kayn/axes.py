"""Which latents share a particle axis, and over which plates an axis has an index of its own.

A strategy proposes axes; couplings then remove what the factor graph cannot support: a plate whose elements a factor
mixes, or two crossed groupings. Every coupling keeps the estimate valid (the same unbiased evidence, over fewer
combinations of particles) and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kayn.checks import checked
from kayn.contraction.plan import Chained, Plan, PlateLink, Term
from kayn.contraction.planner import plan_contraction
from kayn.errors import StructureError
from kayn.graph.discover import Structure
from kayn.graph.types import Graph, Link, Output
from kayn.memory import cut_to_fit, memory_budget
from kayn.names import RESERVED, joined
from kayn.options import Couple, Elements, Groups, Memory, Particles, Strategy

PROPOSAL = f"{RESERVED}proposal:"
TARGET_ELEMENTS = 2**20
"""Default number of entries above which latents without plates are put on one axis, which costs little accuracy."""


@dataclass(frozen=True)
class Axis:
    """One particle axis: `size` particles, shared by `latents`, indexed separately for every element of `scope`."""

    name: str
    latents: tuple[str, ...]
    scope: tuple[str, ...]
    size: int
    enumerated: bool = False
    alias_of: str = ""
    """The axis whose particles these are, at other steps of a chain."""


@dataclass(frozen=True)
class Coupling:
    """Axis `axis` lost its own index over `plates`, or its latents were put on one axis; and why."""

    axis: str
    latents: tuple[str, ...]
    plates: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        what = f"one particle index over {', '.join(self.plates)}" if self.plates else "share one particle axis"
        return f"{', '.join(self.latents)}: {what} ({self.reason})"


@dataclass(frozen=True)
class Request:
    """What the user asks of the particle axes.

    Attributes:
        num_particles: K, for all latents or by latent name (others get the default under "").
        strategy: "parallel", "global" or "local".
        groups: latents that share an axis, on top of the strategy.
        couple: plates over which a latent gives up its own index; replaces the automatic choice where groups are crossed.
        target_elements: where a factor or an intermediate array has more entries, latents without plates share an axis.
        memory: bytes that a step may take; where it would take more, any axes are merged.
    """

    num_particles: int | tuple[tuple[str, int], ...] = 30
    strategy: Strategy = "parallel"
    groups: tuple[tuple[str, ...], ...] = ()
    couple: tuple[tuple[str, tuple[str, ...]], ...] = ()
    target_elements: Elements = TARGET_ELEMENTS
    memory: int = 2**32

    def particles_of(self, latent: str) -> int:
        if isinstance(self.num_particles, int):
            return self.num_particles
        table = dict(self.num_particles)
        return table.get(latent, table.get("", 30))


@checked(StructureError)
def make_request(
    num_particles: Particles = 30,
    strategy: Strategy = "parallel",
    groups: Groups = (),
    couple: Couple = None,
    target_elements: Elements = TARGET_ELEMENTS,
    memory: Memory = None,
) -> Request:
    """Check and freeze what the user asks for.

    Raises:
        StructureError: an option is none of what it may be.
    """
    counts = dict(num_particles) if isinstance(num_particles, Mapping) else {"": num_particles}
    frozen = tuple(
        (name, (plates,) if isinstance(plates, str) else tuple(plates)) for name, plates in (couple or {}).items()
    )
    single = set(counts) == {""}
    return Request(
        int(counts[""]) if single else tuple((n, int(c)) for n, c in counts.items()),
        strategy,
        tuple(tuple(g) for g in groups),
        frozen,
        target_elements,
        memory_budget(memory),
    )


@dataclass(frozen=True)
class Layout:
    """The particle axes of a model, the contraction over them, and what had to be coupled."""

    axes: tuple[Axis, ...]
    couplings: tuple[Coupling, ...]
    plan: Plan
    batched: tuple[Axis, ...]
    """The axes again with chains' latents at other steps, followed by the axes of those steps."""
    memory: int
    """Bytes that a step may take."""
    beside: int = 0
    """Bytes of a step that particles and the guide's parameters take, beside the contraction."""

    @property
    def memory_left(self) -> int:
        """Bytes that the contraction may take."""
        return self.memory - self.beside

    def axis_of(self, latent: str) -> Axis:
        return axis_of(self.batched, latent)

    def axes_of(self, term: Term) -> list[Axis]:
        """The particle axes of a term, in order."""
        return [a for name in term.axes for a in self.batched if a.name == name]


@dataclass(frozen=True)
class Constraint:
    """A demand of the guide: `latents` are drawn jointly, and its density does not factorise over some batch dimensions.

    `joint_dims` lists these as (latent, batch dimension).
    """

    latents: tuple[str, ...]
    joint_dims: tuple[tuple[str, int], ...]
    reason: str


def plan_axes(structure: Structure, axes: Sequence[Axis], outputs: Sequence[Output]) -> Plan:
    """Plan the contraction of some outputs over fixed particle axes.

    Raises:
        Stuck: no elimination order exists.
    """
    sizes = {p.name: p.size for p in structure.graph.plates}
    batched = with_aliases(structure.graph, axes)
    terms = [output_term(batched, o) for o in outputs]
    terms += [Term(proposal_name(a), (*a.scope, a.name)) for a in axes]

    def nest(inner: Any, outer: Any, plate: str) -> Any:
        return structure.nest(inner, outer, sizes[plate])

    return plan_contraction(
        terms,
        {a.name: a.size for a in batched},
        {a.name: frozenset(a.scope) for a in batched},
        sizes,
        scales={p.name: p.scale for p in structure.graph.plates},
        exact=frozenset(a.name for a in batched if a.enumerated),
        nest=nest,
        chains=_chains(structure.graph, axes),
    )


def plan_within(structure: Structure, axes: Sequence[Axis], outputs: Sequence[Output], memory: int) -> Plan:
    """As `plan_axes`, a sum cut into parts where a step would take more memory; it may still, where that does not help."""
    return cut_to_fit(plan_axes(structure, axes, outputs), memory)


def with_aliases(graph: Graph, axes: Sequence[Axis]) -> list[Axis]:
    """The axes, and behind them one for each other step at which chained axes are read.

    Where an axis has no index of its own over the steps, its particles are whole paths, and so are their earlier states: these
    join the axis itself.
    """
    extended = list(axes)
    for position, axis in enumerate(axes):
        for alias in graph.aliases:
            if alias.base in axis.latents and alias.time not in axis.scope:
                grown = extended[position]
                extended[position] = replace(grown, latents=(*grown.latents, alias.latent.name))
    for axis in axes:
        groups: dict[tuple[int, bool, str], list[str]] = {}
        for alias in graph.aliases:
            if alias.base in axis.latents and alias.time in axis.scope:
                groups.setdefault((alias.lag, alias.end, alias.time), []).append(alias.latent.name)
        for (_, end, time), names in groups.items():
            scope = tuple(p for p in axis.scope if p != time or not end)
            extended.append(Axis(axis_name(names), tuple(names), scope, axis.size, axis.enumerated, axis.name))
    return extended


def _chains(graph: Graph, axes: Sequence[Axis]) -> dict[str, Chained]:
    batched = with_aliases(graph, axes)
    out = {}
    for axis in axes:
        mine = [a for a in graph.aliases if a.base in axis.latents and a.time in axis.scope]
        if mine:

            def names(end: bool, mine: Sequence[Any] = mine) -> tuple[str, ...]:
                ordered = sorted((a for a in mine if a.end == end), key=lambda a: a.lag)
                return tuple(dict.fromkeys(axis_of(batched, a.latent.name).name for a in ordered))

            out[axis.name] = Chained(mine[0].time, names(False), names(True))
    return out


def axis_name(latents: Sequence[str]) -> str:
    """Kept apart from plate names, which may be anything that a user writes."""
    return f"{RESERVED}K[{joined(latents)}]"


def proposal_name(axis: Axis) -> str:
    """The term that holds minus the log proposal density of an axis."""
    return f"{PROPOSAL}{axis.name}"


def output_term(axes: Sequence[Axis], output: Output) -> Term:
    """The contraction term of an output: its plates, then the particle axes it depends on."""
    mine = list(dict.fromkeys(axis_of(axes, n) for n in output.latents))
    links = []
    for read in output.reads:
        for plate in axis_of(axes, read.latent).scope:
            how = read.of(plate)
            if isinstance(how, Link):
                links.append(PlateLink(how.source, how.target, how.key))
    return Term(output.name, (*(d for d in output.dims if d), *(a.name for a in mine)), tuple(dict.fromkeys(links)))


def axis_of(axes: Sequence[Axis], latent: str) -> Axis:
    return next(a for a in axes if latent in a.latents)
