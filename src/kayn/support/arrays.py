"""Names for annotations (arrays, random keys, trees of arrays), and arrays on the host.

Shapes stand in docstrings, `log_weights: [K, *plates], nats`, since their axes have names and their number depends on
the model. What may be anything (a model's own arguments, NumPyro's messages, parameters of equations) stays `Any`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array
"""An array that JAX computes with, or a tracer of one; NumPy's arrays and plain numbers go where these go."""
KeyArray: TypeAlias = jax.Array
"""A random key of the new style, as `kayn.support.keys.as_key` makes it, or an array of such keys."""
PyTree: TypeAlias = Any
"""A tree of arrays: parameters, states of optimisers and of modules."""


def local(array: Array) -> Array:
    """As a NumPy array where the numbers are known: small eager operations need not be compiled one by one."""
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def concatenated(parts: Sequence[PyTree]) -> PyTree:
    """Arrays of several trees of one form, one after the other along their first axes, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(x) for x in leaves]), *parts)


def namespace(array: Array) -> Any:
    """NumPy for arrays on the host, where small sums need no compilation."""
    return np if isinstance(array, np.ndarray) else jnp
