"""Which elements of an array an indexing operation may read, when the places are not known."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn


def picked_anywhere(eqn: JaxprEqn, out: Any) -> Any:
    """The elements that may be picked at places that are not known: what is batched with the places,
    or passes through whole, stays apart."""
    if isinstance(out, bool):
        return out
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    if eqn.primitive.name == "dynamic_slice":
        windows, ties = {d: d for d in range(len(shape))}, {}
    else:
        numbers = eqn.params["dimension_numbers"]
        batch = [d for d in range(out.ndim) if d not in numbers.offset_dims]
        by_place = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        ties = {d: batch[p] for d, p in by_place}
        within = [d for d in range(len(shape)) if d not in (*numbers.collapsed_slice_dims, *ties)]
        windows = dict(zip(within, numbers.offset_dims, strict=True))
    ties |= {d: o for d, o in windows.items() if sizes[d] == shape[d]}
    kept = sorted(ties.values())
    found = jnp.any(out, tuple(d for d in range(out.ndim) if d not in kept))
    found = jnp.transpose(found, [kept.index(ties[d]) for d in sorted(ties)])
    return lax.broadcast_in_dim(found, shape, sorted(ties))
