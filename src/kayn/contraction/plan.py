"""Plan a plated log-sum-product from axis names and sizes alone.

A *variable* is a particle axis; its scope is the set of plates over which it has an index of its own. A *term* is an
array of log factors over some variables and plates. The plan eliminates variables innermost scope first and multiplies
plates out, as in plated tensor variable elimination (Obermeyer et al., Tensor Variable Elimination for Plated Factor
Graphs, ICML 2019), extended to ragged plates: a row plate is summed into a group plate through an index vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import opt_einsum

from kayn.errors import StructureError

LinkKey = Hashable
Nest = Callable[[LinkKey, LinkKey, str], LinkKey | None]
"""Given the keys of rows -> inner and rows -> outer and the inner plate, the key of inner -> outer, or None if crossed."""


@dataclass(frozen=True)
class PlateLink:
    """Rows of plate `source` belong to elements of plate `target`; `key` names the index vector."""

    source: str
    target: str
    key: LinkKey


@dataclass(frozen=True)
class Term:
    """A log factor: its axes (plates and variables, in the array's order) and the links its variables are read through."""

    name: str
    axes: tuple[str, ...]
    links: tuple[PlateLink, ...] = ()


@dataclass(frozen=True)
class Combine:
    """Add one or two arrays and log-sum over `eliminated` (empty: only add). `norm` is subtracted afterwards."""

    left: int
    right: int | None
    out: int
    eliminated: tuple[str, ...]
    norm: float


@dataclass(frozen=True)
class Product:
    """Multiply a plate out: sum log factors over `plate`, or into the elements of `targets` through links."""

    source: int
    out: int
    plate: str
    links: tuple[PlateLink, ...]
    scale: float


@dataclass(frozen=True)
class Plan:
    """Steps in static single assignment form: slot i holds term i at first, each step writes a new slot."""

    terms: tuple[Term, ...]
    steps: tuple[Combine | Product, ...]
    axes: tuple[tuple[str, ...], ...]
    links: tuple[tuple[PlateLink, ...], ...]
    results: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    scopes: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def size(self) -> dict[str, int]:
        return dict(self.sizes)

    @property
    def scope(self) -> dict[str, tuple[str, ...]]:
        return dict(self.scopes)

    def elements(self, slot: int) -> int:
        return math.prod(self.size[a] for a in self.axes[slot])

    def joint_axes(self, step: Combine) -> tuple[str, ...]:
        """All axes that meet in a step: those of the result, then the eliminated ones."""
        return (*self.axes[step.out], *step.eliminated)

    def is_matmul(self, step: Combine) -> bool:
        """Both operands have kept axes of their own and share all eliminated ones: a batched matrix product."""
        if step.right is None or not step.eliminated:
            return False
        left, right = set(self.axes[step.left]), set(self.axes[step.right])
        summed = set(step.eliminated)
        return summed <= left & right and bool(left - right) and bool(right - left)

    @property
    def flops(self) -> int:
        """Multiply-adds (in the log semiring) over all steps."""
        total = 0
        for step in self.steps:
            if isinstance(step, Combine):
                total += math.prod(self.size[a] for a in self.joint_axes(step))
            else:
                total += self.elements(step.source)
        return total

    @property
    def peak_axes(self) -> tuple[str, ...]:
        """Axes of the largest array that a step forms (terms themselves, which may be evaluated in parts, not counted)."""
        formed = [
            self.axes[s.out] if isinstance(s, Product) or self.is_matmul(s) else self.joint_axes(s) for s in self.steps
        ]
        return max(formed, key=lambda axes: math.prod(self.size[a] for a in axes), default=())

    @property
    def peak_elements(self) -> int:
        """Entries of the largest array that a step forms."""
        return math.prod(self.size[a] for a in self.peak_axes)

    @property
    def log10_combinations(self) -> float:
        """log10 of the number of particle combinations that the contraction sums over."""
        size = self.size
        return sum(math.log10(size[v]) * math.prod(size[p] for p in plates) for v, plates in self.scopes)

    def __str__(self) -> str:
        lines = [f"contraction: {self.flops:.3g} flops, largest array {self.peak_elements:.3g} elements"]
        for step in self.steps:
            source = ", ".join(self.axes[step.left if isinstance(step, Combine) else step.source])
            target = ", ".join(self.axes[step.out])
            if isinstance(step, Product):
                into = ", ".join(link.target for link in step.links)
                lines.append(f"  multiply {step.plate}{' into ' + into if into else ''}: [{source}] -> [{target}]")
            else:
                other = "" if step.right is None else f" x [{', '.join(self.axes[step.right])}]"
                lines.append(f"  sum {', '.join(step.eliminated) or 'nothing'}: [{source}]{other} -> [{target}]")
        return "\n".join(lines)


class Stuck(Exception):
    """No elimination order exists; `blocked` pairs variables with those of their plates that are in the way."""

    def __init__(self, blocked: tuple[tuple[str, frozenset[str]], ...]):
        super().__init__(f"no elimination order: {blocked}")
        self.blocked = blocked


@dataclass
class _Planner:
    variables: Mapping[str, int]
    scopes: Mapping[str, frozenset[str]]
    plates: Mapping[str, int]
    scales: Mapping[str, float]
    exact: frozenset[str]
    nest: Nest
    axes: list[tuple[str, ...]] = field(default_factory=list)
    links: list[dict[tuple[str, str], LinkKey]] = field(default_factory=list)
    steps: list[Combine | Product] = field(default_factory=list)

    def vars_of(self, slot: int) -> tuple[str, ...]:
        return tuple(a for a in self.axes[slot] if a in self.variables)

    def dims_of(self, slot: int) -> tuple[str, ...]:
        return tuple(a for a in self.axes[slot] if a in self.plates)

    def need(self, slot: int) -> frozenset[str]:
        return frozenset().union(*(self.scopes[v] for v in self.vars_of(slot)))

    def new(self, axes: Sequence[str], links: Mapping[tuple[str, str], LinkKey]) -> int:
        plates = [a for a in axes if a in self.plates]
        needed = frozenset().union(*(self.scopes[a] for a in axes if a in self.variables))
        self.axes.append(tuple(axes))
        self.links.append({k: v for k, v in links.items() if k[1] in needed and k[0] in (*plates, *needed)})
        return len(self.axes) - 1

    def merged_links(self, slots: Sequence[int]) -> dict[tuple[str, str], LinkKey]:
        out: dict[tuple[str, str], LinkKey] = {}
        for slot in slots:
            for pair, key in self.links[slot].items():
                if out.setdefault(pair, key) != key:
                    readers = [v for s in slots for v in self.vars_of(s) if pair[1] in self.scopes[v]]
                    raise Stuck(tuple((v, frozenset({pair[1]})) for v in dict.fromkeys(readers)))
        return out

    def settle(self, slot: int) -> int:
        """Multiply out every plate that no variable of the slot needs."""
        while True:
            dims, need = self.dims_of(slot), self.need(slot)
            spare = [p for p in dims if p not in need]
            if not spare:
                return slot
            # rows before groups: a plate that is linked to others goes first
            plate = max(spare, key=lambda p: sum(source == p for source, _ in self.links[slot]))
            slot = self._multiply(slot, plate, need - set(dims))

    def _multiply(self, slot: int, plate: str, missing: frozenset[str]) -> int:
        links = dict(self.links[slot])
        reach = {t: links[plate, t] for t in sorted(missing) if (plate, t) in links}
        targets = dict(reach)
        # a variable with an index over both of two plates needs both, even if its rows happen to nest one in the other
        scopes = [self.scopes[v] for v in self.vars_of(slot)]
        for outer in reach:
            for inner in targets:
                if inner != outer and outer in targets and not any({inner, outer} <= s for s in scopes):
                    key = links.get((inner, outer))
                    key = self.nest(reach[inner], reach[outer], inner) if key is None else key
                    if key is not None and (outer, inner) not in links:
                        links[inner, outer] = key
                        del targets[outer]
                        break
        rest = [a for a in self.axes[slot] if a != plate]
        out = self.new([*targets, *rest], links)
        through = tuple(PlateLink(plate, t, k) for t, k in targets.items())
        self.steps.append(Product(slot, out, plate, through, self.scales.get(plate, 1.0)))
        return out

    def eliminate(self, component: list[int], summed: frozenset[str]) -> int:
        """Contract the slots of one component, pair by pair, summing `summed` as early as possible."""
        links = self.merged_links(component)
        all_axes = list(dict.fromkeys(a for s in component for a in self.axes[s]))
        symbols = {a: opt_einsum.get_symbol(i) for i, a in enumerate(all_axes)}
        kept = [a for a in all_axes if a not in summed]
        terms = ["".join(symbols[a] for a in self.axes[s]) for s in component]
        shapes = [tuple(self._size(a) for a in self.axes[s]) for s in component]
        equation = ",".join(terms) + "->" + "".join(symbols[a] for a in kept)
        path = [(0,)] if len(component) == 1 else opt_einsum.contract_path(equation, *shapes, shapes=True)[0]
        pool = list(component)
        for step in path:
            picked = [pool[i] for i in step]
            pool = [s for i, s in enumerate(pool) if i not in step]
            current = picked[0]
            partners: list[int | None] = [*picked[1:]] or [None]
            for position, right in enumerate(partners):
                others = {a for s in (*pool, *picked[position + 2 :]) for a in self.axes[s]}
                joint = dict.fromkeys((*self.axes[current], *(self.axes[right] if right is not None else ())))
                gone = tuple(a for a in joint if a in summed and a not in others)
                out = self.new([a for a in joint if a not in gone], links)
                norm = sum(math.log(self.variables[v]) for v in gone if v not in self.exact)
                self.steps.append(Combine(current, right, out, gone, norm))
                current = out
            pool.append(current)
        return pool[0]

    def _size(self, axis: str) -> int:
        return self.variables[axis] if axis in self.variables else self.plates[axis]

    def run(self, slots: list[int]) -> tuple[int, ...]:
        live = [self.settle(s) for s in slots]
        left = {v for s in live for v in self.vars_of(s)}
        while left:
            ready = [
                v
                for v in sorted(left)
                if all(set(self.dims_of(s)) == self.scopes[v] for s in live if v in self.axes[s])
            ]
            if not ready:
                raise Stuck(self._blocked(live, left))
            scope = max((self.scopes[v] for v in ready), key=lambda s: (len(s), sorted(s)))
            summed = frozenset(v for v in ready if self.scopes[v] == scope)
            touched = [s for s in live if summed & set(self.axes[s])]
            live = [s for s in live if s not in touched]
            for component in self._components(touched, summed):
                live.append(self.settle(self.eliminate(component, summed)))
            left -= summed
        return tuple(live)

    def _components(self, slots: Sequence[int], summed: frozenset[str]) -> list[list[int]]:
        components: list[tuple[set[str], list[int]]] = []
        for slot in slots:
            mine, members = set(self.axes[slot]) & summed, [slot]
            rest = []
            for theirs, group in components:
                if theirs & mine:
                    mine, members = mine | theirs, group + members
                else:
                    rest.append((theirs, group))
            components = [*rest, (mine, members)]
        return [sorted(group) for _, group in components]

    def _blocked(self, live: Sequence[int], left: set[str]) -> tuple[tuple[str, frozenset[str]], ...]:
        """Pairs of variables in one factor, each with a plate that the other lacks: one of them must give up."""
        found: dict[str, set[str]] = {}
        for slot in live:
            mine = self.vars_of(slot)
            for v in mine:
                for u in mine:
                    ahead, behind = self.scopes[v] - self.scopes[u], self.scopes[u] - self.scopes[v]
                    if ahead and (behind or len(mine) == 1):
                        found.setdefault(v, set()).update(ahead)
        if not found:
            found = {v: set(self.scopes[v]) for v in left if self.scopes[v]}
        return tuple((v, frozenset(p)) for v, p in found.items())


def plan_contraction(
    terms: Sequence[Term],
    variables: Mapping[str, int],
    scopes: Mapping[str, frozenset[str]],
    plates: Mapping[str, int],
    *,
    scales: Mapping[str, float] | None = None,
    exact: frozenset[str] = frozenset(),
    nest: Nest = lambda inner, outer, plate: None,
) -> Plan:
    """Plan `log mean over variables, product over plates, of exp(sum of terms)`.

    Args:
        terms: the log factors.
        variables: number of particles of every variable.
        scopes: plates over which every variable has its own index.
        plates: sizes.
        scales: factor by which a plate's reduced log-sum counts (subsampled plates).
        exact: variables that are summed instead of averaged (enumerated supports).
        nest: how to recognise nested ragged plates.

    Raises:
        Stuck: the scopes admit no elimination order (crossed plates).
        StructureError: a term lacks a plate of one of its variables and has no link to it.
    """
    planner = _Planner(variables, scopes, plates, scales or {}, exact, nest)
    for term in terms:
        links = {(link.source, link.target): link.key for link in term.links}
        slot = planner.new(term.axes, links)
        missing = planner.need(slot) - set(term.axes) - {target for _, target in links}
        if missing:
            raise StructureError(f"factor {term.name!r} has no axis and no link for plates {sorted(missing)}")
    results = planner.run(list(range(len(terms))))
    sizes = {a: planner._size(a) for axes in planner.axes for a in axes}
    used = sorted({v for axes in planner.axes for v in axes if v in variables})
    return Plan(
        tuple(terms),
        tuple(planner.steps),
        tuple(planner.axes),
        tuple(tuple(PlateLink(s, t, k) for (s, t), k in links.items()) for links in planner.links),
        results,
        tuple(sizes.items()),
        tuple((v, tuple(sorted(scopes[v]))) for v in used),
    )
