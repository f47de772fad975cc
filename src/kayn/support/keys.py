"""Random keys: accept an integer seed, a new-style key or a raw uint32 key; refuse anything else by name.

All keys become keys of one generator. JAX's default, threefry, runs as a loop of small kernels on CPUs and takes longer
to compile there than most of what its numbers are for; philox, from the same paper and as thoroughly tested (Salmon,
Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011), is one kernel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from kayn.errors import KaynError
from kayn.support.arrays import KeyArray

DEFAULT, QUICK = "threefry2x32", "philox4x32"
"""JAX's default generator, and the one that takes its place."""


def as_key(rng_key: Any) -> KeyArray:
    """A key of kayn's generator from an int seed or a key of any.

    Raises:
        KaynError: anything else.
    """
    return _converted(_checked(rng_key), generator())


def generator() -> str:
    """The generator of all random numbers: the one that the user has chosen by `jax_default_prng_impl`,
    if that is not JAX's default.

    Where there are several devices it is JAX's default: programs with philox that are cut between devices do not
    compile.
    """
    chosen = jax.config.jax_default_prng_impl
    return QUICK if chosen == DEFAULT and jax.device_count() == 1 and _has_quick() else chosen


@cache
def _has_quick() -> bool:
    try:
        jax.eval_shape(lambda: jax.random.key(0, impl=QUICK))
    except ValueError:  # older releases of JAX
        return False
    return True


def default_key(key: KeyArray) -> KeyArray:
    """A key of JAX's default generator, which some of its samplers insist on."""
    return _converted(key, DEFAULT)


def _converted(key: KeyArray, wanted: str) -> KeyArray:
    known = str(jax.random.key_impl(key))
    if known == wanted:
        return key
    if {known, wanted} == {DEFAULT, QUICK}:
        data = jax.random.key_data(key)
    else:
        shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=wanted))).shape
        data = jax.random.bits(key, shape, jnp.uint32)
    return jax.random.wrap_key_data(data, impl=wanted)


def _checked(rng_key: Any) -> KeyArray:
    """A key of any generator."""
    if isinstance(rng_key, bool):
        raise KaynError(f"rng_key is {rng_key!r}; pass an int seed or jax.random.key(seed)")
    if hasattr(rng_key, "__index__") and jnp.ndim(rng_key) == 0 and not hasattr(rng_key, "dtype"):
        if not -(2**63) <= rng_key.__index__() < 2**63:
            raise KaynError(f"rng_key is {rng_key!r}; a seed must be a whole number that 64 bits hold, below 2**63")
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
