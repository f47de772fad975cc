"""Run a plan for the log evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kayn.contraction.chain_rounds import sum_over_paths, worthwhile
from kayn.contraction.fuse import joined
from kayn.contraction.logmatmul import log_matmul
from kayn.contraction.logsum import expand, log_sum_exp, segment_sum
from kayn.contraction.plan import Chain, Combine, LinkKey, Plan, PlateLink, Product, Sliced
from kayn.xla.compilation import LANES

Index = Callable[[LinkKey], Any]
"""Looks up the index vector of a link."""


Slots = Mapping[int, Any]
"""Arrays by slot of the plan: terms, or what `settled` steps made of them.

In the place of a term with the axis of a sliced variable may stand a `jax.tree_util.Partial` that makes, from the number of the first particle
of a part, what the body's settled steps make of that part.
"""


def settled_slot(plan: Plan, term: int, keep: str | None = None) -> tuple[tuple[Product, ...], int]:
    """The plate products that a term goes through before it meets another, and the slot they end in.

    A caller may apply them itself, part by part, so that the rows of a large factor are never all held at once.

    Args:
        keep: a plate to stop before.
    """
    steps: list[Product] = []
    slot = term
    for step in plan.steps:
        if isinstance(step, Product) and step.source == slot:
            if step.plate == keep:
                break
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
    return total(plan, forward(joined(plan), arrays, index, sum_rule))


def by_element(plan: Plan, arrays: Slots, index: Index, plate: str) -> tuple[Any, Any]:
    """`log_contract` as a sum over the elements of a plate that all variables have an index over.

    Args:
        arrays: as for `log_contract`, but with that plate where a term has it (see `settled_slot`).

    Returns:
        The summands, [plate], before the plate's own scale, and what no element owns: the sum of the terms without the plate, a scalar.
    """
    slots = forward(plan, arrays, index, sum_rule)
    scales = {s.plate: s.scale for s in plan.steps if isinstance(s, Product)}
    dtype = jax.tree.leaves(dict(arrays))[0].dtype
    summands, owned = jnp.zeros(plan.size[plate], dtype), set()
    for step in plan.steps:
        if isinstance(step, Product) and step.plate == plate:
            axes = plan.axes[step.source]
            rest = [a for a in axes if a != plate]
            part = jnp.sum(slots[step.source], tuple(axes.index(a) for a in rest))
            summands = summands + part * math.prod(scales[a] for a in rest)
            owned.add(step.out)
        elif owned.intersection(step.read):
            owned.add(step.out)
    others = [slots[r] for r in plan.results if r not in owned]
    return summands, sum(others, jnp.zeros((), dtype))


def sum_rule(left: Any, right: Any, count: int) -> Any:
    """How a pairwise step sums over the last `count` axes of both operands' sum."""
    return log_sum_exp(left, right, count)


def forward(plan: Plan, arrays: Slots, index: Index, rule: Callable) -> dict[int, Any]:
    """All slots."""
    slots = dict(arrays)
    for step in plan.steps:
        if step.out in slots:
            continue
        if isinstance(step, Combine):
            slots[step.out] = _combine(plan, step, slots, rule)
        elif isinstance(step, Chain):
            slots[step.out] = _chain(plan, step, slots, index, rule)
        elif isinstance(step, Sliced):
            slots[step.out] = _through_parts(plan, step, slots, index, rule)
        elif step.source in slots:
            slots[step.out] = _product(plan, step, slots[step.source], plan.axes[step.source], index)
    return slots


def total(plan: Plan, slots: Slots) -> Any:
    """What is left of all factors at the end: a scalar."""
    found = slots[plan.results[0]]
    for slot in plan.results[1:]:
        found = found + slots[slot]
    return found


def _combine(plan: Plan, step: Combine, slots: Slots, rule: Callable) -> Any:
    if rule is sum_rule and plan.is_matmul(step):
        return _multiply_matrices(plan, step, slots) - step.norm
    order = plan.joint_axes(step)
    first, *rest = (expand(slots[s], plan.axes[s], order) for s in step.read)
    # two are added by the rule, which then needs no memory for their sum
    right = rest[0] if rest else jnp.zeros((1,) * len(order), first.dtype)
    left = sum(rest[1:], first)
    if not step.eliminated:
        return left + right
    return rule(left, right, len(step.eliminated)) - step.norm


def _multiply_matrices(plan: Plan, step: Combine, slots: Slots) -> Any:
    """A pairwise step in which both operands have axes of their own: a batched matrix product in the log semiring."""
    assert step.right is not None
    size, out = plan.size, plan.axes[step.out]

    def count(axes: Sequence[str]) -> int:
        return math.prod(size[a] for a in axes)

    def without(slot: int) -> list[str]:
        return [a for a in out if a not in plan.axes[slot]]

    def matrix(slot: int, order: Sequence[Sequence[str]]) -> Any:
        array = jnp.transpose(slots[slot], [plan.axes[slot].index(a) for group in order for a in group])
        return array.reshape([count(group) for group in order])

    left, right, summed = step.left, step.right, list(step.eliminated)
    if count(summed) > 2 and count(without(left)) < min(count(without(right)), 2 * LANES):
        # results are computed along their columns; of two terms so quickly that bringing them back into order would take longer
        left, right = right, left
    rows, columns = without(right), without(left)
    batch = [a for a in out if a not in (*rows, *columns)]
    product = log_matmul(matrix(left, (batch, rows, summed)), matrix(right, (batch, summed, columns)))
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


def _chain(plan: Plan, step: Chain, slots: Slots, index: Index, rule: Callable) -> Any:
    """The array over states after the last step."""
    if rule is sum_rule and worthwhile(plan, step):
        return sum_over_paths(step, _one_step(step, index, rule), by_step(plan, step, slots))
    return along_chain(plan, step, slots, index, rule)[1]


def _one_step(step: Chain, index: Index, rule: Callable) -> Callable[[Any, Sequence[Any]], Any]:
    """From an array over the states before a step and its factors to one over those after it."""
    before = step.body.axes[0]
    after = [step.renamed.get(a, a) for a in step.body.axes[step.body.results[0]]]

    def one_step(alpha: Any, factors: Sequence[Any]) -> Any:
        found = forward(step.body, dict(enumerate((alpha, *factors))), index, rule)[step.body.results[0]]
        return jnp.transpose(found, [after.index(a) for a in before])

    return one_step


def along_chain(plan: Plan, step: Chain, slots: Slots, index: Index, rule: Callable) -> tuple[Any, Any]:
    """The array over states before every step, [T, ...], and after the last."""
    one_step, factors = _one_step(step, index, rule), by_step(plan, step, slots)
    start = jnp.full([step.body.size[a] for a in step.body.axes[0]], step.start, factors[0].dtype)
    last, alphas = jax.lax.scan(lambda alpha, own: (one_step(alpha, own), alpha), start, factors)
    return alphas, last


def by_step(plan: Plan, step: Chain, slots: Slots) -> list[Any]:
    """Factors of a chain, steps first."""
    return [jnp.moveaxis(slots[s], plan.axes[s].index(step.plate), 0) for s in step.sources]


def _through_parts(plan: Plan, step: Sliced, slots: Slots, index: Index, rule: Callable) -> Any:
    parts = by_part(plan, step, slots, index, rule)
    if not step.of_variable:
        return parts
    parts = jnp.moveaxis(parts, 0, -1)
    return rule(parts, jnp.zeros((1,) * parts.ndim, parts.dtype), 1)


def by_part(plan: Plan, step: Sliced, slots: Slots, index: Index, rule: Callable) -> Any:
    """What the parts of a variable give, [parts, *out]; of a plate, their sum. Nothing else is kept of a part for the way back."""
    known = look_up((link for links in step.body.links for link in links), index).__getitem__

    @jax.checkpoint
    def part(item: Any) -> Any:
        return forward(step.body, one_part(plan, step, slots, *item), known, rule)[step.body.results[0]]

    cut = cut_sources(plan, step, slots)
    if step.of_variable:
        return jax.lax.map(part, cut)
    zero = jnp.zeros([plan.size[a] for a in plan.axes[step.out]], cut[1][next(iter(cut[1]))].dtype)
    return jax.lax.scan(lambda total, item: (total + part(item), None), zero, cut)[0]


def cut_sources(plan: Plan, step: Sliced, slots: Slots) -> tuple[Any, dict[int, Any]]:
    """Where every part begins, and by body slot the arrays with the axis: [parts, ...]."""
    arrays = {}
    for i, source in enumerate(step.sources):
        axes = plan.axes[source]
        if step.axis in axes and not callable(slots[source]):
            array = jnp.moveaxis(slots[source], axes.index(step.axis), 0)
            arrays[i] = array.reshape((step.parts, step.size, *array.shape[1:]))
    return jnp.arange(step.parts) * step.size, arrays


def one_part(plan: Plan, step: Sliced, slots: Slots, first: Any, arrays: Mapping[int, Any]) -> dict[int, Any]:
    """Arrays of the body's slots for one part."""
    own = {}
    for i, source in enumerate(step.sources):
        if i in arrays:
            own[i] = jnp.moveaxis(arrays[i], 0, plan.axes[source].index(step.axis))
        elif callable(slots[source]):
            own[settled_slot(step.body, i)[1]] = slots[source](first)
        else:
            own[i] = slots[source]
    return own


def look_up(links: Iterable[PlateLink], index: Index) -> dict[LinkKey, Any]:
    """Index vectors, looked up before a loop or another function begins: a memo must not keep what is computed inside."""
    return {link.key: index(link.key) for link in links}
