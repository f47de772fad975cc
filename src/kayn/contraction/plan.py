"""What a plan of a plated log-sum-product consists of.

A *variable* is a particle axis; its scope is the set of plates over which it has an index of its own. A *term* is an array of log
factors over some variables and plates. `kayn.contraction.build` makes plans, `kayn.contraction.execute` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from kayn.support.names import shown

LinkKey = Hashable


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
    """Add arrays and log-sum over `eliminated` (empty: only add). `norm` is subtracted afterwards.

    A plan adds one or two; `kayn.contraction.fuse` makes steps that add `more`, which have no axes that those two lack.
    """

    left: int
    right: int | None
    out: int
    eliminated: tuple[str, ...]
    norm: float
    more: tuple[int, ...] = ()

    @property
    def read(self) -> tuple[int, ...]:
        """Slots that the step reads: one or two, and those that were joined to them."""
        return (self.left, *(() if self.right is None else (self.right,)), *self.more)


@dataclass(frozen=True)
class Product:
    """Multiply a plate out: sum log factors over `plate`, or into the elements of `targets` through links."""

    source: int
    out: int
    plate: str
    links: tuple[PlateLink, ...]
    scale: float

    @property
    def read(self) -> tuple[int, ...]:
        """The one slot that the step reads."""
        return (self.source,)


@dataclass(frozen=True)
class Chain:
    """Sum over all paths of some variables along plate `plate`, whose elements are the steps of a Markov chain.

    Going forward, an array `alpha` over the states of the last steps is multiplied with the factors of one step, and the
    oldest state is summed out.

    Attributes:
        sources: factors with the plate.
        out: [*the other plates, *kept variables, *ends].
        body: one step. Its first term is alpha, the others are the sources without the plate.
        states: for every chained variable its own name, then those of its earlier states, the latest first.
        ends: variables that stand for the last states of every chained variable.
        start: what alpha begins with, the same for all states.
    """

    sources: tuple[int, ...]
    out: int
    plate: str
    body: Plan
    states: tuple[tuple[str, ...], ...]
    ends: tuple[tuple[str, ...], ...]
    start: float

    @property
    def renamed(self) -> dict[str, str]:
        """From the names of states after a step to those before the next."""
        return {old: new for names in self.states for old, new in pairwise(names)}

    @property
    def read(self) -> tuple[int, ...]:
        """Slots that the step reads, the factors of all steps of the chain."""
        return self.sources


@dataclass(frozen=True)
class Sliced:
    """Sum over a variable without plates for some of its particles at a time, or multiply a plate out for some of its elements.

    Attributes:
        sources: what the parts are made of.
        out: what is left of them, without the axis.
        axis: the variable or plate, divided into `parts` parts of equal size.
        body: one part, its terms the sources; the axis is as long as a part.
    """

    sources: tuple[int, ...]
    out: int
    axis: str
    parts: int
    body: Plan

    @property
    def read(self) -> tuple[int, ...]:
        """Slots that the step reads, what its parts are made of."""
        return self.sources

    @property
    def cut(self) -> tuple[int, ...]:
        """Sources with the axis."""
        return tuple(s for s, axes in zip(self.sources, self.body.axes, strict=False) if self.axis in axes)

    @property
    def size(self) -> int:
        """Of a part."""
        return self.body.size[self.axis]

    @property
    def of_variable(self) -> bool:
        """Whether the axis is a variable and not a plate."""
        return self.axis in self.body.scope


Step = Combine | Product | Chain | Sliced


@dataclass(frozen=True)
class Chained:
    """How a variable's earlier states and last states are called.

    Attributes:
        plate: the steps.
        lags: variables for the states one step earlier, two steps earlier, ...
        ends: variables for the state at the last step, at the one before, ... (as many).
    """

    plate: str
    lags: tuple[str, ...]
    ends: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in static single assignment form: slot i holds term i at first, each step writes a new slot."""

    terms: tuple[Term, ...]
    steps: tuple[Step, ...]
    axes: tuple[tuple[str, ...], ...]
    links: tuple[tuple[PlateLink, ...], ...]
    results: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    scopes: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def size(self) -> dict[str, int]:
        """How many entries every variable and plate has, by name."""
        return dict(self.sizes)

    @property
    def scope(self) -> dict[str, tuple[str, ...]]:
        """The plates over which every variable has an index of its own, by variable."""
        return dict(self.scopes)

    def elements(self, slot: int) -> int:
        """How many entries the array in a slot has."""
        return math.prod(self.size[a] for a in self.axes[slot])

    @property
    def sums_in_parts(self) -> tuple[Sliced, ...]:
        """Steps that go through a variable's particles in parts."""
        return tuple(s for s in self.steps if isinstance(s, Sliced) and s.of_variable)

    @property
    def made_in_parts(self) -> dict[int, Sliced]:
        """Terms with the axis of such a variable, which are made part by part, with the step that asks for them."""
        return {slot: s for s in self.sums_in_parts for slot in s.cut}

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
            elif isinstance(step, Chain):
                total += self.size[step.plate] * step.body.flops
            elif isinstance(step, Sliced):
                total += step.parts * step.body.flops
            else:
                total += self.elements(step.source)
        return total

    @property
    def peak_axes(self) -> tuple[str, ...]:
        """Axes of the largest array that a step forms (terms themselves, which may be evaluated in parts, not counted)."""
        return self._peak[1]

    @property
    def peak_elements(self) -> int:
        """Entries of the largest array that a step forms."""
        return self._peak[0]

    @property
    def _peak(self) -> tuple[int, tuple[str, ...]]:
        formed = [
            self.joint_axes(s) if isinstance(s, Combine) and not self.is_matmul(s) else self.axes[s.out]
            for s in self.steps
        ]
        sized = [(math.prod(self.size[a] for a in axes), axes) for axes in formed]
        sized += [s.body._peak for s in self.steps if isinstance(s, Chain | Sliced)]
        return max(sized, key=lambda found: found[0], default=(1, ()))

    @property
    def log10_combinations(self) -> float:
        """log10 of the number of particle combinations that the contraction sums over."""
        size = self.size
        repeated = {v for s in _flat(self.steps) if isinstance(s, Chain) for v in chain_aliases(s)}
        scopes = [(v, plates) for v, plates in self.scopes if v not in repeated]
        return sum(math.log10(size[v]) * math.prod(size[p] for p in plates) for v, plates in scopes)

    def __str__(self) -> str:
        """Operations and the largest array, then a line for every step with the axes before and after it."""
        lines = [f"contraction: {self.flops:.3g} flops, largest array {self.peak_elements:.3g} elements"]
        for step in self.steps:
            if isinstance(step, Chain):
                lines.append(f"  chain along {step.plate}: [{', '.join(self.axes[step.out])}], every step:")
                lines += [f"  {line}" for line in str(step.body).splitlines()[1:]]
                continue
            if isinstance(step, Sliced):
                how = "sum" if step.of_variable else "multiply"
                lines.append(f"  {how} {step.axis} in {step.parts} parts of {step.size}:")
                lines += [f"  {line}" for line in str(step.body).splitlines()[1:]]
                continue
            source = ", ".join(self.axes[step.left if isinstance(step, Combine) else step.source])
            target = ", ".join(self.axes[step.out])
            if isinstance(step, Product):
                into = ", ".join(link.target for link in step.links)
                lines.append(f"  multiply {step.plate}{' into ' + into if into else ''}: [{source}] -> [{target}]")
            else:
                other = "" if step.right is None else f" x [{', '.join(self.axes[step.right])}]"
                lines.append(f"  sum {', '.join(step.eliminated) or 'nothing'}: [{source}]{other} -> [{target}]")
        return shown("\n".join(lines))


def _flat(steps: tuple[Step, ...]) -> Iterator[Step]:
    """All steps, those inside of parts too."""
    for step in steps:
        yield step
        if isinstance(step, Sliced):
            yield from _flat(step.body.steps)


def chain_aliases(step: Chain) -> tuple[str, ...]:
    """Variables that stand for a chained variable at other steps."""
    return tuple(v for names in (*(s[1:] for s in step.states), *step.ends) for v in names)


class Stuck(Exception):
    """No elimination order exists; `blocked` pairs variables with those of their plates that are in the way."""

    def __init__(self, blocked: tuple[tuple[str, frozenset[str]], ...]):
        super().__init__(f"no elimination order: {blocked}")
        self.blocked = blocked
