"""Numerically safe pieces of the contraction: log-sum over axes with an exact softmax gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from kayn.support.arrays import Array


def expand(array: Array, axes: Sequence[str], order: Sequence[str]) -> Array:
    """Transpose and insert dimensions of size one, so that `array` broadcasts over `order`."""
    present = [a for a in order if a in axes]
    array = jnp.transpose(array, [axes.index(a) for a in present])
    return array.reshape([array.shape[present.index(a)] if a in axes else 1 for a in order])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def log_sum_exp(left: Array, right: Array, count: int) -> Array:
    """`log sum exp(left + right)` over the last `count` dimensions.

    `left` and `right` broadcast against each other. Exact for log weights that span thousands of nats; a sum of nothing
    but -inf is -inf, with zero gradient.
    """
    return plain_log_sum_exp(left, right, count)


def _shifted(left: Array, right: Array, count: int) -> tuple[Array, Array, Array]:
    """Shares of every summand before normalisation, their sum, and the shift that keeps them in range."""
    total = left + right
    axes = tuple(range(total.ndim - count, total.ndim))
    top = jnp.max(total, axes, keepdims=True)
    safe = jnp.where(jnp.isfinite(top), top, 0.0)
    share = jnp.exp(total - safe)
    return share, jnp.sum(share, axes, keepdims=True), safe


def plain_log_sum_exp(left: Array, right: Array, count: int) -> Array:
    """The same without a gradient of its own: what JAX makes of it forwards is right, also of nothing but -inf."""
    _, summed, top = _shifted(left, right, count)
    out = jnp.where(summed > 0, jnp.log(jnp.where(summed > 0, summed, 1.0)) + top, -jnp.inf)
    return jnp.squeeze(out, tuple(range(out.ndim - count, out.ndim)))


def _forward(left: Array, right: Array, count: int) -> tuple[Array, tuple[Array, Array]]:
    return plain_log_sum_exp(left, right, count), (left, right)


def _backward(count: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    # normalised here and not by the result, whose rounding error is large where log weights are
    left, right = saved
    share, summed, _ = _shifted(left, right, count)
    cotangent = cotangent.reshape(cotangent.shape + (1,) * count)
    share = share * jnp.where(summed > 0, cotangent / jnp.where(summed > 0, summed, 1.0), 0.0)
    return _unbroadcast(share, left.shape), _unbroadcast(share, right.shape)


def _unbroadcast(array: Array, shape: Sequence[int]) -> Array:
    axes = tuple(d for d in range(array.ndim) if shape[d] == 1 and array.shape[d] != 1)
    return jnp.sum(array, axes, keepdims=True) if axes else array


log_sum_exp.defvjp(_forward, _backward)


def segment_sum(array: Array, indices: Sequence[Array], sizes: Sequence[int]) -> Array:
    """Sum the leading dimension into a grid of groups: `[rows, ...] -> [*sizes, ...]`, empty groups are zero."""
    flat = indices[0]
    for index, size in zip(indices[1:], sizes[1:], strict=True):
        flat = flat * size + index
    total = 1
    for size in sizes:
        total *= size
    out = jnp.zeros((total, *array.shape[1:]), array.dtype).at[flat].add(array)
    return out.reshape((*sizes, *array.shape[1:]))
