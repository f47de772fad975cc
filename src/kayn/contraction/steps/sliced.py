"""Sum over a variable, or multiply a plate out, in parts, so that arrays with that axis are never held whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from kayn.contraction.backward import choose
from kayn.contraction.execute import forward, look_up
from kayn.contraction.plan import Entries, Nested, Plan
from kayn.contraction.steps.product import settled_slot
from kayn.contraction.ways import Slots, Way, WayBack
from kayn.support.arrays import Array

AnyWay = TypeVar("AnyWay", bound=Way)

Piece = tuple[Array, dict[int, Array]]
"""Where a part begins, and by slot of its plan the pieces of arrays; or these of all parts: [parts, ...]."""


@dataclass(frozen=True)
class Sliced(Nested):
    """Sum over a variable without plates for some of its particles at a time, or multiply a plate out likewise.

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
    def inner_read(self) -> tuple[int | None, ...]:
        """A part of each source."""
        return self.sources

    @property
    def aliases(self) -> tuple[str, ...]:
        """Those inside of a part."""
        return tuple(v for step in self.body.steps for v in step.aliases)

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

    def renumbered(self, number: Mapping[int, int]) -> Sliced:
        """The step with other numbers for its slots."""
        return replace(self, sources=tuple(number[s] for s in self.sources), out=number[self.out])

    def resized(self, axis: str, size: int) -> Sliced:
        """The step where an axis has another size."""
        return replace(self, body=self.body.resized(axis, size))

    # -- what it costs, and its text

    def flops(self, plan: Plan) -> int:
        """Those of a part, for every part."""
        return self.parts * self.body.flops

    def entries(self, plan: Plan, inner: tuple[int, int]) -> Entries:
        """What is left is held, of a variable for every part; a part is formed anew on the way back."""
        held, passing = inner
        kept = plan.elements(self.out) * (self.parts if self.of_variable else 1)
        return Entries(kept, apart=4 * held // 3 + passing)

    def lines(self, plan: Plan) -> list[str]:
        """The axis and its parts, then the lines of one part."""
        how = "sum" if self.of_variable else "multiply"
        return [f"{how} {self.axis} in {self.parts} parts of {self.size}:", *self.body.lines]

    # -- the way forward

    def forward(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """The sum over the parts, one after the other."""
        parts = self._by_part(plan, slots, way)
        if not self.of_variable:
            return parts
        parts = jnp.moveaxis(parts, 0, -1)
        return way.rule(parts, jnp.zeros((1,) * parts.ndim, parts.dtype), 1)

    def _by_part(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """What the parts of a variable give, [parts, *out]; of a plate, their sum.

        Nothing else is kept of a part for the way back.
        """
        inside = self._known(way)

        @jax.checkpoint
        def part(item: Piece) -> Array:
            return forward(self.body, self._one_part(plan, slots, *item), inside)[self.body.results[0]]

        cut = self._cut_sources(plan, slots)
        if self.of_variable:
            return jax.lax.map(part, cut)
        zero = jnp.zeros([plan.size[a] for a in plan.axes[self.out]], cut[1][next(iter(cut[1]))].dtype)
        return jax.lax.scan(lambda total, item: (total + part(item), None), zero, cut)[0]

    def _known(self, way: AnyWay) -> AnyWay:
        """The same way, with index vectors looked up before the loop over the parts begins."""
        return replace(way, index=look_up((link for links in self.body.links for link in links), way.index).__getitem__)

    def _cut_sources(self, plan: Plan, slots: Slots) -> Piece:
        """Where every part begins, and by body slot the arrays with the axis: [parts, ...]."""
        arrays = {}
        for i, source in enumerate(self.sources):
            axes = plan.axes[source]
            if self.axis in axes and not callable(slots[source]):
                array = jnp.moveaxis(slots[source], axes.index(self.axis), 0)
                arrays[i] = array.reshape((self.parts, self.size, *array.shape[1:]))
        return jnp.arange(self.parts) * self.size, arrays

    def _one_part(self, plan: Plan, slots: Slots, first: Array, arrays: Mapping[int, Array]) -> dict[int, Array]:
        """Arrays of the body's slots for one part."""
        own = {}
        for i, source in enumerate(self.sources):
            if i in arrays:
                own[i] = jnp.moveaxis(arrays[i], 0, plan.axes[source].index(self.axis))
            elif callable(slots[source]):
                own[settled_slot(self.body, i)[1]] = slots[source](first)
            else:
                own[i] = slots[source]
        return own

    # -- the way back

    def picks(self, plan: Plan) -> tuple[int, ...] | None:
        """The part of a variable."""
        return () if self.of_variable else None

    def back(
        self, plan: Plan, slots: Slots, way: WayBack, number: Array | None, chosen: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What is summed inside of the parts: of a variable in one that is chosen first, of a plate in all."""
        cut, known = self._cut_sources(plan, slots), self._known(way)

        def within(item: Piece, way: WayBack) -> dict[str, Array]:
            made = forward(self.body, self._one_part(plan, slots, *item), way)
            found = choose(self.body, made, way, chosen)
            return {v: found[v] for v in found if v not in chosen}

        if not self.of_variable:
            found = jax.lax.map(lambda item: within(item, known.inside(item[0])), cut)
            return {v: _joined(x, plan.scope[v].index(self.axis)) for v, x in found.items()}

        parts = self._by_part(plan, slots, way)
        part = way.pick(parts[(slice(None), *(chosen[a] for a in plan.axes[self.out]))], number)

        def one(kept: dict[str, Array], item: Piece) -> tuple[dict[str, Array], None]:
            here = item[0] == part * self.size
            return {v: jnp.where(here, found, kept[v]) for v, found in within(item, known).items()}, None

        # the parts' factors do not depend on what is drawn, so that all draws share one loop over the parts
        shapes = jax.eval_shape(lambda item: within(item, known), jax.tree.map(lambda x: x[0], cut))
        found, _ = jax.lax.scan(one, {v: jnp.zeros(s.shape, s.dtype) for v, s in shapes.items()}, cut)
        return {**found, self.axis: found[self.axis] + part * self.size}


def in_parts(plan: Plan) -> tuple[Sliced, ...]:
    """The steps that go through an axis in parts."""
    return tuple(s for s in plan.steps if isinstance(s, Sliced))


def sums_in_parts(plan: Plan) -> tuple[Sliced, ...]:
    """The steps that go through a variable's particles in parts."""
    return tuple(s for s in in_parts(plan) if s.of_variable)


def made_in_parts(plan: Plan) -> dict[int, Sliced]:
    """Terms with the axis of such a variable, which are made part by part, with the step that asks for them."""
    return {slot: s for s in sums_in_parts(plan) for slot in s.cut}


def _joined(parts: Array, position: int) -> Array:
    """[parts, ..., size, ...] to [..., parts * size, ...]."""
    moved = jnp.moveaxis(parts, 0, position)
    return moved.reshape((*moved.shape[:position], -1, *moved.shape[position + 2 :]))
