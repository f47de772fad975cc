"""Matrix product in the log semiring: `out[b, i, j] = log sum_k exp(left[b, i, k] + right[b, k, j])`.

Done as one ordinary batched matrix product of shifted exponentials, whose temporaries are those of its operands and
result instead of the [b, i, j, k] of a broadcast log-sum-exp. Rows and columns are shifted by their maxima, and the
summed index is balanced between the operands, so that sharply peaked factors that pull in opposite directions do not
underflow. Where an entry still comes out too small to be trusted, its row is computed again exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.contraction.logsum import log_sum_exp, plain_log_sum_exp
from kayn.support.arrays import Array, PyTree
from kayn.xla.compilation import apart, matmul_precision

MAX_JOINED = 2**20
"""Entries of [b, i, j, k] that exact sums form at a time. Products up to twice this are computed again as a whole,
which is quicker to compile."""
SMALL_ELEMENT = 2**16
"""Entries up to which a whole element of b is summed exactly, and not only its rows that need it:
fewer turns of a loop."""
LARGE = 2**18
"""Entries of an operand that are worth a copy."""
FAR = 1e30
"""Nats between two terms of which one is impossible."""


def log_matmul(left: Array, right: Array) -> Array:
    """`log sum_k exp(left[b, i, k] + right[b, k, j])` as [b, i, j]; -inf entries are allowed, NaN and +inf are not."""
    return _of_two(left, right) if left.shape[-1] == 2 else _of_many(left, right)


@jax.custom_vjp
def _of_two(left: Array, right: Array) -> Array:
    """One exponential and one logarithm an entry, no more than around a matrix product, and always exact."""
    return _sum_of_two(left, right)


@jax.custom_jvp
def _sum_of_two(left: Array, right: Array) -> Array:
    top, ahead = _two(left, right)
    return top + jnp.log(1.0 + jnp.exp(-jnp.abs(ahead)))


def _two(left: Array, right: Array) -> tuple[Array, Array]:
    """The larger of two terms [b, i, j], and how far the second one is ahead of the first."""
    terms = [left[..., :, k, None] + right[..., k, None, :] for k in (0, 1)]
    on_left, on_right = (jnp.diff(jnp.maximum(x, -FAR), axis=d) for x, d in ((left, -1), (right, -2)))
    return jnp.maximum(*terms), on_left + on_right


def _gradient_of_two(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    top, ahead = _two(*saved)
    whole = jnp.where(jnp.isneginf(top), 0.0, cotangent)
    second = whole * jax.nn.sigmoid(ahead)
    shares = whole - second, second
    return jnp.stack([jnp.sum(s, -1) for s in shares], -1), jnp.stack([jnp.sum(s, -2) for s in shares], -2)


@_sum_of_two.defjvp
def _of_sum_of_two(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _sum_of_two(*primals), _tangent(primals, tangents)


_of_two.defvjp(lambda left, right: (_sum_of_two(left, right), (left, right)), _gradient_of_two)


@jax.custom_vjp
def _of_many(left: Array, right: Array) -> Array:
    return _forward(left, right)[0]


def _joined(left: Array, right: Array, add: Callable[[Array, Array, int], Array] = log_sum_exp) -> Array:
    """The same with all of [b, i, j, k] formed.

    Second derivatives are this one's, since squares of scaled products leave the range of floats.
    """
    return add(left[..., :, None, :], _swapped(right)[..., None, :, :], 1)


def _tangent(primals: tuple, tangents: tuple) -> Array:
    return jax.jvp(partial(_joined, add=plain_log_sum_exp), primals, tangents)[1]


@jax.custom_jvp
def _forward(left: Array, right: Array) -> tuple[Array, tuple[Array, ...]]:
    # large ones are written out once, and not made again for each of their uses below
    left, right = (x if x.size < LARGE else apart(x, -left.ravel()[0]) for x in (left, right))
    # what k can reach at most on either side; half of the difference moves from one operand to the other
    most_left, most_right = jnp.max(left, -2), jnp.max(right, -1)
    possible = jnp.isfinite(most_left) & jnp.isfinite(most_right)
    balance = jnp.where(possible, (_finite(most_right) - _finite(most_left)) / 2, 0.0)
    left_balanced, right_balanced = left + balance[..., None, :], right - balance[..., :, None]
    row, column = jnp.max(left_balanced, -1, keepdims=True), jnp.max(right_balanced, -2, keepdims=True)
    lift = _lift(left.dtype, left.shape[-1])
    left_scaled = _lifted_exp(left_balanced - _finite(row), lift)
    right_scaled = _lifted_exp(right_balanced - _finite(column), lift)
    # on its own: with the logarithm fused into it, the product would be several times slower
    product = apart(_matmul(left_scaled, right_scaled), left_scaled.ravel()[0])
    impossible = jnp.isneginf(row) | jnp.isneginf(column)
    # by row, [b, i, 1], or by element of b, [b, 1, 1]: what is summed again as one
    axes = -1 if _by_row(left, right) else (-2, -1)
    least = jnp.min(jnp.where(impossible, jnp.inf, product), axes, keepdims=True)
    trusted = least > _floor(left.dtype, left.shape[-1])

    # the lift is taken back before the logarithm where it can be, which keeps the digits of results near zero
    high = product >= 1.0
    relative = jnp.log(jnp.where(high, product * math.exp(-2 * lift), product)) - jnp.where(high, 0.0, 2 * lift)
    out = relative + row + column
    if _fits(left, right):
        out = jax.lax.cond(jnp.all(trusted), lambda: out, lambda: _exact(left, right))
    else:
        out = _with_exact_rows(out, left, right, trusted)
    return out, (left, right, left_scaled, right_scaled, product, trusted)


@_forward.defjvp
def _of_forward(primals: tuple, tangents: tuple) -> tuple:
    """What is saved has no derivatives of its own, as `_gradient` does not ask for them."""
    out, (left, right, *scaled) = _forward(*primals)
    still = [jnp.zeros_like(x) for x in scaled[:-1]]
    flags = np.zeros(scaled[-1].shape, jax.dtypes.float0)
    return (out, (left, right, *scaled)), (_tangent(primals, tangents), (*tangents, *still, flags))


def _backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array]:
    left, right, *scaled = saved
    return _gradient(left, right, cotangent, scaled)


@jax.custom_jvp
def _gradient(left: Array, right: Array, cotangent: Array, scaled: Sequence[Array]) -> tuple[Array, Array]:
    """What the cotangent of the result is for both operands.

    Args:
        scaled: what `_forward` made of the operands.
    """
    left_scaled, right_scaled, product, trusted = scaled

    def fast(cotangent: Array) -> tuple[Array, Array]:
        # half of the lift leaves the operands: neither ratios nor products may leave the range of floats
        half = math.exp(_lift(left.dtype, left.shape[-1]) / 2)
        # products below the floor are zeros of impossible entries, which meet zeros in the operands
        ratio = cotangent * half / jnp.maximum(product, _floor(left.dtype, left.shape[-1]))
        on_left = left_scaled * _matmul(ratio, _swapped(right_scaled / half))
        return on_left, right_scaled * _matmul(_swapped(left_scaled / half), ratio)

    if _fits(left, right):
        return jax.lax.cond(jnp.all(trusted), fast, lambda c: _exact_gradient(left, right, c), cotangent)
    known = fast(jnp.where(trusted, cotangent, 0.0))
    return _with_gradient_of_rows(known, left, right, trusted, cotangent)


@_gradient.defjvp
def _of_gradient(primals: tuple, tangents: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    def gradient(left: Array, right: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(_joined, left, right)[1](cotangent)

    return _gradient(*primals), jax.jvp(gradient, primals[:3], tangents[:3])[1]


_of_many.defvjp(_forward, _backward)


def _finite(shift: Array) -> Array:
    return jnp.where(jnp.isneginf(shift), 0.0, shift)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=matmul_precision())


def _lift(dtype: Any, count: int) -> float:
    """Largest log of a scaled operand, so that a sum of `count` products does not overflow:
    what lies far below it counts too.

    Nor may `exp(-2 lift)` be subnormal, which devices flush to zero.
    """
    return (math.log(float(jnp.finfo(dtype).max)) - math.log(count) - 2) / 2


def _lifted_exp(x: Array, lift: float) -> Array:
    """`exp(x + lift)`, which adds only where the sum is no larger than x:
    digits lost in an exponent are lost in the result."""
    return jnp.exp(jnp.maximum(x, -lift)) * math.exp(lift) * jnp.exp(jnp.minimum(x + lift, 0.0))


def _floor(dtype: Any, count: int) -> float:
    """Products above this have lost nothing that matters to underflow, neither forward nor backward."""
    lost = count * float(jnp.finfo(dtype).tiny) * math.exp(1.5 * _lift(dtype, count))
    return lost / float(jnp.finfo(dtype).eps)


def _with_exact_rows(out: Array, left: Array, right: Array, trusted: Array) -> Array:
    """The product with what is not trusted computed again, a few rows or elements of b at a time."""

    def change(out: Array, elements: Array, rows: tuple[Array, ...], _: Array) -> Array:
        return out.at[rows].set(_exact(left[rows], right[elements]))

    return _over_rows(left, right, trusted, out, change)


def _with_gradient_of_rows(
    known: tuple[Array, Array], left: Array, right: Array, trusted: Array, cotangent: Array
) -> tuple[Array, Array]:
    """The gradient of what is trusted, and that of the rest."""

    def change(
        known: tuple[Array, Array], elements: Array, rows: tuple[Array, ...], counts: Array
    ) -> tuple[Array, Array]:
        mine = jnp.where(counts, cotangent[rows], 0.0)
        on_left, on_right = _exact_gradient(left[rows], right[elements], mine)
        return known[0].at[rows].add(on_left), known[1].at[elements].add(on_right)

    return _over_rows(left, right, trusted, known, change)


def _by_row(left: Array, right: Array) -> bool:
    return left.shape[-2] * math.prod(right.shape[-2:]) > SMALL_ELEMENT


def _over_rows(left: Array, right: Array, trusted: Array, start: PyTree, change: Callable) -> PyTree:
    """Change something for what is not trusted, `MAX_JOINED` entries of exact sums at a time.

    Args:
        trusted: [b, i, 1], or [b, 1, 1] for whole elements of b.
        change: of the thing, indices of elements of b, the index of their rows, and which of these count:
            the last ones fill up.
    """
    by_row = _by_row(left, right)
    flags = trusted[..., 0] if by_row else trusted[..., 0].T
    one = math.prod(right.shape[-2:]) * (1 if by_row else left.shape[-2])
    size = min(max(MAX_JOINED // one, 1), flags.shape[-1])
    # the loop is no part of the condition, whose result would be a copy
    order = jax.lax.cond(jnp.all(flags), lambda: jnp.zeros(flags.shape, int), lambda: jnp.argsort(flags, -1))

    def block(state: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        left_over, so_far = state
        group = jnp.argmax(left_over)
        place = left_over[group] - 1 - jnp.arange(size)
        chosen, counts = order[group, jnp.maximum(place, 0)], place >= 0
        if by_row:
            changed = change(so_far, group[None], (group[None, None], chosen[None]), counts[None, :, None])
        else:
            changed = change(so_far, chosen, (chosen,), counts[:, None, None])
        return left_over.at[group].add(-size), changed

    return jax.lax.while_loop(lambda state: jnp.any(state[0] > 0), block, (jnp.sum(~flags, -1), start))[1]


def _exact(left: Array, right: Array) -> Array:
    top, total = _sums(left, right)
    return jnp.where(jnp.isneginf(top), -jnp.inf, jnp.log(jnp.where(total > 0, total, 1.0)) + _finite(top))


def _exact_gradient(left: Array, right: Array, cotangent: Array) -> tuple[Array, Array]:
    # shares relative to the maximum: the result itself is rounded too coarsely where log weights are large
    top, total = _sums(left, right)
    shift, scaled = _finite(top), cotangent / jnp.where(total > 0, total, 1.0)
    on_right = _share(_swapped(right), _swapped(left), _swapped(shift), _swapped(scaled))
    return _share(left, right, shift, scaled), _swapped(on_right)


def _share(left: Array, right: Array, shift: Array, scaled: Array) -> Array:
    """`sum_j exp(left[b, i, k] + right[b, k, j] - shift[b, i, j]) scaled[b, i, j]`:
    the last axis is the quickest to sum."""
    terms = left[..., :, :, None] + right[..., None, :, :] - shift[..., :, None, :]
    return jnp.sum(jnp.exp(terms) * scaled[..., :, None, :], -1)


def _swapped(array: Array) -> Array:
    return jnp.swapaxes(array, -1, -2)


def _fits(left: Array, right: Array) -> bool:
    return left.size * right.shape[-1] <= 2 * MAX_JOINED


def _sums(left: Array, right: Array) -> tuple[Array, Array]:
    """Maximum over k, and the sum relative to it; all of [b, i, j, k] is formed."""
    terms = left[..., :, None, :] + _swapped(right)[..., None, :, :]
    top = jnp.max(terms, -1)
    return top, jnp.sum(jnp.exp(terms - _finite(top)[..., None]), -1)
