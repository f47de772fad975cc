"""Walk a plan backwards, for draws and for the best combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    looked_up,
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

        return _walk_back(plan, slots, index, sum_rule, pick)

    return jax.vmap(one)(rng_keys)


def best(plan: Plan, arrays: Slots, index: Index) -> dict[str, Any]:
    """The combination of particles with the largest weight: int [*scope plates] for every variable."""
    slots = forward(plan, arrays, index, _max_rule)
    return _walk_back(plan, slots, index, _max_rule, lambda logits, *position: jnp.argmax(logits, -1))


def _max_rule(left: Any, right: Any, count: int) -> Any:
    total = left + right
    return jnp.max(total, tuple(range(total.ndim - count, total.ndim)))


def _back_along_chain(
    plan: Plan,
    step: Chain,
    slots: Slots,
    index: Index,
    rule: Callable,
    pick: Callable[..., Any],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """Choose the states at all steps given those at the end: int [*scope] for chained variables and their earlier states."""
    alphas, _ = along_chain(plan, step, slots, index, rule)
    order = {new: old for old, new in step.renamed.items()}
    kept = {v: c for v, c in chosen.items() if v in step.body.scope}

    def back(states: dict[str, Any], item: tuple[Any, Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        time, alpha, factors = item
        own = {order[lag]: state for lag, state in states.items()}
        inner = forward(step.body, dict(enumerate((alpha, *factors))), index, rule)

        def pick_now(logits: Any, *position: Any) -> Any:
            return pick(logits, time, *position)

        found = _walk_back(step.body, inner, index, rule, pick_now, {**kept, **own})
        return {lag: found[lag] for lag in states}, {names[0]: found[names[0]] for names in step.states}

    last = {
        lag: chosen[end]
        for names, ends in zip(step.states, step.ends, strict=True)
        for lag, end in zip(names[1:], ends, strict=True)
    }
    times = jnp.arange(plan.size[step.plate])
    _, paths = jax.lax.scan(back, last, (times, alphas, by_step(plan, step, slots)), reverse=True)
    out = {}
    for names in step.states:
        for lag, name in enumerate(names):
            path = paths[names[0]][jnp.maximum(times - lag, 0)]
            out[name] = jnp.moveaxis(path, 0, plan.scope[names[0]].index(step.plate))
    return out


def _back_through_parts(
    plan: Plan,
    step: Sliced,
    slots: Slots,
    index: Index,
    rule: Callable,
    pick: Callable[..., Any],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """Choose what is summed inside of the parts: of a variable in one that is chosen first, of a plate in all."""
    known = looked_up(step.body, index)
    cut = cut_sources(plan, step, slots)

    def within(item: Any, *position: Any) -> dict[str, Any]:
        def pick_inside(logits: Any, *where: Any) -> Any:
            return pick(logits, 1, *position, *where)

        inner = forward(step.body, one_part(plan, step, slots, *item), known, rule)
        found = _walk_back(step.body, inner, known, rule, pick_inside, chosen)
        return {v: found[v] for v in found if v not in chosen}

    if step.axis not in plan.scope:
        # in scopes, plates are in alphabetical order
        found = jax.lax.map(lambda item: within(item, item[0]), cut)
        return {v: _joined(x, plan.scope[v].index(step.axis)) for v, x in found.items()}

    parts = by_part(plan, step, slots, index, rule)
    part = pick(parts[(slice(None), *(chosen[a] for a in plan.axes[step.out]))], 0)

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


def _walk_back(
    plan: Plan,
    slots: Slots,
    index: Index,
    rule: Callable,
    pick: Callable[..., Any],
    chosen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Choose every summed variable given those chosen already, last step first."""
    chosen = dict(chosen or {})
    for position in reversed(range(len(plan.steps))):
        step = plan.steps[position]
        if isinstance(step, Chain | Sliced):

            def pick_step(logits: Any, *where: Any, position: int = position) -> Any:
                return pick(logits, position, *where)

            if isinstance(step, Chain):
                chosen |= _back_along_chain(plan, step, slots, index, rule, pick_step, chosen)
            else:
                chosen |= _back_through_parts(plan, step, slots, index, rule, pick_step, chosen)
            continue
        if not isinstance(step, Combine) or not step.eliminated:
            continue
        dims = [a for a in plan.axes[step.out] if a not in plan.scope]
        logits = _slice(plan, step, step.left, slots, chosen, dims, index)
        if step.right is not None:
            logits = logits + _slice(plan, step, step.right, slots, chosen, dims, index)
        counts = [plan.size[v] for v in step.eliminated]
        flat = pick(logits.reshape((*logits.shape[: len(dims)], -1)), position)
        for variable, found in zip(step.eliminated, jnp.unravel_index(flat, counts), strict=True):
            scope = plan.scope[variable]
            chosen[variable] = jnp.transpose(found, [dims.index(p) for p in scope])
    return chosen


def _slice(
    plan: Plan, step: Combine, slot: int, slots: Slots, chosen: Mapping[str, Any], dims: Sequence[str], index: Index
) -> Any:
    """One operand at the indices already chosen: an array over `dims`, then the eliminated variables."""
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
                where.append(index(links[source, plate])[grid[source]])
        return chosen[axis][tuple(where)] if where else chosen[axis]

    picked = slots[slot][tuple(at(a) for a in plan.axes[slot])]
    shape = [*(plan.size[d] for d in dims), *(plan.size[v] for v in step.eliminated)]
    return jnp.broadcast_to(picked, shape)


def _along(size: int, position: int, rank: int) -> Any:
    return jnp.arange(size).reshape([-1 if d == position else 1 for d in range(rank)])
