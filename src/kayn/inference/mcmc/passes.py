"""Passes: which latents move at once, each element on an index of its own, while the others are held.

Where groupings cross, no order of summation leaves every element an index of its own. Latents are then updated in
turn: those that are held have one particle, their current value, and nothing to be summed. Latents without plates move
in every pass, since they are what the groups of both sides hang on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from kayn.axes.choose import choose_layout
from kayn.axes.request import Request
from kayn.axes.types import Axis, Constraint, Layout
from kayn.errors import StructureError
from kayn.evidence.problem import Problem
from kayn.evidence.read import Read, read_model
from kayn.graph.types import Graph
from kayn.inference.mcmc.together import read_together
from kayn.particles.guide_program import GuideProgram, parent_plates
from kayn.programs.reads import with_reads_apart
from kayn.programs.sites import Inspected, Site
from kayn.support.names import in_model, shown
from kayn.support.prints import Printed

MOST_VALUES = 64
"""Values up to which a discrete latent is drawn from its exact conditional."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One part of a sweep.

    Attributes:
        problem: the model with axes for this pass.
        free: latents that move.
        guided: those of them whose particles come from the guide.
    """

    problem: Problem
    free: tuple[str, ...]
    guided: tuple[str, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes of the latents that move."""
        return tuple(a for a in self.problem.layout.axes if a.latents[0] in self.free)

    @property
    def given_up(self) -> tuple[str, ...]:
        """What a latent that moves has given up, and why, a line each."""
        return tuple(str(c) for c in self.problem.layout.couplings if c.plates and c.latents[0] in self.free)


@dataclass(frozen=True, eq=False, repr=False)
class Passes(Printed):
    """All passes of a sweep, in order; `print` them."""

    passes: tuple[Pass, ...]
    proposals: Mapping[str, str]
    """How particles of each latent are proposed, in words."""
    lines: tuple[str, ...] = ()
    """What moves along lines, in words."""

    def __str__(self) -> str:
        """A paragraph a pass."""
        lines = []
        for number, one in enumerate(self.passes, 1):
            held = [n for n in one.problem.graph.latent_names if n not in one.free]
            lines.append(f"Pass {number} of {len(self.passes)}")
            for axis in one.axes:
                count = f"{axis.size} {'values' if axis.enumerated else 'particles'}"
                over = f" for every element of {', '.join(map(shown, axis.scope))}" if axis.scope else ""
                how = dict.fromkeys("exact draw" if axis.enumerated else self.proposals[n] for n in axis.latents)
                names = " + ".join(map(in_model, axis.latents))
                lines.append(f"  {names}: {count}{over}, {', '.join(how)}")
            if held:
                lines.append(f"  held: {', '.join(map(in_model, held))}")
            lines += [f"  given up: {line}" for line in one.given_up]
        lines += self.lines
        return "\n".join(lines)


@dataclass(eq=False)
class Planner:
    """Layouts for any choice of latents that move.

    Attributes:
        base: the model as it is read; its `sites` say nothing yet of what is enumerated.
        guide: draws all latents that are not enumerated.
        guided: latents whose particles come from it.
        request: particles, groups and memory.
    """

    base: Inspected
    guide: GuideProgram
    guided: frozenset[str]
    request: Request

    def __post_init__(self) -> None:
        """Read the model, with every latent drawn."""
        self._reads: dict[frozenset[str], Read] = {}
        self.graph: Graph = self._read(frozenset()).structure.graph

    def chosen(self) -> tuple[Pass, ...]:
        """As few passes as a greedy choice finds, each with as many latents as keep all their indices."""
        return tuple(map(self._shared, self._apart()))

    def _apart(self) -> tuple[Pass, ...]:
        names = self.graph.latent_names
        everything = self._pass(names)
        if everything is not None and not self.lost(everything):
            return (everything,)
        level = [n for n in names if not self._plated(n)]
        waiting, out = [n for n in names if self._plated(n)], []
        while waiting:
            one = self._grown(level, waiting)
            out.append(one)
            waiting = [n for n in waiting if n not in one.free]
        return tuple(out)

    def _shared(self, one: Pass) -> Pass:
        """The same pass, in which latents of the same plates that a likelihood reads together share an index.

        One that costs a latent an index of its own is left as it is, and so is what the user has put in a group.
        """
        asked = {n for g in self.request.groups for n in g}
        kept = [n for n in one.free if n not in asked and n not in self.guided and not self.graph.latent(n).discrete]
        groups = read_together(self.graph, kept)
        if not groups:
            return one
        found = self._pass(one.free, replace(self.request, groups=(*self.request.groups, *groups)))
        return one if found is None or self.lost(found) > self.lost(one) else found

    def joint(self, names: Sequence[str]) -> Pass | None:
        """The pass in which some latents share one index; None where they have one coordinate, or are too large."""
        graph, read = self.graph, self._read(frozenset())
        if sum(math.prod(graph.latent(n).shape) for n in names) < 2:
            return None
        alone = {n: p for n in names if (p := self._plated(n))}
        request = replace(self.request, groups=(tuple(names),), couple=tuple(alone.items()))
        try:
            layout = self._layout(read, names, request)
        except StructureError:
            return None
        order = tuple(n for n in graph.latent_names if n in names)
        return Pass(self._problem(read, layout), order, ())

    def held(self) -> Problem:
        """The model with one particle of every latent."""
        read = self._read(frozenset())
        return self._problem(read, self._layout(read, ()))

    def _grown(self, level: Sequence[str], waiting: Sequence[str]) -> Pass:
        """The pass of the first that waits, and of all others that cost no latent an index."""
        first = tuple(waiting[0:1])
        best = self._pass((*level, *first))
        if best is None:
            raise StructureError(f"latent {first[0]!r} cannot move with the latents without plates: too large a step")
        others = (*waiting[1:], *(n for n in self.graph.latent_names if n not in (*level, *waiting)))
        allowed = self.lost(best)
        for name in others:
            tried = self._pass((*best.free, name))
            if tried is not None and self.lost(tried) <= allowed:
                best = tried
        return best

    def lost(self, one: Pass) -> set[tuple[str, str]]:
        """Latents that move without an index of their own over a plate of theirs."""
        graph = one.problem.graph
        return {
            (n, p)
            for n in one.free
            for p in self._plated(n)
            if p not in one.problem.layout.axis_of(n).scope and graph.plate(p).size > 1
        }

    def _plated(self, name: str) -> tuple[str, ...]:
        """Plates of a latent that have several elements."""
        return tuple(p for p in self.graph.latent(name).plate_names if self.graph.plate(p).size > 1)

    def _pass(self, free: Collection[str], asked: Request | None = None) -> Pass | None:
        """The pass in which some latents move; None where there is no layout for it."""
        sites = self.base.sites
        exact = {n for n in free if n not in self.guided and 0 < (sites[n].num_values or 0) <= MOST_VALUES}
        while True:
            read = self._read(frozenset(exact))
            try:
                layout = self._layout(read, free, asked)
            except StructureError as error:
                # drawn, where it cannot be enumerated
                if error.enumerated not in exact:
                    return None
                exact -= {error.enumerated}
                continue
            problem = self._problem(read, layout)
            order = tuple(n for n in self.graph.latent_names if n in free)
            return Pass(problem, order, tuple(n for n in order if n in self.guided))

    def _problem(self, read: Read, layout: Layout) -> Problem:
        return Problem(with_reads_apart(read.program), self.guide, read.structure, layout, self.base.fn)

    def _layout(self, read: Read, free: Collection[str], asked: Request | None = None) -> Layout:
        graph, asked = read.structure.graph, asked or self.request
        held = [z for z in graph.latents if z.name not in free]
        counts = (*((z.name, 1) for z in held), ("", int(self.request.particles_of(""))))
        real = {p.name for p in graph.plates if p.size > 1}
        couple = tuple((z.name, kept) for z in held if (kept := tuple(p for p in z.plate_names if p in real)))
        groups = [tuple(n for n in g if n in free) for g in asked.groups]
        request = replace(
            asked,
            num_particles=counts,
            couple=(*couple, *((n, p) for n, p in asked.couple if n in free)),
            groups=tuple(g for g in groups if len(g) > 1),
        )
        constraints = [c for c in self.guide.constraints if set(c.latents) & self.guided & set(free)]
        parents = parent_plates(self.guide, graph) if self.guided else {}
        mine = {n: p for n, p in parents.items() if n in free and n in self.guided}
        return choose_layout(read.structure, request, [_among(c, free) for c in constraints], mine)

    def _read(self, exact: frozenset[str]) -> Read:
        if exact not in self._reads:
            sites = {n: _enumerated(s, n in exact) for n, s in self.base.sites.items()}
            with warnings.catch_warnings():
                if self._reads:
                    warnings.simplefilter("ignore")  # what there is to say was said at the first reading
                self._reads[exact] = read_model(replace(self.base, sites=sites))
        return self._reads[exact]


def _enumerated(site: Site, exact: bool) -> Site:
    if site.kind != "sample" or site.observed:
        return site
    return replace(site, support_size=site.num_values if exact else None)


def _among(constraint: Constraint, free: Collection[str]) -> Constraint:
    """What a guide demands of those latents that move."""
    return replace(
        constraint,
        latents=tuple(n for n in constraint.latents if n in free),
        joint_dims=tuple((n, d) for n, d in constraint.joint_dims if n in free),
    )
