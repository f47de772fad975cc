"""Masks, expansions and event reinterpretations around a distribution: what stands inside,
and what they say of its elements."""

from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.support.arrays import Array
from kayn.support.numpyro_internals import mask_of

WRAPPERS = dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent


def innermost(fn: dist.Distribution) -> dist.Distribution:
    """The distribution under masks, expansions and event reinterpretations."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def unexpanded(fn: dist.Distribution) -> dist.Distribution:
    """The distribution under expansions and event reinterpretations."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def element_mask(fn: dist.Distribution) -> Array | None:
    """Which elements the masks around a distribution leave in, wherever they stand; None without masks.

    Returns:
        bool [*batch, *inner], inner dimensions those that were made events outside of the innermost mask.
    """
    if isinstance(fn, dist.Independent):
        return element_mask(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        inner = element_mask(fn.base_dist)
        if inner is None:
            return None
        batch, events = len(fn.base_dist.batch_shape), inner.shape[len(fn.base_dist.batch_shape) :]
        inner = inner.reshape((1,) * (len(fn.batch_shape) - batch) + inner.shape)
        return jnp.broadcast_to(inner, (*fn.batch_shape, *events))
    if not isinstance(fn, dist.MaskedDistribution):
        return None
    own, inner = jnp.broadcast_to(jnp.asarray(mask_of(fn)), fn.batch_shape), element_mask(fn.base_dist)
    return own if inner is None else own.reshape(own.shape + (1,) * (inner.ndim - own.ndim)) & inner


def without_masks(fn: dist.Distribution) -> dist.Distribution:
    """The law that values are drawn from, which masks do not change."""
    if isinstance(fn, dist.MaskedDistribution):
        return without_masks(fn.base_dist)
    if not isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        return fn
    inner = without_masks(fn.base_dist)
    if inner is fn.base_dist:
        return fn
    outer = copy.copy(fn)
    outer.base_dist = inner
    return outer


def hide_masked(fn: dist.Distribution, value: Array) -> Array:
    """Replace masked-out observations by a harmless value, so that NaN under a mask has finite gradients;
    the same shape."""
    mask = element_mask(fn)
    if mask is None:
        return value
    value = jnp.asarray(value)
    mask = mask.reshape(mask.shape + (1,) * (len(fn.shape()) - mask.ndim))
    return jnp.where(mask, value, fn.support.feasible_like(value).astype(value.dtype))


def delta_density(fn: dist.Distribution) -> Array:
    """The log density that a point mass claims: [*batch]."""
    while not isinstance(fn, dist.Delta):
        if isinstance(fn, dist.Independent):
            return delta_density(fn.base_dist).sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
        fn = fn.base_dist
    return jnp.broadcast_to(fn.log_density, fn.batch_shape)


def with_batch_ndim(fn: dist.Distribution, ndim: int) -> dist.Distribution:
    """The same law with up to `ndim` batch dimensions: event dimensions that are really independent are freed."""
    missing = ndim - len(fn.batch_shape)
    if missing <= 0:
        return fn
    if isinstance(fn, dist.Independent):
        missing = min(missing, fn.reinterpreted_batch_ndims)
        left = fn.reinterpreted_batch_ndims - missing
        base = fn.base_dist.to_event(left) if left else fn.base_dist
        return with_batch_ndim(base, ndim)
    if isinstance(fn, dist.ExpandedDistribution):
        base = with_batch_ndim(fn.base_dist, len(fn.base_dist.batch_shape) + missing)
        freed = base.batch_shape[len(fn.base_dist.batch_shape) :]
        return base.expand((*fn.batch_shape, *freed)) if freed else fn
    if isinstance(fn, dist.TransformedDistribution):
        base = with_batch_ndim(fn.base_dist, ndim)
        free = len(base.batch_shape) > len(fn.base_dist.batch_shape)
        return dist.TransformedDistribution(base, _elementwise(fn.transforms)) if free else fn
    return fn


def _elementwise(transforms: Any) -> list[Any]:
    """Transforms without the event dimensions that merely repeat them."""
    out = []
    for transform in transforms:
        while isinstance(transform, dist.transforms.IndependentTransform):
            transform = transform.base_transform
        if isinstance(transform, dist.transforms.ComposeTransform):
            out.extend(_elementwise(transform.parts))
        else:
            out.append(transform)
    return out
