"""What is to be evaluated: an output of a program on its particle axes, and the numbers that it is evaluated from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp

from kayn.axes.types import Axis, Layout
from kayn.contraction.execute import look_up
from kayn.contraction.plan import Plan
from kayn.contraction.steps.product import Product, settled_slot
from kayn.contraction.ways import Index, LinkKey
from kayn.graph.types import Graph, Kind, Output
from kayn.programs.trace import Program
from kayn.support.arrays import Array

Particles = Mapping[str, Any]
"""[K, *shape] for every latent, K that of the latent's axis; `Shared` for what was computed of several."""


@dataclass(frozen=True)
class Shared:
    """What several computations need of a program, computed once: an input of theirs like a latent's particles.

    Attributes:
        array: [*(K of every axis), *shape].
        axes: names of the particle axes in front.
    """

    array: Array
    axes: tuple[str, ...]

    def of_any(self) -> Array:
        """The value for the first particles."""
        return self.array[(0,) * len(self.axes)]

    def moved(self, order: Sequence[str]) -> Array:
        """The array with its particle axes in this order."""
        places = [self.axes.index(a) for a in order if a in self.axes]
        return jnp.transpose(self.array, (*places, *range(len(places), self.array.ndim)))


jax.tree_util.register_dataclass(Shared, ["array"], ["axes"])


@dataclass(frozen=True)
class Operands:
    """The numbers that a task is evaluated from.

    Attributes:
        particles: of all latents.
        inputs: the jaxpr's constants and inputs, anything in the places of latents.
        links: index vectors of the links that the task's products go through, by their key.
    """

    particles: Particles
    inputs: Sequence[Array]
    links: Mapping[LinkKey, Array] = field(default_factory=dict)


jax.tree_util.register_dataclass(Operands, ["particles", "inputs", "links"], [])


@dataclass(frozen=True, eq=False)
class Reduction:
    """An output on its particle axes, with the plate products that follow at once.

    Attributes:
        axes: its particle axes, in order.
        plan: the plan that the products are steps of.
        steps: the products, none for the output as it is.
    """

    output: Output
    axes: tuple[Axis, ...]
    plan: Plan
    steps: tuple[Product, ...]

    @property
    def entries(self) -> int:
        """Combinations of particles."""
        return math.prod(a.size for a in self.axes)

    @property
    def elements(self) -> int:
        """Entries of the array that the products reduce; none without products."""
        return math.prod(self.plan.size[a] for a in self.plan.axes[self.steps[0].source]) if self.steps else 0

    @cached_property
    def rows(self) -> frozenset[str]:
        """Plates that the products sum over."""
        return frozenset(s.plate for s in self.steps)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Plates and axes of the result."""
        if self.steps:
            return self.plan.axes[self.steps[-1].out]
        return (*(d for d in self.output.dims if d), *(a.name for a in self.axes))

    @cached_property
    def first(self) -> tuple[Product, ...]:
        """The plates that are summed as a whole, before any others."""
        return tuple(takewhile(lambda s: not s.links, self.steps))

    @property
    def left(self) -> tuple[Product, ...]:
        """The steps that come after those."""
        return self.steps[len(self.first) :]

    def of(self, program: Program) -> Task:
        """The same, to be computed by a program that has the output."""
        return Task(self.output, self.axes, self.plan, self.steps, program)


@dataclass(frozen=True, eq=False)
class Task(Reduction):
    """An output of a program to be evaluated. Structure alone; its numbers are `Operands`.

    Attributes:
        program: a traced program with an output of the output's name.
    """

    program: Program

    @property
    def name(self) -> str:
        """The site that the output is of."""
        return self.output.name

    @property
    def aval(self) -> Any:
        """Shape and type of the output in the program, for one particle: its dims, those of size one included."""
        return self.program.aval(self.output.traced)

    @property
    def is_log_factor(self) -> bool:
        """Whether the output is a log density, and not a value."""
        return jnp.issubdtype(self.aval.dtype, jnp.floating) and self.output.kind is not Kind.VALUE

    def operands(self, particles: Particles, inputs: Sequence[Array], index: Index) -> Operands:
        """Its numbers; links are looked up here, before a loop or another function begins."""
        links = look_up((link for step in self.steps for link in step.links), index)
        return Operands(dict(particles), list(inputs), links)


def reduction(graph: Graph, layout: Layout, slot: int, keep: str | None = None) -> Reduction:
    """The factor in one slot of a layout's plan, reduced until it meets another one, or before a plate to keep."""
    term = layout.plan.terms[slot]
    steps, _ = settled_slot(layout.plan, slot, keep)
    return Reduction(graph.output(term.name), tuple(layout.axes_of(term)), layout.plan, steps)
