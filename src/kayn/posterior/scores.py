"""Log densities of data row by row, and which rows are data at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.densities.log_prob import log_density
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import mask_of


def observed_scores(trace: Mapping[str, Any]) -> dict[str, Array]:
    """Log densities of the data by observed site: [*rows]. `numpyro.factor` sites are no data,
    and scales do not count."""
    return {n: log_density(s["fn"], s["value"]) for n, s in _observed(trace).items()}


def seen_rows(trace: Mapping[str, Any], scores: Mapping[str, Array]) -> dict[str, Array]:
    """Whether a row has any datum that no mask hides, by observed site: bool [*rows]."""
    return {n: jnp.broadcast_to(_seen(s["fn"]), jnp.shape(scores[n])) for n, s in _observed(trace).items()}


def _observed(trace: Mapping[str, Any]) -> dict[str, Array]:
    return {
        n: s
        for n, s in trace.items()
        if s["type"] == "sample" and s["is_observed"] and not isinstance(innermost(s["fn"]), dist.Unit)
    }


def _seen(fn: dist.Distribution) -> Array:
    """bool [*batch shape]; an event is seen if any part of it is."""
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.broadcast_to(jnp.logical_and(mask_of(fn), _seen(fn.base_dist)), fn.batch_shape)
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(_seen(fn.base_dist), fn.batch_shape)
    if isinstance(fn, dist.Independent):
        parts = _seen(fn.base_dist)
        return parts.any(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    return jnp.ones(fn.batch_shape, bool)
