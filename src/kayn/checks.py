"""Checks of arguments that several entry points share."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import KaynError


def whole_number(name: str, value: Any, error: type[KaynError] = KaynError) -> int:
    """The argument as an int.

    Raises:
        KaynError: it is no whole number, or less than one.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1:
        raise error(f"{name} is {value!r}; it must be a whole number, at least 1")
    return number


def parameter_values(params: Any) -> dict[str, Any]:
    """Values of `numpyro.param` sites as arrays.

    Raises:
        KaynError: they are no mapping, or hold NaN.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise KaynError(
            f"params is {type(params).__name__}; pass a mapping from numpyro.param names to values, as SVI.get_params gives "
            "them, or None for initial values; the model's arguments come after it"
        )
    # unlike jnp.asarray, device_put has nothing to compile
    out = {
        n: jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), v) for n, v in params.items()
    }
    for name, value in out.items():
        leaves = [x for x in jax.tree.leaves(value) if not isinstance(x, jax.core.Tracer)]
        if any(jnp.issubdtype(x.dtype, jnp.inexact) and np.isnan(np.asarray(x)).any() for x in leaves):
            raise KaynError(f"params[{name!r}] holds NaN; fit again with a smaller step, or start from finite values")
    return out
