"""Matrix product in the log semiring: `out[b, i, j] = log sum_k exp(left[b, i, k] + right[b, k, j])`.

Done as one ordinary batched matrix product of shifted exponentials, whose temporaries are those of its operands and result
instead of the [b, i, j, k] of a broadcast log-sum-exp. Rows and columns are shifted by their maxima, and the summed index is
balanced between the operands, so that sharply peaked factors that pull in opposite directions do not underflow. Where an
entry still comes out too small to be trusted, everything is computed again exactly.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from kayn.compilation import matmul_precision

MAX_JOINED = 2**20
"""Entries of [b, i, j, k] up to which exact sums form them all: quicker to compile, and up to about here quicker to run, than one k at a time."""


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
    safe = jnp.all((product > _floor(left.dtype, left.shape[-1])) | impossible)

    def fast() -> Any:
        # the lift is taken back before the logarithm where it can be, which keeps the digits of results near zero;
        # impossible entries are log 0, without a selection, for which XLA has no vectorised kernel on CPUs
        relative = jnp.log(jnp.maximum(product, 1.0) * math.exp(-2 * lift)) + jnp.log(jnp.minimum(product, 1.0))
        return relative + row + column

    out = jax.lax.cond(safe, fast, lambda: _exact(left, right))
    return out, (left, right, left_scaled, right_scaled, product, safe)


def _backward(saved: Any, cotangent: Any) -> tuple[Any, Any]:
    left, right, left_scaled, right_scaled, product, safe = saved

    def fast() -> tuple[Any, Any]:
        # half of the lift leaves the operands: neither ratios nor products may leave the range of floats
        half = math.exp(_lift(left.dtype, left.shape[-1]) / 2)
        # products below the floor are zeros of impossible entries, which meet zeros in the operands
        ratio = cotangent * half / jnp.maximum(product, _floor(left.dtype, left.shape[-1]))
        on_left = left_scaled * _matmul(ratio, jnp.swapaxes(right_scaled / half, -1, -2))
        return on_left, right_scaled * _matmul(jnp.swapaxes(left_scaled / half, -1, -2), ratio)

    return jax.lax.cond(safe, fast, lambda: _exact_gradient(left, right, cotangent))


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


def _running(left: Any, right: Any) -> tuple[Any, Any]:
    """Maximum over k and the sum relative to it, one k at a time: temporaries of the size of the result."""
    terms = (jnp.moveaxis(left, -1, 0), jnp.moveaxis(right, -2, 0))
    empty = jnp.full((*left.shape[:-1], right.shape[-1]), -jnp.inf, left.dtype)

    def add(state: tuple[Any, Any], k: Any) -> tuple[tuple[Any, Any], None]:
        top, total = state
        term = k[0][..., None] + k[1][..., None, :]
        new = jnp.maximum(top, term)
        shift = _finite(new)
        return (new, total * jnp.exp(top - shift) + jnp.exp(term - shift)), None

    return jax.lax.scan(add, (empty, jnp.zeros_like(empty)), terms)[0]


def _exact(left: Any, right: Any) -> Any:
    top, total = _sums(left, right)
    return jnp.where(jnp.isneginf(top), -jnp.inf, jnp.log(jnp.where(total > 0, total, 1.0)) + _finite(top))


def _exact_gradient(left: Any, right: Any, cotangent: Any) -> tuple[Any, Any]:
    # shares relative to the maximum: the result itself is rounded too coarsely where log weights are large
    top, total = _sums(left, right)
    shift, scaled = _finite(top), cotangent / jnp.where(total > 0, total, 1.0)
    if _fits(left, right):
        on_right = _share(_swapped(right), _swapped(left), _swapped(shift), _swapped(scaled))
        return _share(left, right, shift, scaled), _swapped(on_right)
    terms = (jnp.moveaxis(left, -1, 0), jnp.moveaxis(right, -2, 0))

    def share_of(_: None, k: Any) -> tuple[None, Any]:
        part = jnp.exp(k[0][..., None] + k[1][..., None, :] - shift) * scaled
        return None, (jnp.sum(part, -1), jnp.sum(part, -2))

    _, (on_left, on_right) = jax.lax.scan(share_of, None, terms)
    return jnp.moveaxis(on_left, 0, -1), jnp.moveaxis(on_right, 0, -2)


def _share(left: Any, right: Any, shift: Any, scaled: Any) -> Any:
    """`sum_j exp(left[b, i, k] + right[b, k, j] - shift[b, i, j]) scaled[b, i, j]`: the last axis is the quickest to sum."""
    terms = left[..., :, :, None] + right[..., None, :, :] - shift[..., :, None, :]
    return jnp.sum(jnp.exp(terms) * scaled[..., :, None, :], -1)


def _swapped(array: Any) -> Any:
    return jnp.swapaxes(array, -1, -2)


def _fits(left: Any, right: Any) -> bool:
    return left.size * right.shape[-1] <= MAX_JOINED


def _joined(left: Any, right: Any) -> Any:
    """[b, i, j, k]"""
    return left[..., :, None, :] + jnp.swapaxes(right, -1, -2)[..., None, :, :]


def _sums(left: Any, right: Any) -> tuple[Any, Any]:
    """Maximum over k, and the sum relative to it."""
    if not _fits(left, right):
        return _running(left, right)
    terms = _joined(left, right)
    top = jnp.max(terms, -1)
    return top, jnp.sum(jnp.exp(terms - _finite(top)[..., None]), -1)
