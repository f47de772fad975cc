"""Walk a plan backwards, for draws and for the best combination."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.contraction.execute import (
    Index,
    Slots,
    along_chain,
    by_part,
    by_step,
    cut_sources,
    forward,
    look_up,
    one_part,
    sum_rule,
    total,
)
from kayn.contraction.plan import Chain, Combine, Plan, Sliced


def draw(plan: Plan, arrays: Slots, index: Index, rng_keys: Any) -> dict[str, Any]:
    """Exact joint draws of all particle indices.

    The forward pass is shared; for every key the plan is then walked backwards, drawing each eliminated variable from
    its conditional given those drawn already (Bowyer, Heap & Aitchison, UAI 2024, section on sampling).

    Returns:
        For every variable, int [num draws, *scope plates] in the order of `plan.scope`.
    """
    slots = forward(plan, arrays, index, sum_rule)

    def one(key: Any) -> dict[str, Any]:
        def numbers(shapes: Sequence[tuple[int, ...]], *place: Any) -> list[Any]:
            sizes = [math.prod(shape) for shape in shapes]
            # at once: CPUs take longer to compile a generator of random numbers than the rest of a step
            drawn = jax.random.uniform(reduce(jax.random.fold_in, place, key), (sum(sizes),))
            parts = jnp.split(drawn, np.cumsum(sizes)[:-1])
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

        return _Walk(plan, slots, index, sum_rule, _by_share, numbers).choose({})

    return jax.vmap(one)(rng_keys)


def best(plan: Plan, arrays: Slots, index: Index) -> tuple[Any, dict[str, Any]]:
    """The largest log weight, and its combination of particles: int [*scope plates] for every variable."""
    slots = forward(plan, arrays, index, _max_rule)

    def largest(logits: Any, number: None) -> Any:
        return jnp.argmax(logits, -1)

    walk = _Walk(plan, slots, index, _max_rule, largest, lambda shapes, *place: [None] * len(shapes))
    return total(plan, slots), walk.choose({})


def _by_share(logits: Any, number: Any) -> Any:
    """The index along the last dimension whose share of the sum holds a number from [0, 1); none of share zero, 0 if all are."""
    top = jnp.max(logits, -1, keepdims=True)
    shares = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0.0))
    # long running sums need not rise evenly in floating point, and must not for an impossible index
    ends = jnp.where(shares > 0, jnp.cumsum(shares, -1), 0.0)
    total = jnp.max(ends, -1) * (1 - jnp.finfo(ends.dtype).eps)
    return jnp.argmax(ends > (number * total)[..., None], -1)


def _max_rule(left: Any, right: Any, count: int) -> Any:
    total = left + right
    return jnp.max(total, tuple(range(total.ndim - count, total.ndim)))


@dataclass(frozen=True, eq=False)
class _Walk:
    """A way back along a plan.

    Attributes:
        slots: what going forward by `rule` made of the plan's steps.
        pick: chooses an index of the last dimension of logits by a number for each of their other entries.
        numbers: those numbers for picks of several shapes at a place, which further arguments tell.
    """

    plan: Plan
    slots: Slots
    index: Index
    rule: Callable
    pick: Callable[[Any, Any], Any]
    numbers: Callable[..., Sequence[Any]]

    def inside(self, body: Plan, arrays: Slots, index: Index, *place: Any) -> _Walk:
        """A walk along the body of a step."""
        inner = forward(body, arrays, index, self.rule)
        return _Walk(
            body, inner, index, self.rule, self.pick, lambda shapes, *where: self.numbers(shapes, *place, *where)
        )

    def choose(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Every summed variable given those chosen already, last step first."""
        chosen = dict(chosen)
        steps = list(enumerate(self.plan.steps))
        shapes = {i: shape for i, step in steps if (shape := self.picks(step)) is not None}
        # places within steps begin with their positions
        drawn = self.numbers(list(shapes.values()), len(steps)) if shapes else ()
        numbers = dict(zip(shapes, drawn, strict=True))
        for position, step in reversed(steps):
            if isinstance(step, Chain):
                chosen |= self.along_chain(step, position, chosen)
            elif isinstance(step, Sliced):
                chosen |= self.through_parts(step, position, numbers.get(position), chosen)
            elif isinstance(step, Combine) and step.eliminated:
                chosen |= self.in_step(step, numbers[position], chosen)
        return chosen

    def picks(self, step: Any) -> tuple[int, ...] | None:
        """The shape of the picks that a step takes itself, if it takes any."""
        if isinstance(step, Sliced):
            return () if step.of_variable else None
        if isinstance(step, Combine) and step.eliminated:
            return tuple(self.plan.size[a] for a in self.plates(step))
        return None

    def plates(self, step: Combine) -> list[str]:
        """The plates of a pairwise step's result."""
        return [a for a in self.plan.axes[step.out] if a not in self.plan.scope]

    def in_step(self, step: Combine, number: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a pairwise step sums."""
        plan, dims = self.plan, self.plates(step)
        logits = self.operand(step, step.left, chosen, dims)
        if step.right is not None:
            logits = logits + self.operand(step, step.right, chosen, dims)
        flat = self.pick(logits.reshape((*logits.shape[: len(dims)], -1)), number)
        found = jnp.unravel_index(flat, [plan.size[v] for v in step.eliminated])
        return {
            v: jnp.transpose(index, [dims.index(p) for p in plan.scope[v]])
            for v, index in zip(step.eliminated, found, strict=True)
        }

    def operand(self, step: Combine, slot: int, chosen: Mapping[str, Any], dims: Sequence[str]) -> Any:
        """One operand at the indices already chosen: an array over `dims`, then the eliminated variables."""
        plan = self.plan
        rank = len(dims) + len(step.eliminated)
        grid = {a: _along(plan.size[a], i, rank) for i, a in enumerate((*dims, *step.eliminated))}
        links = {(link.source, link.target): link.key for link in plan.links[step.out]}

        def at(axis: str) -> Any:
            if axis in grid:
                return grid[axis]
            where = []
            for plate in plan.scope[axis]:
                if plate in grid:
                    where.append(grid[plate])
                else:
                    source = next(d for d in dims if (d, plate) in links)
                    where.append(self.index(links[source, plate])[grid[source]])
            return chosen[axis][tuple(where)] if where else chosen[axis]

        picked = self.slots[slot][tuple(at(a) for a in plan.axes[slot])]
        shape = [*(plan.size[d] for d in dims), *(plan.size[v] for v in step.eliminated)]
        return jnp.broadcast_to(picked, shape)

    def along_chain(self, step: Chain, position: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The states at all steps given those at the end: int [*scope] for chained variables and their earlier states."""
        plan = self.plan
        alphas, _ = along_chain(plan, step, self.slots, self.index, self.rule)
        order = {new: old for old, new in step.renamed.items()}
        kept = {v: c for v, c in chosen.items() if v in step.body.scope}

        def back(states: dict[str, Any], item: tuple[Any, Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            time, alpha, factors = item
            own = {order[lag]: state for lag, state in states.items()}
            walk = self.inside(step.body, dict(enumerate((alpha, *factors))), self.index, position, time)
            found = walk.choose({**kept, **own})
            return {lag: found[lag] for lag in states}, {names[0]: found[names[0]] for names in step.states}

        last = {
            lag: chosen[end]
            for names, ends in zip(step.states, step.ends, strict=True)
            for lag, end in zip(names[1:], ends, strict=True)
        }
        times = jnp.arange(plan.size[step.plate])
        _, paths = jax.lax.scan(back, last, (times, alphas, by_step(plan, step, self.slots)), reverse=True)
        out = {}
        for names in step.states:
            for lag, name in enumerate(names):
                path = paths[names[0]][jnp.maximum(times - lag, 0)]
                out[name] = jnp.moveaxis(path, 0, plan.scope[names[0]].index(step.plate))
        return out

    def through_parts(self, step: Sliced, position: int, number: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What is summed inside of the parts: of a variable in one that is chosen first, of a plate in all."""
        plan, cut = self.plan, cut_sources(self.plan, step, self.slots)
        known = look_up((link for links in step.body.links for link in links), self.index).__getitem__

        def within(item: Any, *place: Any) -> dict[str, Any]:
            arrays = one_part(plan, step, self.slots, *item)
            found = self.inside(step.body, arrays, known, position, *place).choose(chosen)
            return {v: found[v] for v in found if v not in chosen}

        if not step.of_variable:
            found = jax.lax.map(lambda item: within(item, item[0]), cut)
            return {v: _joined(x, plan.scope[v].index(step.axis)) for v, x in found.items()}

        parts = by_part(plan, step, self.slots, self.index, self.rule)
        part = self.pick(parts[(slice(None), *(chosen[a] for a in plan.axes[step.out]))], number)

        def choose(kept: dict[str, Any], item: Any) -> tuple[dict[str, Any], None]:
            here = item[0] == part * step.size
            return {v: jnp.where(here, found, kept[v]) for v, found in within(item).items()}, None

        # the parts' factors do not depend on what is drawn, so that all draws share one loop over the parts
        shapes = jax.eval_shape(within, jax.tree.map(lambda x: x[0], cut))
        found, _ = jax.lax.scan(choose, {v: jnp.zeros(s.shape, s.dtype) for v, s in shapes.items()}, cut)
        return {**found, step.axis: found[step.axis] + part * step.size}


def _joined(parts: Any, position: int) -> Any:
    """[parts, ..., size, ...] to [..., parts * size, ...]."""
    moved = jnp.moveaxis(parts, 0, position)
    return moved.reshape((*moved.shape[:position], -1, *moved.shape[position + 2 :]))


def _along(size: int, position: int, rank: int) -> Any:
    return jnp.arange(size).reshape([-1 if d == position else 1 for d in range(rank)])
