"""Choose particle axes: what a strategy proposes, less what the factor graph,
the guide or the memory cannot support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from kayn.axes.memory import bytes_beside, cut_to_fit, step_bytes
from kayn.axes.plan import plan_axes, plan_within, with_aliases
from kayn.axes.request import Request
from kayn.axes.types import Axis, Constraint, Coupling, Layout, axis_name, axis_of
from kayn.contraction.plan import Plan, Stuck
from kayn.errors import StructureError
from kayn.graph.discover import Structure
from kayn.graph.types import MIXED, Graph, Link, Output
from kayn.support.memory import format_bytes

MAX_MERGED_COORDINATES = 8
"""Latents without plates are merged for the sake of speed only up to so many scalars on one axis."""


def choose_layout(
    structure: Structure,
    request: Request,
    constraints: Sequence[Constraint] = (),
    guide_parents: Mapping[str, Mapping[str, frozenset[str]]] | None = None,
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

    def choose(request: Request) -> Layout:
        return _choose(structure, request, constraints, guide_parents or {}, parameters)

    try:
        return choose(request)
    except _TooLarge as error:
        fits = _most_particles(choose, request)
        advice = f"num_particles={fits} would fit" if fits else "not even one particle of every latent would fit"
        raise StructureError(
            f"{error}, over memory={format_bytes(request.memory)}; {advice}, or raise memory=, or put latents on one "
            "axis with groups="
        ) from None


def kept_layout(structure: Structure, layout: Layout) -> Layout | None:
    """A plan for the axes of a layout and further factors; None where these would need other axes."""
    axes, memory = layout.axes, layout.memory
    chooser = _Chooser(structure, Request(memory=memory))
    outputs = structure.graph.factors
    try:
        if chooser.resolve(axes, outputs) is not None:
            return None
        plan = plan_within(structure, axes, outputs, layout.memory_left)
    except (Stuck, _TooLarge):
        return None
    if step_bytes(plan) > layout.memory_left:
        return None
    return Layout(axes, (), plan, tuple(with_aliases(structure.graph, axes)), memory, layout.beside)


class _TooLarge(Exception):
    """No axes are left to merge, and a step would still take too much memory."""


def _most_particles(choose: Callable[[Request], Layout], request: Request) -> int:
    """The largest K, the same for all latents, with which a request fits; 0 if there is none."""

    def fits(count: int) -> bool:
        try:
            choose(replace(request, num_particles=count))
        except _TooLarge:
            return False
        return True

    counts = request.num_particles
    low, high = 0, counts if isinstance(counts, int) else max(k for _, k in counts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _choose(
    structure: Structure,
    request: Request,
    constraints: Sequence[Constraint],
    guide_parents: Mapping[str, Mapping[str, frozenset[str]]],
    parameters: int,
) -> Layout:
    graph = structure.graph
    chooser = _Chooser(structure, request)
    axes = chooser.initial(constraints)
    outputs = graph.factors
    while True:
        changed = chooser.untangle(axes, guide_parents) or chooser.resolve(axes, outputs)
        if changed is None:
            try:
                plan = plan_axes(structure, axes, outputs)
            except Stuck as stuck:
                changed = chooser.unblock(axes, stuck)
            else:
                changed = chooser.merge_for_work(axes, plan)
                if changed is None:
                    beside = bytes_beside(_particles(graph, axes), parameters)
                    if beside > request.memory:
                        raise _TooLarge(f"particles and guide alone would take about {format_bytes(beside)}")
                    cut = cut_to_fit(plan, request.memory - beside)
                    changed = chooser.merge_to_fit(axes, plan, step_bytes(cut) + beside)
                if changed is None:
                    batched = tuple(with_aliases(graph, axes))
                    return Layout(tuple(axes), tuple(chooser.couplings), cut, batched, request.memory, beside)
        axes = changed


def _particles(graph: Graph, axes: Sequence[Axis]) -> int:
    return sum(axis_of(axes, z.name).size * math.prod(z.shape) for z in graph.latents)


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


def _real(axes: Sequence[Axis], axis: Axis) -> Axis:
    """The axis that a read axis stands for, without latents at other steps."""
    name = axis.alias_of or axis.name
    return next(a for a in axes if a.name == name)


class _Chooser:
    def __init__(self, structure: Structure, request: Request):
        self.structure, self.graph, self.request = structure, structure.graph, request
        self.sizes = {p.name: p.size for p in self.graph.plates}
        # a plate of one element is none, unless the element stands for others: then its log-sum counts several times
        self.real = {p.name for p in self.graph.plates if p.size > 1 or p.full_size > p.size}
        self.steps = {p.name for p in self.graph.plates if p.steps}
        self.couplings: list[Coupling] = []
        self.itemsize = jnp.result_type(float).itemsize

    # -- strategies

    def initial(self, constraints: Sequence[Constraint]) -> list[Axis]:
        groups = self._join([*self._strategy_groups(), *self.request.groups, *(c.latents for c in constraints)])
        axes = [self._axis(g) for g in groups]
        for constraint in constraints:
            if len(constraint.latents) > 1:
                self._report(next(a for a in axes if constraint.latents[0] in a.latents), (), constraint.reason)
        for latents, plates, reason in (
            *((c.latents, self._plates_at(c.joint_dims), c.reason) for c in constraints),
            *(((name,), plates, "asked for") for name, plates in self.request.couple),
        ):
            axis = next(a for a in axes if latents[0] in a.latents)
            gone = tuple(p for p in plates if p in axis.scope)
            if gone:
                axes = self._drop(axes, axis, gone, reason)
        return axes

    def _plates_at(self, dims: Sequence[tuple[str, int]]) -> tuple[str, ...]:
        found = {p: None for name, dim in dims for p, d in self.graph.latent(name).plates if d == dim}
        return tuple(found)

    def _strategy_groups(self) -> list[tuple[str, ...]]:
        latents = [z for z in self.graph.latents if not z.enumerated]
        if self.request.strategy == "global":
            return [tuple(z.name for z in latents)] if latents else []
        if self.request.strategy == "local":
            outer: dict[str, list[str]] = {}
            for z in latents:
                runs = [p for p in z.plate_names if p in self.real - self.steps]
                outer.setdefault(runs[0] if runs else "", []).append(z.name)
            return [tuple(names) for names in outer.values()]
        return []

    def _join(self, groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """Merge overlapping groups; every other latent is a group of its own. Model order is kept."""
        joined: list[set[str]] = []
        for group in (
            ({n} for n in self.graph.latent_names)
            if not groups
            else [*map(set, groups), *({n} for n in self.graph.latent_names)]
        ):
            mine = set(group)
            rest = []
            for other in joined:
                if other & mine:
                    mine |= other
                else:
                    rest.append(other)
            joined = [*rest, mine]
        order = {n: i for i, n in enumerate(self.graph.latent_names)}
        return sorted((tuple(sorted(g, key=order.__getitem__)) for g in joined), key=lambda g: order[g[0]])

    def _axis(self, names: Sequence[str]) -> Axis:
        latents = [self.graph.latent(n) for n in names]
        if len(latents) > 1 and any(z.enumerated for z in latents):
            which = next(z.name for z in latents if z.enumerated)
            raise StructureError(
                f"latent {which!r} is enumerated, so it cannot share an axis with {[n for n in names if n != which]}; "
                "its axis is its support. Leave it out of the group, or sample it from the guide"
            )
        if self.request.strategy == "global" and not latents[0].enumerated:
            shared: set[str] = set()
        else:
            shared = set.intersection(*(set(z.plate_names) for z in latents))
            if self.request.strategy == "local" and not latents[0].enumerated:
                shared -= self.steps  # the particles of a datum that is a sequence are whole paths
        scope = tuple(p for p in latents[0].plate_names if p in shared and p in self.real)
        enumerated = latents[0].support_size
        counts = {self.request.particles_of(n) for n in names}
        if enumerated is None and len(counts) > 1:
            raise StructureError(
                f"latents {list(names)} share a particle axis but ask for {sorted(counts)} particles; give them one "
                "number"
            )
        size = enumerated if enumerated is not None else counts.pop()
        return Axis(axis_name(names), tuple(names), scope, size, enumerated is not None)

    # -- couplings

    def _report(self, axis: Axis, plates: Sequence[str], reason: str) -> None:
        self.couplings.append(Coupling(axis.name, axis.latents, tuple(plates), reason))

    def _drop(self, axes: Sequence[Axis], axis: Axis, plates: Sequence[str], reason: str) -> list[Axis]:
        if axis.enumerated:
            raise StructureError(
                f"latent {axis.latents[0]!r} is enumerated, but it cannot keep an index of its own over plate "
                f"{', '.join(map(repr, plates))}: {reason}. Sample it from the guide instead (drop "
                f"infer={{'enumerate': 'parallel'}}), or couple the other latents with couple="
            )
        self._report(axis, plates, reason)
        changed = replace(axis, scope=tuple(p for p in axis.scope if p not in plates))
        return [changed if a is axis else a for a in axes]

    def untangle(
        self, axes: Sequence[Axis], guide_parents: Mapping[str, Mapping[str, frozenset[str]]]
    ) -> list[Axis] | None:
        """Apply the first coupling that a guide with dependent sites demands; None when there is none.

        The mixture over an axis's guide parents is the law of its particles only if no parent descends from the axis.
        So two axes become one if the guide goes from one to the other and back (a -> b -> c with a and c on one axis),
        and latents that share an axis may depend on each other within one plate element only.
        """
        shared = [a for a in axes if len(a.latents) > 1]
        if not shared:
            return None
        for axis in shared:
            for name in axis.latents:
                for parent, aligned in guide_parents.get(name, {}).items():
                    gone = tuple(p for p in axis.scope if parent in axis.latents and p not in aligned)
                    if gone:
                        return self._drop(axes, axis, gone, f"the guide draws {name} from several elements of {parent}")
        node: dict[str, Any] = {n: n for n in guide_parents} | {n: a for a in axes for n in a.latents}
        parents: dict[Any, set] = {node[n]: set() for n in guide_parents}
        for name, names in guide_parents.items():
            parents[node[name]] |= {node[p] for p in names} - {node[name]}
        while True:
            # what has no parents, or no children, is on no cycle
            children = set().union(*parents.values())
            left = {n: p for n, p in parents.items() if p and n in children}
            if len(left) == len(parents):
                break
            parents = {n: p & left.keys() for n, p in left.items()}
        for first in (a for a in axes if a in parents):
            for second in (a for a in axes if a in parents[first]):
                if self._descends(second, first, parents):
                    return self._merge(axes, first, second, "the guide goes from one to the other and back")
        return None

    @staticmethod
    def _descends(node: Any, ancestor: Any, parents: Mapping[Any, set]) -> bool:
        seen, todo = {node}, [node]
        while todo:
            new = parents[todo.pop()] - seen
            seen |= new
            todo.extend(new)
        return ancestor in seen

    def resolve(self, axes: Sequence[Axis], outputs: Sequence[Output]) -> list[Axis] | None:
        """Apply the first coupling that the reads demand; None when there is none."""
        batched = with_aliases(self.graph, axes)
        for output in outputs:
            links: dict[str, tuple[str, str | Link]] = {}
            for read in output.reads:
                axis = _real(axes, axis_of(batched, read.latent))
                for plate in axis_of(batched, read.latent).scope:
                    how = read.of(plate)
                    if how == MIXED:
                        return self._drop(axes, axis, (plate,), self._mixture(output, read.latent, plate))
                    first, known = links.setdefault(plate, (read.latent, how))
                    if known != how:
                        reason = f"{output.name} reads {first} and {read.latent} through different indices into {plate}"
                        rivals = [_real(axes, axis_of(batched, first)), axis]
                        return self._drop(axes, min(rivals, key=lambda a: self._loss(a, (plate,))), (plate,), reason)
            merged = self._merge_if_large(axes, output)
            if merged is not None:
                return merged
        return None

    def _mixture(self, output: Output, latent: str, plate: str) -> str:
        """Which factor mixes elements of a latent, and where in the model it does."""
        lines = {p: line for (name, p), line in self.structure.nodes.lost.items() if name == latent and line}
        line = lines.get(plate) or next(iter(lines.values()), "")
        what = f"{output.name} reads several elements of {latent} at once"
        return f"{what}, by {line}" if line else what

    def _loss(self, axis: Axis, plates: Sequence[str]) -> float:
        """log of the number of combinations given up by dropping plates from an axis."""
        if axis.enumerated:
            return math.inf
        before = math.prod(self.sizes[p] for p in axis.scope)
        after = math.prod(self.sizes[p] for p in axis.scope if p not in plates)
        return (before - after) * math.log(max(axis.size, 2))

    def _merge_if_large(self, axes: Sequence[Axis], output: Output) -> list[Axis] | None:
        """Two axes of a factor on one, if it is too much work (those without plates) or too large to hold (any)."""
        batched = with_aliases(self.graph, axes)
        read = list(dict.fromkeys(axis_of(batched, n) for n in output.latents))
        combinations = math.prod(a.size for a in read)
        mine = list(dict.fromkeys(_real(axes, a) for a in read))
        work = combinations * math.prod(self.sizes[d] for d in output.dims if d)
        if work > self.request.target_elements:
            pair = self._pair(mine, plates=False)
            if pair is not None:
                return self._merge(axes, *pair, f"{output.name} would have {work:.2g} entries")
        held = combinations * math.prod(self.sizes[d] for d in self._kept_dims(output, mine))
        # the particles of one axis without plates can be gone through one by one
        size = held * self.itemsize // max((a.size for a in read if not (a.scope or a.alias_of)), default=1)
        if 4 * size <= self.request.memory:
            return None
        pair = self._pair(mine, plates=True)
        if pair is None:
            raise _TooLarge(f"factor {output.name!r} would have {held:.3g} entries ({format_bytes(size)})")
        return self._merge(axes, *pair, f"{output.name} would have {held:.2g} entries")

    def merge_for_work(self, axes: Sequence[Axis], plan: Plan) -> list[Axis] | None:
        """Two axes without plates on one, if the contraction forms too large an array; None when it does not,
        or nothing can be merged."""
        pair = self._pair([a for a in axes if a.name in plan.peak_axes], plates=False)
        if plan.peak_elements <= self.request.target_elements or pair is None:
            return None
        return self._merge(axes, *pair, f"the contraction would form {plan.peak_elements:.2g} entries")

    def merge_to_fit(self, axes: Sequence[Axis], plan: Plan, total: int) -> list[Axis] | None:
        """Two axes on one, if a step would take too much memory; None when it does not.

        Args:
            total: bytes of a step, in parts where that helps.
        """
        if total <= self.request.memory:
            return None
        mine = [a for a in axes if a.name in plan.peak_axes]
        pair = self._pair(mine, plates=False) or self._pair(mine, plates=True) or self._pair(axes, plates=True)
        if pair is None:
            raise _TooLarge(f"a step would take about {format_bytes(total)}")
        return self._merge(axes, *pair, f"a step would take about {format_bytes(total)}")

    def _coordinates(self, axis: Axis) -> int:
        return sum(math.prod(self.graph.latent(n).shape) for n in axis.latents)

    def _pair(self, axes: Sequence[Axis], plates: bool) -> tuple[Axis, Axis] | None:
        """The two axes that lose least when merged: equal and small scopes, few latents.

        Args:
            plates: also consider axes with an index of their own over plates, which loses far more combinations.
        """
        free = [a for a in axes if not a.enumerated and a.size > 1 and (plates or not a.scope)]
        pairs = [(a, b) for i, a in enumerate(free) for b in free[i + 1 :] if a.size == b.size]
        if not plates:
            # the particles of a long vector are poor enough without a second one
            pairs = [p for p in pairs if sum(self._coordinates(a) for a in p) <= MAX_MERGED_COORDINATES]
        if not pairs:
            return None
        return min(
            pairs, key=lambda p: (p[0].scope != p[1].scope, len(p[0].scope), len(p[0].latents) + len(p[1].latents))
        )

    def _merge(self, axes: Sequence[Axis], a: Axis, b: Axis, reason: str) -> list[Axis]:
        names = (*a.latents, *b.latents)
        scope = tuple(p for p in a.scope if p in b.scope)
        merged = Axis(axis_name(names), names, scope, min(a.size, b.size))
        self.couplings = [c for c in self.couplings if c.plates or c.axis not in (a.name, b.name)]
        self._report(merged, (), reason)
        return [merged if x is a else x for x in axes if x is not b]

    def _kept_dims(self, output: Output, axes: Sequence[Axis]) -> list[str]:
        """Plates left after rows that no axis needs have been multiplied out (rows are never all held at once)."""
        scopes = {p for a in axes for p in a.scope}
        links = {how.source: how.target for r in output.reads for _, how in r.through if isinstance(how, Link)}
        return [d if d in scopes else links[d] for d in output.dims if d and (d in scopes or links.get(d) in scopes)]

    def unblock(self, axes: Sequence[Axis], stuck: Stuck) -> list[Axis]:
        by_name = {a.name: _real(axes, a) for a in with_aliases(self.graph, axes)}
        options = [(by_name[v], tuple(sorted(p))) for v, p in stuck.blocked]
        axis, plates = min(options, key=lambda o: (self._loss(*o), o[0].name))
        rivals = ", ".join(dict.fromkeys(n for a, _ in options if a is not axis for n in a.latents))
        reason = f"its groups cross those of {rivals}" if rivals else "its plates leave no elimination order"
        return self._drop(axes, axis, plates, reason)
