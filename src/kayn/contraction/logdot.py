"""Matrix product in the log semiring: `out[b, i, j] = log sum_k exp(left[b, i, k] + right[b, k, j])`.

Done as one ordinary batched matrix product of shifted exponentials, whose temporaries are those of its operands and result
instead of the [b, i, j, k] of a broadcast log-sum-exp. Rows and columns are shifted by their maxima, and the summed index is
balanced between the operands, so that sharply peaked factors that pull in opposite directions do not underflow. Where an
entry still comes out too small to be trusted, everything is computed again exactly, one k at a time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def log_matmul(left: Any, right: Any) -> Any:
    """`log sum_k exp(left[b, i, k] + right[b, k, j])` as [b, i, j]; -inf entries are allowed, NaN and +inf are not."""
    return _forward(left, right)[0]


def _forward(left: Any, right: Any) -> tuple[Any, Any]:
    scaled = _scaled(left, right)
    product = _matmul(scaled.left, scaled.right)
    possible = jnp.isfinite(scaled.row) & jnp.isfinite(scaled.column)
    safe = jnp.all((product > _floor(product.dtype)) | ~possible)
    fast = jnp.where(product > 0, jnp.log(jnp.where(product > 0, product, 1.0)), -jnp.inf)
    fast = jnp.where(possible, fast + scaled.row + scaled.column, -jnp.inf)
    out = jax.lax.cond(safe, lambda: fast, lambda: _exact(left, right))
    return out, (left, right, out, safe)


def _backward(saved: Any, cotangent: Any) -> tuple[Any, Any]:
    left, right, out, safe = saved
    alive = jnp.isfinite(out)
    cotangent = jnp.where(alive, cotangent, 0.0)
    return jax.lax.cond(
        safe,
        lambda: _fast_gradient(left, right, cotangent),
        lambda: _exact_gradient(left, right, jnp.where(alive, out, 0.0), cotangent),
    )


def _fast_gradient(left: Any, right: Any, cotangent: Any) -> tuple[Any, Any]:
    scaled = _scaled(left, right)
    product = _matmul(scaled.left, scaled.right)
    ratio = jnp.where(product > 0, cotangent / jnp.where(product > 0, product, 1.0), 0.0)
    return (
        scaled.left * _matmul(ratio, jnp.swapaxes(scaled.right, -1, -2)),
        scaled.right * _matmul(jnp.swapaxes(scaled.left, -1, -2), ratio),
    )


log_matmul.defvjp(_forward, _backward)


class _scaled:
    """Exponentials of both operands after balancing over k and shifting rows and columns by their maxima."""

    def __init__(self, left: Any, right: Any):
        # what k can reach at most on either side; half of the difference moves from one operand to the other
        most_left, most_right = jnp.max(left, -2, keepdims=True), jnp.max(right, -1, keepdims=True)
        both = jnp.isfinite(most_left) & jnp.isfinite(jnp.swapaxes(most_right, -1, -2))
        balance = jnp.where(both, (jnp.swapaxes(most_right, -1, -2) - most_left) / 2, 0.0)
        left, right = left + balance, right - jnp.swapaxes(balance, -1, -2)
        self.row, self.column = jnp.max(left, -1, keepdims=True), jnp.max(right, -2, keepdims=True)
        self.left = jnp.exp(left - jnp.where(jnp.isfinite(self.row), self.row, 0.0))
        self.right = jnp.exp(right - jnp.where(jnp.isfinite(self.column), self.column, 0.0))


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _floor(dtype: Any) -> float:
    """Products above this have lost nothing that matters to underflow."""
    return float(jnp.finfo(dtype).tiny) * 1e13


def _exact(left: Any, right: Any) -> Any:
    """One k at a time: temporaries of the size of the result."""
    terms = (jnp.moveaxis(left, -1, 0), jnp.moveaxis(right, -2, 0))
    start = jnp.full((*left.shape[:-1], right.shape[-1]), -jnp.inf, left.dtype)
    top, _ = jax.lax.scan(lambda best, k: (jnp.maximum(best, k[0][..., None] + k[1][..., None, :]), None), start, terms)
    shift = jnp.where(jnp.isfinite(top), top, 0.0)

    def add(total: Any, k: Any) -> tuple[Any, None]:
        return total + jnp.exp(k[0][..., None] + k[1][..., None, :] - shift), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(start), terms)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + shift, -jnp.inf)


def _exact_gradient(left: Any, right: Any, out: Any, cotangent: Any) -> tuple[Any, Any]:
    terms = (jnp.moveaxis(left, -1, 0), jnp.moveaxis(right, -2, 0))

    def share(_: None, k: Any) -> tuple[None, Any]:
        part = jnp.exp(k[0][..., None] + k[1][..., None, :] - out) * cotangent
        return None, (jnp.sum(part, -1), jnp.sum(part, -2))

    _, (on_left, on_right) = jax.lax.scan(share, None, terms)
    return jnp.moveaxis(on_left, 0, -1), jnp.moveaxis(on_right, 0, -2)
