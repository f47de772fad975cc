"""What a traced program computes, as a digest: equal digests are equal programs, wherever and by whom they were traced.

Everything that the data, options or closures of a function have made of its program stands in its equations: shapes,
branches that were taken, numbers that were known. So two programs of one digest may share what was compiled, and
nothing else has to be listed that they could depend on.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

RULES = {
    "custom_jvp_call": ("jvp_jaxpr_fun", "jvp_jaxpr_thunk"),
    "custom_vjp_call": ("fwd_jaxpr_thunk", "bwd", "out_trees"),
    "custom_vjp_call_jaxpr": ("fwd_jaxpr_thunk", "bwd", "out_trees"),
}
"""Parameters that say how to differentiate, which nobody does with a program that is about to be compiled."""

MOST = 256
"""Placements that are known again."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """A digest, and the objects that it knows by their place in memory: it holds while they live,
    so whoever keeps the digest keeps them."""

    digest: bytes
    kept: tuple[Any, ...]


def fingerprint(closed: ClosedJaxpr, with_consts: bool = False) -> Fingerprint:
    """The fingerprint of a program as a function of its inputs and constants, of which the types alone count;
    or of its inputs, `with_consts`."""
    writer = _Writer()
    found = writer.jaxpr(closed.jaxpr)
    if with_consts:
        found = hashlib.sha256(found + repr([writer.value(c) for c in closed.consts]).encode()).digest()
    return Fingerprint(found, tuple(writer.kept.values()))


class _Writer:
    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.done: dict[int, tuple[bytes, Jaxpr]] = {}
        self.types: dict[Any, str] = {}
        self.contexts: dict[int, tuple[str, Any]] = {}

    def jaxpr(self, jaxpr: Jaxpr) -> bytes:
        if id(jaxpr) not in self.done:
            self.done[id(jaxpr)] = (self._jaxpr(jaxpr), jaxpr)
        return self.done[id(jaxpr)][0]

    def _jaxpr(self, jaxpr: Jaxpr) -> bytes:
        places = {v: i for i, v in enumerate((*jaxpr.constvars, *jaxpr.invars))}
        found = hashlib.sha256()

        def write(*parts: Any) -> None:
            found.update(repr(parts).encode())

        write(len(jaxpr.constvars), [self.type_of(v) for v in places])
        for eqn in jaxpr.eqns:
            operands = [self.atom(v, places) for v in eqn.invars]
            for v in eqn.outvars:
                places[v] = len(places)
            write(*self.equation(eqn), operands, [self.type_of(v) for v in eqn.outvars])
        write([self.atom(v, places) for v in jaxpr.outvars])
        return found.digest()

    def equation(self, eqn: JaxprEqn) -> tuple[Any, ...]:
        name = eqn.primitive.name
        left_out = RULES.get(name, ())
        params = [(n, self.value(v)) for n, v in sorted(eqn.params.items()) if n not in left_out]
        return name, self.identity(eqn.primitive), self.context(eqn), params

    def context(self, eqn: JaxprEqn) -> str:
        """Settings that an equation was traced under, such as the generator of random numbers."""
        found = getattr(eqn, "ctx", None)
        if id(found) not in self.contexts:
            self.contexts[id(found)] = (repr(found), found)
        return self.contexts[id(found)][0]

    def atom(self, atom: Any, places: Mapping[Any, int]) -> Any:
        return (self.value(atom.val), self.type_of(atom)) if isinstance(atom, Literal) else places[atom]

    def type_of(self, atom: Any) -> str:
        aval = atom.aval
        if aval not in self.types:
            self.types[aval] = f"{aval} {getattr(aval, 'weak_type', '')}"
        return self.types[aval]

    def value(self, value: Any) -> Any:
        """What stands for a parameter; another object than an equal one at worst."""
        if value is None or isinstance(value, bool | int | str | bytes):
            return type(value).__name__, value
        if isinstance(value, float | complex):
            return type(value).__name__, repr(value)
        if isinstance(value, enum.Enum):
            return self.identity(type(value)), value.name
        if isinstance(value, np.dtype):
            return "dtype", str(value)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return self.array(value)
        if isinstance(value, ClosedJaxpr):
            return "closed", self.jaxpr(value.jaxpr), [self.value(c) for c in value.consts]
        if isinstance(value, Jaxpr):
            return "jaxpr", self.jaxpr(value)
        if isinstance(value, Mapping):
            return "mapping", sorted((repr(self.value(k)), self.value(v)) for k, v in value.items())
        if isinstance(value, Sequence):
            return self.identity(type(value)), [self.value(v) for v in value]
        return self.identity(_one_of_all(value) if isinstance(value, jax.sharding.Sharding) else value)

    def array(self, value: Any) -> Any:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) or isinstance(value, jax.core.Tracer):
            return self.identity(value)
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return self.identity(value)
        host = np.asarray(value)
        return str(host.dtype), host.shape, hashlib.sha256(np.ascontiguousarray(host).tobytes()).digest()

    def identity(self, value: Any) -> tuple[str, int]:
        self.kept[id(value)] = value
        return "object", id(value)


@lru_cache(MOST)
def _one_of_all(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The same object for all that are equal: JAX makes another wherever a number is put on a device."""
    return sharding
