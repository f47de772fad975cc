"""Multiply a plate out: sum log factors over its elements, or into the groups that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp

from kayn.contraction.logsum import segment_sum
from kayn.contraction.plan import Entries, Plan, PlateLink, Step
from kayn.contraction.ways import Index, Slots, Way
from kayn.support.arrays import Array
from kayn.xla.compilation import sum_of_rows


@dataclass(frozen=True)
class Product(Step):
    """Multiply a plate out: sum log factors over `plate`, or into the elements of `targets` through links."""

    source: int
    out: int
    plate: str
    links: tuple[PlateLink, ...]
    scale: float

    @property
    def read(self) -> tuple[int, ...]:
        """The one slot that is multiplied out."""
        return (self.source,)

    @property
    def power(self) -> tuple[str, float] | None:
        """The plate and its scale, where it has one: its rows stand for more than themselves."""
        return None if self.scale == 1.0 else (self.plate, self.scale)

    def renumbered(self, number: Mapping[int, int]) -> Product:
        """The step with other numbers for its slots."""
        return replace(self, source=number[self.source], out=number[self.out])

    def flops(self, plan: Plan) -> int:
        """An addition for each entry."""
        return plan.elements(self.source)

    def entries(self, plan: Plan, inner: tuple[int, int]) -> Entries:
        """None: it is part of the evaluation of a factor, or sums what is held already."""
        return Entries(0)

    def lines(self, plan: Plan) -> list[str]:
        """The plate, the targets of its links, and the axes before and after."""
        into = ", ".join(link.target for link in self.links)
        source, target = (", ".join(plan.axes[slot]) for slot in (self.source, self.out))
        return [f"multiply {self.plate}{' into ' + into if into else ''}: [{source}] -> [{target}]"]

    def is_due(self, slots: Slots) -> bool:
        """Not where a caller has multiplied rows out part by part, and gives what became of them."""
        return self.source in slots

    def forward(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """The sum over the plate, into the groups of links: [*targets, *rest]."""
        return self.of(plan, slots[self.source], plan.axes[self.source], way.index)

    def of(self, plan: Plan, array: Array, axes: Sequence[str], index: Index) -> Array:
        """The product of an array over `axes`: in their order without the plate, behind the targets of links."""
        position = axes.index(self.plate)
        if self.links:
            rows = jnp.moveaxis(array, position, 0)
            array = segment_sum(
                rows, [index(link.key) for link in self.links], [plan.size[link.target] for link in self.links]
            )
        else:
            array = sum_of_rows(array, position)
        return array if self.scale == 1.0 else array * self.scale


def products(plan: Plan) -> tuple[Product, ...]:
    """The steps that multiply plates out."""
    return tuple(s for s in plan.steps if isinstance(s, Product))


def settled_slot(plan: Plan, term: int, keep: str | None = None) -> tuple[tuple[Product, ...], int]:
    """The plate products that a term goes through before it meets another, and the slot they end in.

    A caller may apply them itself, part by part, so that the rows of a large factor are never all held at once.

    Args:
        keep: a plate to stop before.
    """
    steps: list[Product] = []
    slot = term
    for step in products(plan):
        if step.source == slot:
            if step.plate == keep:
                break
            steps.append(step)
            slot = step.out
    return tuple(steps), slot


def settling(plan: Plan) -> set[int]:
    """Slots of terms and of what plate products alone make of them."""
    slots = set(range(len(plan.terms)))
    for step in products(plan):
        if step.source in slots:
            slots.add(step.out)
    return slots


def apply_products(
    plan: Plan, steps: Sequence[Product], array: Array, index: Index, without: Sequence[str] = ()
) -> Array:
    """Apply plate products to an array whose axes are those of the first step's source, less `without`."""
    for step in steps:
        axes = [a for a in plan.axes[step.source] if a not in without]
        array = step.of(plan, array, axes, index)
    return array
