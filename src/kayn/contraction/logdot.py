"""Matrix product in the log semiring: `out[b, i, j] = log sum_k exp(left[b, i, k] + right[b, k, j])`.

Done as one ordinary batched matrix product of shifted exponentials, whose temporaries are those of its operands and result
instead of the [b, i, j, k] of a broadcast log-sum-exp. Rows and columns are shifted by their maxima, and the summed index is
balanced between the operands, so that sharply peaked factors that pull in opposite directions do not underflow. Where an
entry still comes out too small to be trusted, its row is computed again exactly.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from kayn.compilation import matmul_precision

MAX_JOINED = 2**20
"""Entries of [b, i, j, k] that exact sums form at a time. Smaller products are computed again as a whole, which is quicker to compile."""


@jax.custom_vjp
def log_matmul(left: Any, right: Any) -> Any:
    """`log sum_k exp(left[b, i, k] + right[b, k, j])` as [b, i, j]; -inf entries are allowed, NaN and +inf are not."""
    return _forward(left, right)[0]


def _forward(left: Any, right: Any) -> tuple[Any, Any]:
    # what k can reach at most on either side; half of the difference moves from one operand to the other
    most_left, most_right = jnp.max(left, -2), jnp.max(right, -1)
    possible = jnp.isfinite(most_left) & jnp.isfinite(most_right)
    balance = jnp.where(possible, (_finite(most_right) - _finite(most_left)) / 2, 0.0)
    left_balanced, right_balanced = left + balance[..., None, :], right - balance[..., :, None]
    row, column = jnp.max(left_balanced, -1, keepdims=True), jnp.max(right_balanced, -2, keepdims=True)
    lift = _lift(left.dtype, left.shape[-1])
    left_scaled = _lifted_exp(left_balanced - _finite(row), lift)
    right_scaled = _lifted_exp(right_balanced - _finite(column), lift)
    product = _matmul(left_scaled, right_scaled)
    impossible = jnp.isneginf(row) | jnp.isneginf(column)
    trusted = jnp.all((product > _floor(left.dtype, left.shape[-1])) | impossible, -1)

    def fast() -> Any:
        # the lift is taken back before the logarithm where it can be, which keeps the digits of results near zero;
        # impossible entries are log 0, without a selection, for which XLA has no vectorised kernel on CPUs
        relative = jnp.log(jnp.maximum(product, 1.0) * math.exp(-2 * lift)) + jnp.log(jnp.minimum(product, 1.0))
        return relative + row + column

    def again() -> Any:
        return _exact(left, right) if _fits(left, right) else _with_exact_rows(fast(), left, right, trusted)

    out = jax.lax.cond(jnp.all(trusted), fast, again)
    return out, (left, right, left_scaled, right_scaled, product, trusted)


def _backward(saved: Any, cotangent: Any) -> tuple[Any, Any]:
    left, right, left_scaled, right_scaled, product, trusted = saved

    def fast(cotangent: Any) -> tuple[Any, Any]:
        # half of the lift leaves the operands: neither ratios nor products may leave the range of floats
        half = math.exp(_lift(left.dtype, left.shape[-1]) / 2)
        # products below the floor are zeros of impossible entries, which meet zeros in the operands
        ratio = cotangent * half / jnp.maximum(product, _floor(left.dtype, left.shape[-1]))
        on_left = left_scaled * _matmul(ratio, jnp.swapaxes(right_scaled / half, -1, -2))
        return on_left, right_scaled * _matmul(jnp.swapaxes(left_scaled / half, -1, -2), ratio)

    def again(cotangent: Any) -> tuple[Any, Any]:
        if _fits(left, right):
            return _exact_gradient(left, right, cotangent)
        known = fast(jnp.where(trusted[..., None], cotangent, 0.0))
        return _with_gradient_of_rows(known, left, right, trusted, cotangent)

    return jax.lax.cond(jnp.all(trusted), fast, again, cotangent)


log_matmul.defvjp(_forward, _backward)


def _finite(shift: Any) -> Any:
    return jnp.where(jnp.isneginf(shift), 0.0, shift)


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=matmul_precision())


def _lift(dtype: Any, count: int) -> float:
    """Largest log of a scaled operand, so that a sum of `count` products does not overflow: what lies far below it counts too.

    Nor may `exp(-2 lift)` be subnormal, which devices flush to zero.
    """
    return (math.log(float(jnp.finfo(dtype).max)) - math.log(count) - 2) / 2


def _lifted_exp(x: Any, lift: float) -> Any:
    """`exp(x + lift)`, which adds only where the sum is no larger than x: digits lost in an exponent are lost in the result."""
    return jnp.exp(jnp.maximum(x, -lift)) * math.exp(lift) * jnp.exp(jnp.minimum(x + lift, 0.0))


def _floor(dtype: Any, count: int) -> float:
    """Products above this have lost nothing that matters to underflow, neither forward nor backward."""
    lost = count * float(jnp.finfo(dtype).tiny) * math.exp(1.5 * _lift(dtype, count))
    return lost / float(jnp.finfo(dtype).eps)


def _with_exact_rows(out: Any, left: Any, right: Any, trusted: Any) -> Any:
    """The product with the rows that are not trusted [b, i] computed again, a few at a time."""

    def of_one(one: tuple[Any, ...]) -> Any:
        out, left, right, trusted = one
        return _over_rows(
            trusted, right, out, lambda out, rows, _: out.at[rows].set(_exact(left[rows][None], right[None])[0])
        )

    return jax.lax.map(of_one, (out, left, right, trusted))


def _with_gradient_of_rows(known: tuple[Any, Any], left: Any, right: Any, trusted: Any, cotangent: Any) -> Any:
    """The gradient of the trusted rows, and that of the others."""

    def of_one(one: tuple[Any, ...]) -> Any:
        known, left, right, trusted, cotangent = one

        def add(known: tuple[Any, Any], rows: Any, counts: Any) -> tuple[Any, Any]:
            mine = jnp.where(counts[:, None], cotangent[rows], 0.0)
            on_left, on_right = _exact_gradient(left[rows][None], right[None], mine[None])
            return known[0].at[rows].add(on_left[0]), known[1] + on_right[0]

        return _over_rows(trusted, right, known, add)

    return jax.lax.map(of_one, (known, left, right, trusted, cotangent))


def _over_rows(trusted: Any, right: Any, start: Any, change: Any) -> Any:
    """Change something for so many rows that are not trusted [i] at a time that exact sums are `MAX_JOINED` entries.

    Args:
        change: the thing, row numbers, and which of these count: the last ones fill up.
    """
    size, order = min(max(MAX_JOINED // right.size, 1), len(trusted)), jnp.argsort(trusted)
    left_over = jnp.sum(~trusted)

    def block(state: tuple[Any, Any]) -> tuple[Any, Any]:
        done, so_far = state
        place = done + jnp.arange(size)
        rows = order[jnp.minimum(place, len(trusted) - 1)]
        return done + size, change(so_far, rows, place < left_over)

    return jax.lax.while_loop(lambda state: state[0] < left_over, block, (0, start))[1]


def _exact(left: Any, right: Any) -> Any:
    top, total = _sums(left, right)
    return jnp.where(jnp.isneginf(top), -jnp.inf, jnp.log(jnp.where(total > 0, total, 1.0)) + _finite(top))


def _exact_gradient(left: Any, right: Any, cotangent: Any) -> tuple[Any, Any]:
    # shares relative to the maximum: the result itself is rounded too coarsely where log weights are large
    top, total = _sums(left, right)
    shift, scaled = _finite(top), cotangent / jnp.where(total > 0, total, 1.0)
    on_right = _share(_swapped(right), _swapped(left), _swapped(shift), _swapped(scaled))
    return _share(left, right, shift, scaled), _swapped(on_right)


def _share(left: Any, right: Any, shift: Any, scaled: Any) -> Any:
    """`sum_j exp(left[b, i, k] + right[b, k, j] - shift[b, i, j]) scaled[b, i, j]`: the last axis is the quickest to sum."""
    terms = left[..., :, :, None] + right[..., None, :, :] - shift[..., :, None, :]
    return jnp.sum(jnp.exp(terms) * scaled[..., :, None, :], -1)


def _swapped(array: Any) -> Any:
    return jnp.swapaxes(array, -1, -2)


def _fits(left: Any, right: Any) -> bool:
    return left.size * right.shape[-1] <= MAX_JOINED


def _sums(left: Any, right: Any) -> tuple[Any, Any]:
    """Maximum over k, and the sum relative to it; all of [b, i, j, k] is formed."""
    terms = left[..., :, None, :] + _swapped(right)[..., None, :, :]
    top = jnp.max(terms, -1)
    return top, jnp.sum(jnp.exp(terms - _finite(top)[..., None]), -1)
