"""Random numbers that a program takes and no sample site records: those of `numpyro.prng_key`, of dropout,
of sites that a handler hides.

They are inputs of a program beside its latents. A guide's particles are drawn and weighed with the same keys, which
count as auxiliary sites; a model whose density depends on some is refused, as they would be latents without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from numpyro.primitives import Messenger

from kayn.programs.given import UNSEEDED
from kayn.support.arrays import Array, KeyArray
from kayn.support.keys import DEFAULT
from kayn.support.names import RESERVED

KEY = f"{RESERVED}key:"
"""Prefix of the names of keys, which are numbered in the order in which a program asks for them."""


class Keys(Messenger):
    """A program that tells which keys it asks for, beyond those that its sites are drawn with, or that is given them.

    Stands outside of `numpyro.handlers.seed`.

    Args:
        given: raw keys by name.

    Attributes:
        found: raw keys by name, uint32 [2].
    """

    def __init__(self, fn: Callable, given: Mapping[str, Array] | None = None):
        super().__init__(fn)
        self.given = dict(given or {})
        self.found: dict[str, Array] = {}
        self.count = 0

    def process_message(self, msg: dict[str, Any]) -> None:
        """Name a key that the program asks for, in the order of asking, and hand it the one given under that name."""
        if msg["type"] == "prng_key" and UNSEEDED in msg:
            msg["_kayn_key"] = self._next()
            if msg["_kayn_key"] in self.given:
                msg["value"] = self._key(msg["_kayn_key"])
        elif msg["type"] == "control_flow":
            # a loop hands on keys of its own to what is inside
            name = msg["_kayn_key"] = self._next()
            asking = [_Asking(a, msg) if callable(a) else a for a in msg["args"]]
            msg["args"] = tuple(asking)
            if name in self.given:
                msg["kwargs"]["rng_key"] = self._key(name)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Note the key that was handed out."""
        if msg["type"] == "prng_key" and "_kayn_key" in msg:
            self.found[msg["_kayn_key"]] = jax.random.key_data(msg["value"])
        elif msg["type"] == "control_flow" and msg.get("_kayn_asked"):
            self.found[msg["_kayn_key"]] = jax.random.key_data(msg["kwargs"]["rng_key"])

    def _next(self) -> str:
        self.count += 1
        return f"{KEY}{self.count}"

    def _key(self, name: str) -> KeyArray:
        return jax.random.wrap_key_data(self.given[name], impl=DEFAULT)


class _Asking(Messenger):
    """The body of a loop that notes whether it asks for keys."""

    def __init__(self, fn: Callable, msg: dict[str, Any]):
        super().__init__(fn)
        self.msg = msg

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None:
            self.msg["_kayn_asked"] = True


class Unseeded(Messenger):
    """A program whose draws do not keep the seeds of handlers within it, or of `rng_key=`:
    particles and predictions are drawn anew.

    Keys that the program asks for itself are left alone.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Take the key away that a handler within has set for a draw."""
        if msg["type"] in ("sample", "control_flow") and msg.get("value") is None and not msg.get("is_observed", False):
            msg["kwargs"]["rng_key"] = None
