"""Run a plan: forward for the log evidence, and back along it for draws and for the best combination."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from kayn.contraction.kernels import expand, log_sum_exp, segment_sum
from kayn.contraction.logdot import log_matmul
from kayn.contraction.plan import Chain, Combine, LinkKey, Plan, Product

Index = Callable[[LinkKey], Any]
"""Looks up the index vector of a link."""


Slots = Mapping[int, Any]
"""Arrays by slot of the plan: terms, or what `settled` steps made of them."""


def settled_slot(plan: Plan, term: int) -> tuple[tuple[Product, ...], int]:
    """The plate products that a term goes through before it meets another, and the slot they end in.

    A caller may apply them itself, part by part, so that the rows of a large factor are never all held at once.
    """
    steps: list[Product] = []
    slot = term
    for step in plan.steps:
        if isinstance(step, Product) and step.source == slot:
            steps.append(step)
            slot = step.out
    return tuple(steps), slot


def apply_products(plan: Plan, steps: Sequence[Product], array: Any, index: Index, without: Sequence[str] = ()) -> Any:
    """Apply plate products to an array whose axes are those of the first step's source, less `without`."""
    for step in steps:
        axes = [a for a in plan.axes[step.source] if a not in without]
        array = _product(plan, step, array, axes, index)
    return array


def log_contract(plan: Plan, arrays: Slots, index: Index) -> Any:
    """`log mean_k prod exp(terms)`: a scalar, differentiable in the arrays.

    Args:
        arrays: log factors by slot, one for every term of the plan (axes in the term's order) or for its settled slot.
        index: index vectors of the plan's links.
    """
    return _total(plan, _forward(plan, arrays, index, _sum_rule))


def by_element(plan: Plan, arrays: Slots, index: Index, plate: str) -> Any:
    """The summands of `log_contract` by the elements of a plate that all variables have an index over: [plate].

    Factors without variables are left out.
    """
    slots = _forward(plan, arrays, index, _sum_rule)
    scales = {s.plate: s.scale for s in plan.steps if isinstance(s, Product)}
    total = jnp.zeros(plan.size[plate], jax.tree.leaves(dict(arrays))[0].dtype)
    depends = _with_variables(plan)
    for step in plan.steps:
        if isinstance(step, Product) and step.plate == plate and step.source in depends:
            axes = plan.axes[step.source]
            rest = [a for a in axes if a != plate]
            part = jnp.sum(slots[step.source], tuple(axes.index(a) for a in rest))
            total = total + part * math.prod(scales[a] for a in rest)
    return total


def _with_variables(plan: Plan) -> set[int]:
    """Slots that hold what is left of a factor of some variable, but no variable any more."""
    seen = {i for i, term in enumerate(plan.terms) if any(a in plan.scope for a in term.axes)}
    for step in plan.steps:
        sources = (
            {step.source}
            if isinstance(step, Product)
            else set(step.sources)
            if isinstance(step, Chain)
            else {step.left, step.right}
        )
        if sources & seen:
            seen.add(step.out)
    return {s for s in seen if not any(a in plan.scope for a in plan.axes[s])}


def draw(plan: Plan, arrays: Slots, index: Index, rng_keys: Any) -> dict[str, Any]:
    """Exact joint draws of all particle indices.

    The forward pass is shared; for every key the plan is then walked backwards, drawing each eliminated variable from
    its conditional given those drawn already (Bowyer, Heap & Aitchison, UAI 2024, section on sampling).

    Returns:
        For every variable, int [num draws, *scope plates] in the order of `plan.scope`.
    """
    slots = _forward(plan, arrays, index, _sum_rule)

    def one(key: Any) -> dict[str, Any]:
        def pick(logits: Any, *position: Any) -> Any:
            return jax.random.categorical(reduce(jax.random.fold_in, position, key), logits)

        return _walk_back(plan, slots, index, _sum_rule, pick)

    return jax.vmap(one)(rng_keys)


def best(plan: Plan, arrays: Slots, index: Index) -> dict[str, Any]:
    """The combination of particles with the largest weight: int [*scope plates] for every variable."""
    slots = _forward(plan, arrays, index, _max_rule)
    return _walk_back(plan, slots, index, _max_rule, lambda logits, *position: jnp.argmax(logits, -1))


def _sum_rule(left: Any, right: Any, count: int) -> Any:
    return log_sum_exp(left, right, count)


def _max_rule(left: Any, right: Any, count: int) -> Any:
    total = left + right
    return jnp.max(total, tuple(range(total.ndim - count, total.ndim)))


def _forward(plan: Plan, arrays: Slots, index: Index, rule: Callable) -> dict[int, Any]:
    slots = dict(arrays)
    for step in plan.steps:
        if step.out in slots:
            continue
        if isinstance(step, Combine):
            slots[step.out] = _combine(plan, step, slots, rule)
        elif isinstance(step, Chain):
            slots[step.out] = _along_chain(plan, step, slots, index, rule)[1]
        elif step.source in slots:
            slots[step.out] = _product(plan, step, slots[step.source], plan.axes[step.source], index)
    return slots


def _total(plan: Plan, slots: Slots) -> Any:
    total = slots[plan.results[0]]
    for slot in plan.results[1:]:
        total = total + slots[slot]
    return total


def _combine(plan: Plan, step: Combine, slots: Slots, rule: Callable) -> Any:
    if rule is _sum_rule and plan.is_matmul(step):
        return _multiply_matrices(plan, step, slots) - step.norm
    order = plan.joint_axes(step)
    left = expand(slots[step.left], plan.axes[step.left], order)
    right = jnp.zeros((1,) * len(order), left.dtype)
    if step.right is not None:
        right = expand(slots[step.right], plan.axes[step.right], order)
    if not step.eliminated:
        return left + right
    return rule(left, right, len(step.eliminated)) - step.norm


def _multiply_matrices(plan: Plan, step: Combine, slots: Slots) -> Any:
    """A pairwise step in which both operands have axes of their own: a batched matrix product in the log semiring."""
    assert step.right is not None
    size, out = plan.size, plan.axes[step.out]
    left_axes, right_axes = plan.axes[step.left], plan.axes[step.right]
    batch = [a for a in out if a in left_axes and a in right_axes]
    rows = [a for a in out if a not in right_axes]
    columns = [a for a in out if a not in left_axes]
    summed = list(step.eliminated)

    def matrix(slot: int, axes: Sequence[str], order: Sequence[Sequence[str]]) -> Any:
        array = jnp.transpose(slots[slot], [axes.index(a) for group in order for a in group])
        return array.reshape([math.prod(size[a] for a in group) for group in order])

    product = log_matmul(
        matrix(step.left, left_axes, (batch, rows, summed)), matrix(step.right, right_axes, (batch, summed, columns))
    )
    order = (*batch, *rows, *columns)
    return jnp.transpose(product.reshape([size[a] for a in order]), [order.index(a) for a in out])


def _product(plan: Plan, step: Product, array: Any, axes: Sequence[str], index: Index) -> Any:
    position = axes.index(step.plate)
    if step.links:
        rows = jnp.moveaxis(array, position, 0)
        array = segment_sum(
            rows, [index(link.key) for link in step.links], [plan.size[link.target] for link in step.links]
        )
    else:
        array = jnp.sum(array, position)
    return array if step.scale == 1.0 else array * step.scale


def _along_chain(plan: Plan, step: Chain, slots: Slots, index: Index, rule: Callable) -> tuple[Any, Any]:
    """The array over states before every step, [T, ...], and after the last."""
    before = step.body.axes[0]
    after = [step.renamed.get(a, a) for a in step.body.axes[step.body.results[0]]]

    def forward(alpha: Any, factors: Sequence[Any]) -> tuple[Any, Any]:
        found = _forward(step.body, dict(enumerate((alpha, *factors))), index, rule)[step.body.results[0]]
        return jnp.transpose(found, [after.index(a) for a in before]), alpha

    factors = _by_step(plan, step, slots)
    start = jnp.full([step.body.size[a] for a in before], step.start, factors[0].dtype)
    last, alphas = jax.lax.scan(forward, start, factors)
    return alphas, last


def _by_step(plan: Plan, step: Chain, slots: Slots) -> list[Any]:
    """Factors of a chain, steps first."""
    return [jnp.moveaxis(slots[s], plan.axes[s].index(step.plate), 0) for s in step.sources]


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
    alphas, _ = _along_chain(plan, step, slots, index, rule)
    order = {new: old for old, new in step.renamed.items()}
    kept = {v: c for v, c in chosen.items() if v in step.body.scope}

    def back(states: dict[str, Any], item: tuple[Any, Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        time, alpha, factors = item
        own = {order[lag]: state for lag, state in states.items()}
        inner = _forward(step.body, dict(enumerate((alpha, *factors))), index, rule)

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
    _, paths = jax.lax.scan(back, last, (times, alphas, _by_step(plan, step, slots)), reverse=True)
    out = {}
    for names in step.states:
        for lag, name in enumerate(names):
            path = paths[names[0]][jnp.maximum(times - lag, 0)]
            out[name] = jnp.moveaxis(path, 0, plan.scope[names[0]].index(step.plate))
    return out


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
        if isinstance(step, Chain):

            def pick_step(logits: Any, *where: Any, position: int = position) -> Any:
                return pick(logits, position, *where)

            chosen |= _back_along_chain(plan, step, slots, index, rule, pick_step, chosen)
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
