"""Add arrays and sum some of their variables out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp

from kayn.contraction.logmatmul import log_matmul
from kayn.contraction.logsum import expand
from kayn.contraction.plan import Entries, Plan, Step
from kayn.contraction.ways import Slots, Way, WayBack, sum_rule
from kayn.support.arrays import Array
from kayn.xla.compilation import LANES

LARGEST = 2**20
"""Entries of a sum up to which others join it: every factor that is added costs a pass over them on the way back."""


@dataclass(frozen=True)
class Combine(Step):
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
        """One or two slots, and those that were joined to them."""
        return (self.left, *(() if self.right is None else (self.right,)), *self.more)

    @property
    def summed(self) -> tuple[str, ...]:
        """All that vanish."""
        return self.eliminated

    def joint_axes(self, plan: Plan) -> tuple[str, ...]:
        """All axes that meet: those of the result, then the eliminated ones."""
        return (*plan.axes[self.out], *self.eliminated)

    def is_matmul(self, plan: Plan) -> bool:
        """Both operands have kept axes of their own and share all eliminated ones: a batched matrix product."""
        if self.right is None or not self.eliminated:
            return False
        left, right = set(plan.axes[self.left]), set(plan.axes[self.right])
        summed = set(self.eliminated)
        return summed <= left & right and bool(left - right) and bool(right - left)

    def renumbered(self, number: Mapping[int, int]) -> Combine:
        """The step with other numbers for its slots."""
        right = None if self.right is None else number[self.right]
        more = tuple(number[slot] for slot in self.more)
        return replace(self, left=number[self.left], right=right, out=number[self.out], more=more)

    def together(self, plan: Plan, before: Step) -> Combine | None:
        """The sum over what both sum, where neither is a matrix product that would be none any more."""
        if not isinstance(before, Combine) or not before.eliminated or self.more:
            return None
        other = self.right if before.out == self.left else self.left
        fits = other is None or set(plan.axes[other]) <= set(plan.axes[before.out])
        entries = math.prod(plan.size[a] for a in before.joint_axes(plan))
        if not fits or entries > LARGEST or before.is_matmul(plan):
            return None
        return replace(
            before,
            out=self.out,
            eliminated=(*before.eliminated, *self.eliminated),
            norm=before.norm + self.norm,
            more=before.more if other is None else (*before.more, other),
        )

    # -- what it costs, and its text

    def flops(self, plan: Plan) -> int:
        """One for each entry of the joint array, formed or not."""
        return math.prod(plan.size[a] for a in self.joint_axes(plan))

    def streamed(self, plan: Plan) -> int:
        """All, but for a matrix product: an exponential each, of an array that is read for nothing else."""
        return self.flops(plan) if self.eliminated and not self.is_matmul(plan) else 0

    def formed(self, plan: Plan) -> tuple[str, ...]:
        """The joint array is formed, but for a matrix product."""
        return plan.axes[self.out] if self.is_matmul(plan) else self.joint_axes(plan)

    def entries(self, plan: Plan, inner: tuple[int, int]) -> Entries:
        """The result is held; the joint array, but for a matrix product, is dropped."""
        joint = 0 if self.is_matmul(plan) else math.prod(plan.size[a] for a in self.joint_axes(plan))
        return Entries(plan.elements(self.out), joint)

    def lines(self, plan: Plan) -> list[str]:
        """The variables, and the axes before and after."""
        operands = " x ".join(f"[{', '.join(plan.axes[slot])}]" for slot in self.read)
        return [f"sum {', '.join(self.eliminated) or 'nothing'}: {operands} -> [{', '.join(plan.axes[self.out])}]"]

    # -- the way forward

    def forward(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """The sum by the rule; sums of weights as a matrix product where they are one."""
        if way.rule is sum_rule and self.is_matmul(plan):
            return self._multiply_matrices(plan, slots) - self.norm
        order = self.joint_axes(plan)
        first, *rest = (expand(slots[s], plan.axes[s], order) for s in self.read)
        # two are added by the rule, which then needs no memory for their sum
        right = rest[0] if rest else jnp.zeros((1,) * len(order), first.dtype)
        left = sum(rest[1:], first)
        if not self.eliminated:
            return left + right
        return way.rule(left, right, len(self.eliminated)) - self.norm

    def _multiply_matrices(self, plan: Plan, slots: Slots) -> Array:
        """Both operands have axes of their own: a batched matrix product in the log semiring."""
        assert self.right is not None
        size, out = plan.size, plan.axes[self.out]

        def count(axes: Sequence[str]) -> int:
            return math.prod(size[a] for a in axes)

        def without(slot: int) -> list[str]:
            return [a for a in out if a not in plan.axes[slot]]

        def matrix(slot: int, order: Sequence[Sequence[str]]) -> Array:
            array = jnp.transpose(slots[slot], [plan.axes[slot].index(a) for group in order for a in group])
            return array.reshape([count(group) for group in order])

        left, right, summed = self.left, self.right, list(self.eliminated)
        if count(summed) > 2 and count(without(left)) < min(count(without(right)), 2 * LANES):
            # results are computed along their columns; of two terms so quickly that bringing them back into order would
            # take longer
            left, right = right, left
        rows, columns = without(right), without(left)
        batch = [a for a in out if a not in (*rows, *columns)]
        product = log_matmul(matrix(left, (batch, rows, summed)), matrix(right, (batch, summed, columns)))
        order = (*batch, *rows, *columns)
        return jnp.transpose(product.reshape([size[a] for a in order]), [order.index(a) for a in out])

    # -- the way back

    def picks(self, plan: Plan) -> tuple[int, ...] | None:
        """One for every element of the plates of the result."""
        return tuple(plan.size[a] for a in self._plates(plan)) if self.eliminated else None

    def back(
        self, plan: Plan, slots: Slots, way: WayBack, number: Array | None, chosen: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The eliminated variables, jointly given those chosen."""
        if not self.eliminated:
            return {}
        dims = self._plates(plan)
        first, *rest = (self._at(plan, slots, slot, way, chosen) for slot in self.read)
        logits = sum(rest, first)
        flat = way.pick(logits.reshape((*logits.shape[: len(dims)], -1)), number)
        found = jnp.unravel_index(flat, [plan.size[v] for v in self.eliminated])
        back = {v: [dims.index(p) for p in plan.scope[v]] for v in self.eliminated}
        places = {v: jnp.transpose(i, back[v]) for v, i in zip(self.eliminated, found, strict=True)}
        for v in way.orders.keys() & places.keys():
            places[v] = jnp.take_along_axis(way.orders[v], places[v][..., None], -1)[..., 0]
        return places

    def _plates(self, plan: Plan) -> list[str]:
        """Of the result."""
        return [a for a in plan.axes[self.out] if a not in plan.scope]

    def _at(self, plan: Plan, slots: Slots, slot: int, way: WayBack, chosen: Mapping[str, Array]) -> Array:
        """An operand at the particles already chosen: [*plates of the result, *eliminated variables]."""
        dims = self._plates(plan)
        rank = len(dims) + len(self.eliminated)
        grid = {a: _along(plan.size[a], i, rank) for i, a in enumerate((*dims, *self.eliminated))}
        for v in way.orders.keys() & set(self.eliminated):
            order = jnp.transpose(way.orders[v], [*(plan.scope[v].index(p) for p in dims), len(dims)])
            grid[v] = jnp.expand_dims(order, [i for i in range(len(dims), rank) if (*dims, *self.eliminated)[i] != v])
        links = {(link.source, link.target): link.key for link in plan.links[self.out]}

        def at(axis: str) -> Array:
            if axis in grid:
                return grid[axis]
            where = []
            for plate in plan.scope[axis]:
                if plate in grid:
                    where.append(grid[plate])
                else:
                    source = next(d for d in dims if (d, plate) in links)
                    where.append(way.index(links[source, plate])[grid[source]])
            return chosen[axis][tuple(where)] if where else chosen[axis]

        picked = slots[slot][tuple(at(a) for a in plan.axes[slot])]
        shape = [*(plan.size[d] for d in dims), *(plan.size[v] for v in self.eliminated)]
        return jnp.broadcast_to(picked, shape)


def _along(size: int, position: int, rank: int) -> Array:
    return jnp.arange(size).reshape([-1 if d == position else 1 for d in range(rank)])
