"""Walk a plan backwards, for draws and for the best combination."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.contraction.execute import forward, total
from kayn.contraction.plan import Plan
from kayn.contraction.ways import Index, Slots, Way, WayBack, max_rule, sum_rule
from kayn.support.arrays import Array, KeyArray
from kayn.support.shuffle import ROWS, shuffled
from kayn.xla.compilation import apart


def draw(plan: Plan, arrays: Slots, index: Index, rng_keys: KeyArray) -> dict[str, Array]:
    """Exact joint draws of all particle indices, see `draw_and_total`."""
    return draw_and_total(plan, arrays, index, rng_keys)[0]


def draw_and_total(plan: Plan, arrays: Slots, index: Index, rng_keys: KeyArray) -> tuple[dict[str, Array], Array]:
    """Exact joint draws of all particle indices, and the log average weight that they were drawn from, a scalar.

    The forward pass is shared; for every key the plan is then walked backwards, drawing each eliminated variable from
    its conditional given those drawn already (Bowyer, Heap & Aitchison, UAI 2024, section on sampling).

    Returns:
        For every variable, int [num draws, *scope plates] in the order of `plan.scope`.
    """
    slots = forward(plan, arrays, Way(index, sum_rule))

    def one(key: KeyArray) -> dict[str, Array]:
        def uniforms(size: int, *place: Any) -> Array:
            return jax.random.uniform(reduce(jax.random.fold_in, place, key), (size,))

        return _walked(plan, slots, index, uniforms, {})

    return jax.vmap(one)(rng_keys), total(plan, slots)


def draw_evenly(
    plan: Plan,
    arrays: Slots,
    index: Index,
    rng_key: KeyArray,
    room: int,
    count: Array | int,
    orders: Mapping[str, Array],
) -> dict[str, Array]:
    """As `draw`, joint draws each of which is exact, while together they are spread evenly: [room, *scope], of which
    the first `count` are draws.

    The numbers from [0, 1) by which indices are picked are a Latin hypercube: of each there is one in every of `count`
    equal parts, at the same place of all parts. So what is drawn first comes as often as its share says, rounded up or
    down, and averages over the draws lack the noise of what is additive in these numbers (Stein, Technometrics 1987),
    which is the more, the more alike neighbours among the indices are.

    Args:
        room, count: the draws that the program is made for, and those that are asked for.
        orders: by variable, an order of its indices in which neighbours are alike: int [*scope, K].
    """
    slots = forward(plan, arrays, Way(index, sum_rule))

    def one(number: Array) -> dict[str, Array]:
        def uniforms(size: int, *place: Any) -> Array:
            # one shuffle for all draws, of which each takes its place
            bits = jax.random.bits(reduce(jax.random.fold_in, place, rng_key), (ROWS + 1, size), "uint32")
            parts = apart(shuffled(bits[:ROWS], number, count), bits[0, 0])
            shares = (parts + bits[ROWS].astype(jnp.result_type(float)) * 2.0**-32) / count
            return jnp.minimum(shares, 1 - jnp.finfo(shares.dtype).epsneg)  # which rounding can make one

        return _walked(plan, slots, index, uniforms, orders)

    return jax.vmap(one)(jnp.arange(room, dtype=jnp.uint32))


def _walked(
    plan: Plan, slots: Slots, index: Index, uniforms: Callable[..., Array], orders: Mapping[str, Array]
) -> dict[str, Array]:
    """One draw of all variables.

    Args:
        uniforms: so many numbers from [0, 1), at a place.
    """

    def numbers(shapes: Sequence[tuple[int, ...]], *place: Any) -> list[Array]:
        sizes = [math.prod(shape) for shape in shapes]
        # at once: CPUs take longer to compile a generator of random numbers than the rest of a step
        parts = jnp.split(uniforms(sum(sizes), *place), np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return choose(plan, slots, WayBack(index, sum_rule, _by_share, numbers, orders), {})


def best(plan: Plan, arrays: Slots, index: Index) -> tuple[Array, dict[str, Array]]:
    """The largest log weight, and its combination of particles: int [*scope plates] for every variable."""

    def largest(logits: Array, number: None) -> Array:
        return jnp.argmax(logits, -1)

    way = WayBack(index, max_rule, largest, lambda shapes, *place: [None] * len(shapes))
    slots = forward(plan, arrays, way)
    return total(plan, slots), choose(plan, slots, way, {})


def choose(plan: Plan, slots: Slots, way: WayBack, chosen: Mapping[str, Array]) -> dict[str, Array]:
    """Every summed variable given those chosen already, last step first.

    Args:
        slots: what going forward made of the plan's steps.
    """
    chosen = dict(chosen)
    shapes = {i: shape for i, step in enumerate(plan.steps) if (shape := step.picks(plan)) is not None}
    # places within steps begin with their positions
    drawn = way.numbers(list(shapes.values()), len(plan.steps)) if shapes else ()
    numbers = dict(zip(shapes, drawn, strict=True))
    for position in reversed(range(len(plan.steps))):
        step = plan.steps[position]
        chosen |= step.back(plan, slots, way.inside(position), numbers.get(position), chosen)
    return chosen


def _by_share(logits: Array, number: Array) -> Array:
    """The index along the last dimension whose share of the sum holds a number from [0, 1).

    None of share zero; 0 if all are.
    """
    top = jnp.max(logits, -1, keepdims=True)
    shares = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0.0))
    # long running sums need not rise evenly in floating point, and must not for an impossible index
    ends = jnp.where(shares > 0, jnp.cumsum(shares, -1), 0.0)
    total = jnp.max(ends, -1) * (1 - jnp.finfo(ends.dtype).eps)
    return jnp.argmax(ends > (number * total)[..., None], -1)
