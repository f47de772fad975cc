"""Particle axes while they are chosen: what the choice rests on, how far it has come, what changes make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kayn.axes.memory import bytes_beside, cut_to_fit
from kayn.axes.plan import plan_axes, with_aliases
from kayn.axes.request import Request
from kayn.axes.types import Axis, Coupling, axis_name, axis_of
from kayn.contraction.plan import Plan, Stuck
from kayn.errors import StructureError
from kayn.graph.discover import Structure
from kayn.graph.types import Graph, Output

GuideParents = Mapping[str, Mapping[str, frozenset[str]]]
"""The parents of every guide site, each with the plates over which element i of the site depends on its own only."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a choice of axes rests on.

    Attributes:
        structure: the model's graph and links.
        request: what the user asks for.
        guide_parents: where densities are mixtures over guide parents, else empty.
        parameters: how many numbers the parameters of guide and model are.
    """

    structure: Structure
    request: Request
    guide_parents: GuideParents = field(default_factory=dict)
    parameters: int = 0

    @property
    def graph(self) -> Graph:
        """The model's."""
        return self.structure.graph

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of plates."""
        return {p.name: p.size for p in self.graph.plates}

    @cached_property
    def real(self) -> frozenset[str]:
        """Plates, but for those of one element, unless it stands for others: then its log-sum counts several times."""
        return frozenset(p.name for p in self.graph.plates if p.size > 1 or p.full_size > p.size)

    @cached_property
    def steps(self) -> frozenset[str]:
        """Plates that are the steps of a loop."""
        return frozenset(p.name for p in self.graph.plates if p.steps)


@dataclass(frozen=True, eq=False)
class State:
    """The axes of a case so far, and the couplings that led to them. What follows from these is worked out once."""

    case: Case
    axes: tuple[Axis, ...]
    couplings: tuple[Coupling, ...] = ()

    # -- changes, which make another state

    def reported(self, axis: Axis, plates: Sequence[str], reason: str) -> State:
        """The same axes, and a coupling that has made one of them what it is."""
        return replace(self, couplings=(*self.couplings, Coupling(axis.name, axis.latents, tuple(plates), reason)))

    def dropped(self, axis: Axis, plates: Sequence[str], reason: str) -> State:
        """An axis has no index of its own over some plates any more.

        Raises:
            StructureError: the axis is enumerated, and its latent has a value of its own in every element.
        """
        if axis.enumerated:
            why = f"it cannot keep an index of its own over plate {', '.join(map(repr, plates))}: {reason}"
            raise StructureError(
                f"latent {axis.latents[0]!r} is enumerated, but {why}. Sample it from the guide instead (drop "
                "infer={'enumerate': 'parallel'}), or couple the other latents with couple=",
                axis.latents[0],
                why,
            )
        less = replace(axis, scope=tuple(p for p in axis.scope if p not in plates))
        changed = replace(self, axes=tuple(less if a == axis else a for a in self.axes))
        return changed.reported(axis, plates, reason)

    def merged(self, a: Axis, b: Axis, reason: str) -> State:
        """The latents of two axes are on one."""
        names = (*a.latents, *b.latents)
        scope = tuple(p for p in a.scope if p in b.scope)
        both = Axis(axis_name(names), names, scope, min(a.size, b.size))
        axes = tuple(both if x == a else x for x in self.axes if x != b)
        # that they were put together before says no more than that they are now
        couplings = tuple(c for c in self.couplings if c.plates or c.axis not in (a.name, b.name))
        return State(self.case, axes, couplings).reported(both, (), reason)

    # -- what follows from the axes

    @cached_property
    def batched(self) -> tuple[Axis, ...]:
        """The axes again with chains' latents at other steps, followed by the axes of those steps."""
        return tuple(with_aliases(self.case.graph, self.axes))

    def as_read(self, latent: str) -> Axis:
        """The axis of a latent, which may be one at another step."""
        return axis_of(self.batched, latent)

    def real(self, axis: Axis) -> Axis:
        """The axis that a read axis stands for, without latents at other steps."""
        name = axis.alias_of or axis.name
        return next(a for a in self.axes if a.name == name)

    def axes_read(self, latents: Iterable[str]) -> list[Axis]:
        """The axes of some latents, which may be at other steps."""
        return list(dict.fromkeys(self.as_read(n) for n in latents))

    def real_axes(self, latents: Iterable[str]) -> list[Axis]:
        """Their axes without those of other steps."""
        return list(dict.fromkeys(self.real(a) for a in self.axes_read(latents)))

    def combinations(self, latents: Iterable[str]) -> int:
        """Of the particles of some latents."""
        return math.prod(a.size for a in self.axes_read(latents))

    def entries(self, output: Output) -> int:
        """Of an output on all particles of its axes, before rows are summed."""
        return self.combinations(output.latents) * math.prod(self.case.sizes[d] for d in output.dims if d)

    def coordinates(self, axis: Axis) -> int:
        """How many numbers the latents of an axis are."""
        return sum(math.prod(self.case.graph.latent(n).shape) for n in axis.latents)

    def resized(self, axis: Axis, size: int) -> State:
        """With another number of particles on an axis."""
        return replace(self, axes=tuple(replace(a, size=size) if a == axis else a for a in self.axes))

    def loss(self, axis: Axis, plates: Sequence[str]) -> float:
        """log of the number of combinations given up by dropping plates from an axis."""
        if axis.enumerated:
            return math.inf
        before = math.prod(self.case.sizes[p] for p in axis.scope)
        after = math.prod(self.case.sizes[p] for p in axis.scope if p not in plates)
        return (before - after) * math.log(max(axis.size, 2))

    @cached_property
    def _planned(self) -> Plan | Stuck:
        try:
            return plan_axes(self.case.structure, self.axes, self.case.graph.factors)
        except Stuck as stuck:
            return stuck

    @property
    def stuck(self) -> Stuck | None:
        """Why there is no order to contract in, if there is none."""
        return self._planned if isinstance(self._planned, Stuck) else None

    @property
    def plan(self) -> Plan:
        """The contraction over the axes.

        Raises:
            Stuck: there is none.
        """
        if isinstance(self._planned, Stuck):
            raise self._planned
        return self._planned

    @cached_property
    def beside(self) -> int:
        """Bytes of a step that particles and the guide's parameters take, beside the contraction."""
        particles = sum(axis_of(self.axes, z.name).size * math.prod(z.shape) for z in self.case.graph.latents)
        return bytes_beside(particles, self.case.parameters)

    @cached_property
    def cut(self) -> Plan:
        """The contraction, in parts where a step would take too much memory; it may still, where that does not help."""
        return cut_to_fit(self.plan, self.case.request.memory - self.beside)


@dataclass(frozen=True)
class TooLarge:
    """No axes are left to merge, and `what` would still take too much memory."""

    what: str


Change = State | TooLarge | None
"""What a rule makes of a state; None where it has nothing to change."""

Rule = Callable[[State], Change]

FactorRule = Callable[[State, Output], Change]
"""The same, for the sake of one factor."""
