"""What a plan of a plated log-sum-product consists of.

A *variable* is a particle axis; its scope is the set of plates over which it has an index of its own. A *term* is an
array of log factors over some variables and plates. `kayn.contraction.build` makes plans of the kinds of steps that
`kayn.contraction.steps` has, `kayn.contraction.execute` runs them, `kayn.contraction.backward` goes back along them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from kayn.contraction.ways import LinkKey, Slots, Way, WayBack
from kayn.support.arrays import Array
from kayn.support.names import shown


@dataclass(frozen=True)
class PlateLink:
    """Rows of plate `source` belong to elements of plate `target`; `key` names the index vector."""

    source: str
    target: str
    key: LinkKey


@dataclass(frozen=True)
class Term:
    """A log factor: its axes (plates and variables, in the array's order), and the links to its variables' plates."""

    name: str
    axes: tuple[str, ...]
    links: tuple[PlateLink, ...] = ()


class Entries(NamedTuple):
    """Entries of the arrays that a step takes.

    Attributes:
        held: for the way back.
        passing: of the largest array that is formed and dropped again.
        apart: of all that is formed in one part, while nothing else is.
    """

    held: int
    passing: int = 0
    apart: int = 0


class Step(ABC):
    """One step of a plan: from the slots that it reads to slot `out`.

    A kind of step is a frozen dataclass with a file of its own in `kayn.contraction.steps`. What is abstract here is
    what every kind has to know; the rest says what most kinds do.
    """

    out: int

    @property
    @abstractmethod
    def read(self) -> tuple[int, ...]:
        """Slots, in order."""

    # -- structure

    @property
    def inner(self) -> Plan | None:
        """A plan that is run several times, if there is one."""
        return None

    @property
    def inner_read(self) -> tuple[int | None, ...]:
        """By term of `inner` the slot that it is a piece of; None for what the run before has left."""
        return ()

    @property
    def summed(self) -> tuple[str, ...]:
        """Variables that are summed here as a whole, so that their sum can be cut into parts."""
        return ()

    @property
    def aliases(self) -> tuple[str, ...]:
        """Variables that stand for another one elsewhere, and are no particles of their own."""
        return ()

    @property
    def power(self) -> tuple[str, float] | None:
        """The plate for whose sake all that is read counts several times, and how often, if there is one."""
        return None

    @abstractmethod
    def renumbered(self, number: Mapping[int, int]) -> Step:
        """The step with other numbers for its slots."""

    def resized(self, axis: str, size: int) -> Step:
        """The step where an axis has another size."""
        return self

    def together(self, plan: Plan, before: Step) -> Step | None:
        """One step in the place of this and the one that makes what nothing else reads; None where that cannot be."""
        return None

    # -- what it costs, and its text

    @abstractmethod
    def flops(self, plan: Plan) -> int:
        """Multiply-adds (in the log semiring)."""

    def streamed(self, plan: Plan) -> int:
        """Of these, those whose operands are read for nothing else, so that their time is that of memory."""
        return 0

    def formed(self, plan: Plan) -> tuple[str, ...]:
        """Axes of the largest array that is formed, outside of `inner`."""
        return plan.axes[self.out]

    @abstractmethod
    def entries(self, plan: Plan, inner: tuple[int, int]) -> Entries:
        """Entries of its arrays.

        Args:
            inner: those held, and those formed and dropped, in one run of `inner`.
        """

    @abstractmethod
    def lines(self, plan: Plan) -> list[str]:
        """What the step does, as lines of text."""

    # -- the way forward

    def is_due(self, slots: Slots) -> bool:
        """Whether the step is to be run; its caller may have gone past it."""
        return True

    @abstractmethod
    def forward(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """The array of slot `out`: its axes are `plan.axes[out]`."""

    # -- the way back

    def picks(self, plan: Plan) -> tuple[int, ...] | None:
        """The shape of the picks that the step takes itself, outside of `inner`, if it takes any."""
        return None

    def back(
        self, plan: Plan, slots: Slots, way: WayBack, number: Array | None, chosen: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The particles of the variables that vanish here: int [*scope plates] by variable.

        Args:
            slots: all that was made going forward.
            way: places along it are those inside of the step.
            number: for its own picks, an array of their shape.
            chosen: the particles of variables that vanish later.
        """
        return {}


class Nested(Step):
    """A step that runs a plan of its own several times, on pieces of what it reads."""

    sources: tuple[int, ...]
    body: Plan

    @property
    def read(self) -> tuple[int, ...]:
        """What the pieces are of."""
        return self.sources

    @property
    def inner(self) -> Plan:
        """One run."""
        return self.body


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

    def resized(self, axis: str, size: int) -> Plan:
        """The plan where an axis has another size."""
        sizes = tuple((a, size if a == axis else n) for a, n in self.sizes)
        return replace(self, sizes=sizes, steps=tuple(s.resized(axis, size) for s in self.steps))

    @property
    def flops(self) -> int:
        """Multiply-adds (in the log semiring) over all steps."""
        return sum(step.flops(self) for step in self.steps)

    @property
    def peak_axes(self) -> tuple[str, ...]:
        """Axes of the largest array that a step forms (terms, which may be evaluated in parts, not counted)."""
        return self._peak[1]

    @property
    def peak_elements(self) -> int:
        """Entries of the largest array that a step forms."""
        return self._peak[0]

    @property
    def _peak(self) -> tuple[int, tuple[str, ...]]:
        formed = [s.formed(self) for s in self.steps]
        sized = [(math.prod(self.size[a] for a in axes), axes) for axes in formed]
        sized += [s.inner._peak for s in self.steps if s.inner is not None]
        return max(sized, key=lambda found: found[0], default=(1, ()))

    @property
    def log10_combinations(self) -> float:
        """log10 of the number of particle combinations that the contraction sums over."""
        size = self.size
        repeated = {v for s in self.steps for v in s.aliases}
        scopes = [(v, plates) for v, plates in self.scopes if v not in repeated]
        return sum(math.log10(size[v]) * math.prod(size[p] for p in plates) for v, plates in scopes)

    def __str__(self) -> str:
        """Operations and the largest array, then a line for every step with the axes before and after it."""
        lines = [f"contraction: {self.flops:.3g} flops, largest array {self.peak_elements:.3g} elements"]
        return shown("\n".join((*lines, *self.lines)))

    @property
    def lines(self) -> list[str]:
        """What the steps do, as indented lines of text."""
        return [f"  {line}" for step in self.steps for line in step.lines(self)]


class Stuck(Exception):
    """No elimination order exists; `blocked` pairs variables with those of their plates that are in the way."""

    def __init__(self, blocked: tuple[tuple[str, frozenset[str]], ...]):
        super().__init__(f"no elimination order: {blocked}")
        self.blocked = blocked
