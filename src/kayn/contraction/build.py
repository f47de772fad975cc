"""Plan a plated log-sum-product from axis names and sizes alone.

Variables are eliminated innermost scope first and plates multiplied out, as in plated tensor variable elimination
(Obermeyer et al., Tensor Variable Elimination for Plated Factor Graphs, ICML 2019), extended to ragged plates, where a
row plate is summed into a group plate through an index vector, and to plates that are the steps of a Markov chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import opt_einsum

from kayn.contraction.plan import Chained, Plan, PlateLink, Step, Stuck, Term
from kayn.contraction.steps.chain import Chain
from kayn.contraction.steps.combine import Combine
from kayn.contraction.steps.product import Product
from kayn.contraction.ways import LinkKey
from kayn.errors import StructureError

Nest = Callable[[LinkKey, LinkKey, str, str], LinkKey | None]
"""From the keys of rows -> inner and rows -> outer and the two plates to that of inner -> outer; None if crossed."""


@dataclass
class _Planner:
    variables: Mapping[str, int]
    scopes: Mapping[str, frozenset[str]]
    plates: Mapping[str, int]
    scales: Mapping[str, float]
    exact: frozenset[str]
    nest: Nest
    chains: Mapping[str, Chained] = field(default_factory=dict)
    axes: list[tuple[str, ...]] = field(default_factory=list)
    links: list[dict[tuple[str, str], LinkKey]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

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
                    key = self.nest(reach[inner], reach[outer], inner, outer) if key is None else key
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
        chained = {v for v, c in self.chains.items() if left & {*c.lags, *c.ends}}
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
            family = {v: base for base in chained & summed for v in (base, *self.chains[base].lags)}
            alone = summed - family.keys()
            if alone:
                touched = [s for s in live if alone & set(self.axes[s])]
                live = [s for s in live if s not in touched]
                for component in self._components(touched, {v: v for v in alone}):
                    live.append(self.settle(self.eliminate(component, alone)))
                left -= alone
                continue
            waiting = (family.keys() & left) - summed
            if waiting:
                raise Stuck(self._blocked(live, left))
            touched = [s for s in live if family.keys() & set(self.axes[s])]
            live = [s for s in live if s not in touched]
            for component in self._components(touched, family):
                bases = sorted({family[v] for s in component for v in self.axes[s] if v in family})
                live.append(self.settle(self.chain(component, bases)))
                left |= {v for base in bases for v in self.chains[base].ends}
            left -= family.keys()
        return tuple(live)

    def chain(self, component: list[int], bases: Sequence[str]) -> int:
        """Sum over all paths of some variables of one plate of steps."""
        chains = [self.chains[b] for b in bases]
        plate, lags = chains[0].plate, [v for c in chains for v in c.lags]
        links = self.merged_links(component)
        every = list(dict.fromkeys(a for s in component for a in self.axes[s]))
        plates = [a for a in every if a in self.plates and a != plate]
        kept = [a for a in every if a in self.variables and a not in (*bases, *lags)]
        moving = tuple((v, frozenset({plate})) for v in kept if plate in self.scopes[v])
        if moving:
            raise Stuck(moving)
        out = self.new([*plates, *kept, *(v for c in chains for v in c.ends)], links)
        inside = {k: v for k, v in links.items() if plate not in k}
        sub = _Planner(
            self.variables,
            {v: s - {plate} for v, s in self.scopes.items()},
            {p: n for p, n in self.plates.items() if p != plate},
            {},
            self.exact,
            self.nest,
        )
        axes = [[*plates, *kept, *lags], *([a for a in self.axes[s] if a != plate] for s in component)]
        slots = [sub.new(a, inside) for a in axes]
        terms = tuple(Term(f"step {i}", tuple(a)) for i, a in enumerate(axes))
        result = sub.eliminate(slots, frozenset(c.lags[-1] for c in chains))
        body = sub.plan(terms, (result,))
        start = -sum(math.log(self.variables[v]) for v in lags if v in self.exact)
        states = tuple((b, *c.lags) for b, c in zip(bases, chains, strict=True))
        self.steps.append(Chain(tuple(component), out, plate, body, states, tuple(c.ends for c in chains), start))
        return out

    def plan(self, terms: tuple[Term, ...], results: tuple[int, ...]) -> Plan:
        sizes = {a: self._size(a) for axes in self.axes for a in axes}
        used = sorted({v for axes in self.axes for v in axes if v in self.variables})
        return Plan(
            terms,
            tuple(self.steps),
            tuple(self.axes),
            tuple(tuple(PlateLink(s, t, k) for (s, t), k in links.items()) for links in self.links),
            results,
            tuple(sizes.items()),
            tuple((v, tuple(sorted(self.scopes[v]))) for v in used),
        )

    def _components(self, slots: Sequence[int], family: Mapping[str, str]) -> list[list[int]]:
        """Slots that share variables; those of one family count as one variable."""
        components: list[tuple[set[str], list[int]]] = []
        for slot in slots:
            mine, members = {family[a] for a in self.axes[slot] if a in family}, [slot]
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
    nest: Nest = lambda *given: None,
    chains: Mapping[str, Chained] | None = None,
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
        chains: variables whose plate elements follow each other, with the names of their states at other steps.

    Raises:
        Stuck: the scopes admit no elimination order (crossed plates).
        StructureError: a term lacks a plate of one of its variables and has no link to it.
    """
    planner = _Planner(variables, scopes, plates, scales or {}, exact, nest, chains or {})
    for term in terms:
        links = {(link.source, link.target): link.key for link in term.links}
        slot = planner.new(term.axes, links)
        missing = planner.need(slot) - set(term.axes) - {target for _, target in links}
        if missing:
            raise StructureError(f"factor {term.name!r} has no axis and no link for plates {sorted(missing)}")
    return planner.plan(tuple(terms), planner.run(list(range(len(terms)))))
