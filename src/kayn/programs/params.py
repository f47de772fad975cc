"""Values that users give for `numpyro.param` sites, compared with what the sites themselves say before they are
used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from kayn.errors import KaynError
from kayn.support.arrays import Array, PyTree


class CheckedParams(Messenger):
    """A program that refuses values of its param sites which cannot be theirs, wherever the site's first value tells.

    Args:
        fn: a program in which the values are substituted already.
        params: the values by name.
    """

    def __init__(self, fn: Callable, params: Mapping[str, PyTree]):
        super().__init__(fn)
        self.params = params

    def process_message(self, msg: dict[str, Any]) -> None:
        """Compare a param site's given value with its first one and its constraint.

        Raises:
            KaynError: it has another shape, or lies outside of the constraint.
        """
        if msg["type"] == "param" and msg["name"] in self.params and msg["value"] is self.params[msg["name"]]:
            first = (msg["args"] or (None,))[0]
            if isinstance(first, float | int | np.ndarray | np.generic | jax.Array):
                _check(msg["name"], msg["value"], first, msg["kwargs"].get("constraint"))


def _check(name: str, value: Array, first: Array, constraint: Any) -> None:
    shape, real = jnp.shape(first), jnp.issubdtype(jnp.result_type(first), jnp.floating)
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        raise KaynError(
            f"params[{name!r}] is a {type(value).__name__}; numpyro.param({name!r}, ...) is an array of shape {shape}"
        )
    if jnp.shape(value) != shape:
        raise KaynError(
            f"params[{name!r}] has shape {jnp.shape(value)}, but numpyro.param({name!r}, ...) starts from shape "
            f"{shape}; pass a value of that shape"
        )
    if real and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise KaynError(
            f"params[{name!r}] has type {jnp.result_type(value)}, but numpyro.param({name!r}, ...) is real; pass floats"
        )
    if isinstance(value, jax.core.Tracer) or getattr(constraint, "event_dim", None) != 0:
        return  # vectors and matrices fulfil their constraints up to rounding only
    with jax.ensure_compile_time_eval():
        inside = constraint(np.asarray(value))  # plain NumPy has nothing to compile
        good = isinstance(inside, jax.core.Tracer) or bool(np.asarray(inside).all())
    if not good:
        raise KaynError(f"params[{name!r}] has values outside its constraint, {constraint}; pass values within it")
