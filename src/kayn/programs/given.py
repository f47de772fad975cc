"""Put values into a NumPyro program: parameters, latents and indices of subsampled plates,
each into sites of its own kind.

`numpyro.handlers.substitute` goes by the name alone, so that a parameter would replace data, a deterministic value or a
latent of its name. Every value that kayn gives a program goes through `Given` instead.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from kayn.errors import KaynError, ModelError
from kayn.programs.data import as_data
from kayn.support.arrays import Array, PyTree
from kayn.support.numpyro_internals import is_scan, is_told_afterwards, substitutions
from kayn.xla.compilation import is_traced

FIXED = "_kayn_fixed"
"""Holds, in messages of plates, the indices that a handler of the user's has set."""
UNSEEDED = "_kayn_unseeded"
"""Marks messages that ask for a key which no handler of the user's has set."""


class Given(Messenger):
    """A program whose parameters, latents and plates have given values.

    Sites that have a value already keep it: data, as arrays, and what a handler within `fn` has set. So do
    deterministic sites. A parameter without a given value is a number and no random variable: what draws its first
    value is the same key in every run. Plates take the indices that they are given, since model and guide have to
    agree, and note those that a handler has set (see `kayn.evidence.fixed_rows`). What is drawn `sample_shape` times
    has these dimensions in its batch, in loops too, as NumPyro itself has it within plates.

    Args:
        fn: the program.
        params: values of `numpyro.param` and `numpyro.primitives.mutable` sites.
        latents: values of sample sites that are not observed; inside `scan`, those of all steps.
        subsample: indices of subsampled plates.
    """

    def __init__(
        self,
        fn: Callable,
        *,
        params: Mapping[str, PyTree] | None = None,
        latents: Mapping[str, Array] | None = None,
        subsample: Mapping[str, Array] | None = None,
    ):
        super().__init__(fn)
        self.latents = dict(latents or {})
        self.values = {"param": dict(params or {}), "sample": self.latents, "plate": dict(subsample or {})}
        self.starting = ""
        """The parameter whose first value is being drawn."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a site the value that there is for its kind and name, if it has none yet.

        Raises:
            DataError: data are no arrays of numbers.
        """
        if msg["type"] == "sample" and self._takes(msg):
            repeat_in_batch(msg)
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None and msg["value"] is None:
            if self.starting:
                msg["value"] = jax.random.fold_in(jax.random.key(0), zlib.crc32(self.starting.encode()))
            else:
                msg[UNSEEDED] = True
        elif msg["type"] == "mutable":
            state = self._state(msg["name"], msg["value"])
            # programs change states in place
            msg["value"] = dict(state) if isinstance(state, dict) else state
        elif msg["type"] == "control_flow":
            if is_scan(msg):
                body, *rest = msg["args"]
                msg["args"] = (Repeated(body), *rest)
            if self.latents:
                substitutions(msg).append(("substitute", self.latents))
        elif msg["type"] == "sample" and msg.get("is_observed"):
            msg["value"] = as_data(msg["name"], msg["value"])
        elif msg["type"] == "plate" and not is_told_afterwards(msg):
            self._choose_rows(msg)
        elif self._takes(msg) and msg["name"] in (values := self.values[msg["type"]]):
            msg["value"] = values[msg["name"]]
        if msg["type"] == "param":
            self.starting = msg["name"] if msg["value"] is None else ""

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Note that a parameter has its first value, so that keys asked for next are no part of it."""
        # modules ask for the value, draw it where there is none, and tell
        if msg["type"] == "param" and msg["value"] is not None:
            self.starting = ""

    def _state(self, name: str, first: PyTree) -> PyTree:
        params = self.values["param"]
        if name in params or first is not None:
            return params.get(name, first)
        if name.replace("$state", "$params") in params:
            raise KaynError(
                f"params has no value for the state {name!r} of a module whose parameters it has; pass both, as in "
                "params={**svi.get_params(state), **state.mutable_state}"
            )
        return None

    def _choose_rows(self, msg: dict[str, Any]) -> None:
        rows, fixed = self.values["plate"], set_rows(msg)
        if fixed is not None:
            msg[FIXED] = msg["value"] = fixed
        if msg["name"] in rows:
            msg["value"] = rows[msg["name"]]
        if fixed is not None or msg["name"] in rows:
            # any number of elements may be given, whatever the size of subsamples
            msg["args"] = (msg["args"][0], len(msg["value"]))

    def _takes(self, msg: Mapping[str, Any]) -> bool:
        return msg["type"] in self.values and msg["value"] is None and not msg.get("is_observed", False)


def repeat_in_batch(msg: dict[str, Any]) -> None:
    """Make the `sample_shape` of a site that is to be drawn dimensions of its batch."""
    times = msg["kwargs"]["sample_shape"]
    if times:
        msg["fn"] = msg["fn"].expand((*times, *msg["fn"].batch_shape))
        msg["kwargs"]["sample_shape"] = ()


class Repeated(Messenger):
    """The body of a loop in which what is drawn several times has these dimensions in its batch. (NumPyro 0.22 weighs
    what is drawn N times in T steps as if its laws had no such dimension: it refuses the shapes, or where N is T takes
    each draw for that of another step.)"""

    def process_message(self, msg: dict[str, Any]) -> None:
        """See `repeat_in_batch`."""
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            repeat_in_batch(msg)


def set_rows(msg: Mapping[str, Any]) -> Array | None:
    """The indices that a handler has given a plate, int32 [M], or None.

    Raises:
        ModelError: they are no indices of the plate's elements.
    """
    (full, size), value = msg["args"], msg["value"]
    if value is None:
        return None
    known = not is_traced(value)
    if (
        size in (None, full)
        and jnp.shape(value) == (full,)
        and not (known and (np.asarray(value) != np.arange(full)).any())
    ):
        return None  # all elements, in order
    whole = jnp.ndim(value) == 1 and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not whole or (known and not all(0 <= i < full for i in np.asarray(value))):
        shown = np.asarray(value).tolist() if known else f"{jnp.result_type(value)} {list(jnp.shape(value))}"
        raise ModelError(
            f"a handler gives plate {msg['name']!r} the indices {shown}, but they must be whole numbers [M], from 0 "
            f"to {full - 1}"
        )
    return jnp.asarray(value, jnp.int32)


class OneKind(Messenger):
    """Refuses a name that a program uses for sites of two kinds: NumPyro's trace would keep the last of them only,
    or neither say which."""

    def __init__(self, fn: Callable):
        super().__init__(fn)
        self.kinds: dict[str, str] = {}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Note a site's kind.

        Raises:
            ModelError: its name was that of another kind before.
        """
        if "name" not in msg or msg["type"] not in ("sample", "deterministic", "plate", "param", "mutable"):
            return
        first = self.kinds.setdefault(msg["name"], msg["type"])
        if first != msg["type"]:
            refuse_two_kinds(msg["name"], first, msg["type"])


def refuse_two_kinds(name: str, first: str, second: str) -> None:
    """Refuse a name of two sites.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"{name!r} is the name of a {first} site and of a {second} site; every site needs its own name, so rename "
        "one of the two"
    )
