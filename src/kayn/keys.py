"""Random keys: accept an integer seed, a new-style key or a raw uint32 key; refuse anything else by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kayn.errors import KaynError


def as_key(rng_key: Any) -> Any:
    """A JAX key from an int seed or a key.

    Raises:
        KaynError: anything else.
    """
    if isinstance(rng_key, bool):
        raise KaynError(f"rng_key is {rng_key!r}; pass an int seed or jax.random.key(seed)")
    if hasattr(rng_key, "__index__") and jnp.ndim(rng_key) == 0 and not hasattr(rng_key, "dtype"):
        return jax.random.key(rng_key)
    dtype = getattr(rng_key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if rng_key.ndim:
            raise KaynError(
                f"rng_key is an array of keys of shape {rng_key.shape}; pass one key (use jax.vmap for many)"
            )
        return rng_key
    if dtype == jnp.uint32 and jnp.shape(rng_key) == (2,):
        return jax.random.wrap_key_data(rng_key)
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer) and jnp.ndim(rng_key) == 0:
        return jax.random.key(rng_key)
    raise KaynError(f"rng_key is {type(rng_key).__name__} {rng_key!r}; pass an int seed or jax.random.key(seed)")
