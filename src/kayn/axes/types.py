"""Particle axes, couplings and constraints: plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from kayn.contraction.plan import Plan, Term
from kayn.support.names import RESERVED, joined, shown

PROPOSAL = f"{RESERVED}proposal:"


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
        """One line: which latents, what they share, and the reason in parentheses."""
        what = f"one particle index over {', '.join(self.plates)}" if self.plates else "share one particle axis"
        return shown(f"{', '.join(self.latents)}: {what} ({self.reason})")


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
    operations: float = 0.0
    """What a step takes (`kayn.axes.rules.by_cost.operations`)."""

    @property
    def memory_left(self) -> int:
        """Bytes that the contraction may take."""
        return self.memory - self.beside

    def axis_of(self, latent: str) -> Axis:
        """The particle axis of a latent; for a chain's latent at another step, that of the chain then."""
        return axis_of(self.batched, latent)

    def axes_of(self, term: Term) -> list[Axis]:
        """The particle axes of a term, in order."""
        return [a for name in term.axes for a in self.batched if a.name == name]


@dataclass(frozen=True)
class Constraint:
    """A demand of the guide: `latents` are drawn jointly, and its density does not factorise over some batch
    dimensions.

    `joint_dims` lists these as (latent, batch dimension).
    """

    latents: tuple[str, ...]
    joint_dims: tuple[tuple[str, int], ...]
    reason: str


def axis_name(latents: Sequence[str]) -> str:
    """Kept apart from plate names, which may be anything that a user writes."""
    return f"{RESERVED}K[{joined(latents)}]"


def proposal_name(axis: Axis) -> str:
    """The term that holds minus the log proposal density of an axis."""
    return f"{PROPOSAL}{axis.name}"


def axis_of(axes: Sequence[Axis], latent: str) -> Axis:
    """The one of some axes that a latent is on.

    Raises:
        StopIteration: it is on none.
    """
    return next(a for a in axes if latent in a.latents)


def axes_of_terms(terms: Iterable[Sequence[str]], axes: Sequence[Axis]) -> tuple[tuple[Axis, ...], ...]:
    """The axes of every term of a sum, given the latents of each; terms that share an axis are one."""
    groups: list[set[str]] = []
    for latents in terms:
        mine = {a.name for a in axes if any(n in a.latents for n in latents)}
        groups = [*(g for g in groups if not g & mine), mine.union(*(g for g in groups if g & mine))]
    return tuple(tuple(a for a in axes if a.name in g) for g in groups)


def pairs_of(axes: Iterable[Axis]) -> list[tuple[Axis, Axis]]:
    """Axes with as many drawn particles, which can be merged."""
    free = [a for a in axes if not a.enumerated and a.size > 1]
    return [(a, b) for a, b in combinations(free, 2) if a.size == b.size]
