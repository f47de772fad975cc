"""Walk a plan backwards, for draws and for the best combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

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
        def pick(logits: Any, *position: Any) -> Any:
            return jax.random.categorical(reduce(jax.random.fold_in, position, key), logits)

        return _Walk(plan, slots, index, sum_rule, pick).choose({})

    return jax.vmap(one)(rng_keys)


def best(plan: Plan, arrays: Slots, index: Index) -> dict[str, Any]:
    """The combination of particles with the largest weight: int [*scope plates] for every variable."""
    slots = forward(plan, arrays, index, _max_rule)
    return _Walk(plan, slots, index, _max_rule, lambda logits, *position: jnp.argmax(logits, -1)).choose({})


def _max_rule(left: Any, right: Any, count: int) -> Any:
    total = left + right
    return jnp.max(total, tuple(range(total.ndim - count, total.ndim)))


@dataclass(frozen=True, eq=False)
class _Walk:
    """A way back along a plan.

    Attributes:
        slots: what going forward by `rule` made of the plan's steps.
        pick: chooses an index of the last dimension of logits; further arguments tell the place in the walk.
    """

    plan: Plan
    slots: Slots
    index: Index
    rule: Callable
    pick: Callable[..., Any]

    def inside(self, body: Plan, arrays: Slots, index: Index, *place: Any) -> _Walk:
        """A walk along the body of a step."""
        inner = forward(body, arrays, index, self.rule)
        return _Walk(body, inner, index, self.rule, lambda logits, *where: self.pick(logits, *place, *where))

    def choose(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Every summed variable given those chosen already, last step first."""
        chosen = dict(chosen)
        for position, step in reversed(list(enumerate(self.plan.steps))):
            if isinstance(step, Chain):
                chosen |= self.along_chain(step, position, chosen)
            elif isinstance(step, Sliced):
                chosen |= self.through_parts(step, position, chosen)
            elif isinstance(step, Combine) and step.eliminated:
                chosen |= self.in_step(step, position, chosen)
        return chosen

    def in_step(self, step: Combine, position: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a pairwise step sums."""
        plan = self.plan
        dims = [a for a in plan.axes[step.out] if a not in plan.scope]
        logits = self.operand(step, step.left, chosen, dims)
        if step.right is not None:
            logits = logits + self.operand(step, step.right, chosen, dims)
        flat = self.pick(logits.reshape((*logits.shape[: len(dims)], -1)), position)
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

    def through_parts(self, step: Sliced, position: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What is summed inside of the parts: of a variable in one that is chosen first, of a plate in all."""
        plan, cut = self.plan, cut_sources(self.plan, step, self.slots)
        known = look_up((link for links in step.body.links for link in links), self.index).__getitem__

        def within(item: Any, *place: Any) -> dict[str, Any]:
            arrays = one_part(plan, step, self.slots, *item)
            found = self.inside(step.body, arrays, known, position, 1, *place).choose(chosen)
            return {v: found[v] for v in found if v not in chosen}

        if not step.of_variable:
            found = jax.lax.map(lambda item: within(item, item[0]), cut)
            return {v: _joined(x, plan.scope[v].index(step.axis)) for v, x in found.items()}

        parts = by_part(plan, step, self.slots, self.index, self.rule)
        part = self.pick(parts[(slice(None), *(chosen[a] for a in plan.axes[step.out]))], position, 0)

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
