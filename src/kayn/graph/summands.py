"""How a log density is a sum: the values that it is linear in, and with which weights.

A flat program is walked backwards from its result through operations that are linear in what depends on latents: sums,
moves of entries, products with what is no part of the sum, choices by data. Wherever the walk ends, the result is
`rest + sum(weights * values)`; the weights are its derivatives, which JAX takes by transposing the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.primitives import PLACED, SUMS
from kayn.support.arrays import Array

Ways = tuple[tuple[int, ...], ...]
"""Operands that an operation is linear in together; several where it is linear in either of them."""


def linear_in(eqn: JaxprEqn, varies: Container[Any]) -> Ways:
    """The operands that an equation's result is linear in, the others given: none for what is not.

    Args:
        varies: variables that depend on latents.
    """
    moving = tuple(i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in varies)
    floats = (*eqn.outvars, *(eqn.invars[i] for i in moving))
    if not moving or len(eqn.outvars) > 1 or not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in floats):
        return ()
    name = eqn.primitive.name
    if name in SUMS:
        return (moving,)
    if name in ("mul", "dot_general"):
        return tuple((i,) for i in moving)
    if name == "div":
        return ((0,),) if 0 in moving else ()
    if name == "select_n":
        return () if 0 in moving else (moving,)
    if name in PLACED:
        places = set(range(PLACED[name], len(eqn.invars)))
        places -= {len(eqn.invars) - 1} if name.startswith("scatter") else set()
        return () if places & {*moving} else (moving,)
    return ()


def varying(jaxpr: Jaxpr, inputs: Sequence[Any]) -> set[Any]:
    """The variables that depend on some inputs."""
    found = set(inputs)
    for eqn in jaxpr.eqns:
        if any(v in found for v in eqn.invars if not isinstance(v, Literal)):
            found.update(eqn.outvars)
    return found


@dataclass(frozen=True, eq=False)
class Sum:
    """A result as a function of the values it is linear in.

    Attributes:
        jaxpr: the flat program.
        out: the result.
        terms: the values.
        path: the equations from these to the result, in order, with the operands that are followed.
    """

    jaxpr: Jaxpr
    out: Any
    terms: tuple[Any, ...]
    path: tuple[tuple[JaxprEqn, tuple[int, ...]], ...]

    @property
    def has_rest(self) -> bool:
        """Whether anything is added that is none of the values."""
        zeros = _zeros(self.jaxpr)
        return any(
            not (np.all(np.asarray(v.val) == 0) if isinstance(v, Literal) else v in zeros)
            for eqn, way in self.path
            for i, v in enumerate(eqn.invars)
            if i not in way and _is_entry(eqn, i)
        )

    def result(self, env: Mapping[Any, Array], values: Sequence[Array]) -> Array:
        """The result for other values of the terms, all else as it is in `env`."""
        found = dict(zip(self.terms, values, strict=True))
        for eqn, way in self.path:
            operands = [
                found[v] if i in way else v.val if isinstance(v, Literal) else env[v] for i, v in enumerate(eqn.invars)
            ]
            found[eqn.outvars[0]] = eqn.primitive.bind(*operands, **eqn.params)
        return found[self.out]

    def rest(self, env: Mapping[Any, Array]) -> Array:
        """What is left where all terms are zero: the result's shape."""
        return self.result(env, [jnp.zeros(v.aval.shape, v.aval.dtype) for v in self.terms])

    def weights(self, env: Mapping[Any, Array]) -> list[Array]:
        """How often every entry of the terms counts in the sum of all of the result: the terms' shapes."""
        zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in self.terms]
        _, back = jax.vjp(lambda *x: jnp.sum(self.result(env, x)), *zeros)
        return list(back(jnp.ones((), self.out.aval.dtype)))


def _is_entry(eqn: JaxprEqn, position: int) -> bool:
    """Whether what stands there is added to the result, or put into it."""
    name = eqn.primitive.name
    if name == "select_n":
        return position > 0
    if name in PLACED:
        return position < PLACED[name] or (name.startswith("scatter") and position == len(eqn.invars) - 1)
    return name in SUMS


def _zeros(jaxpr: Jaxpr) -> set[Any]:
    """Variables that are zero by the look of the program."""
    found: set[Any] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type", "neg") and eqn.invars:
            v = eqn.invars[0]
            if np.all(np.asarray(v.val) == 0) if isinstance(v, Literal) else v in found:
                found.update(eqn.outvars)
    return found


Reads = frozenset
"""Pairs of a latent and a plate of it of which several elements are read at once."""


def chosen_terms(jaxpr: Jaxpr, out: Any, varies: Container[Any], reads: Callable[[Any], Reads]) -> tuple[Sum, Reads]:
    """The result taken apart as far as that lets terms read fewer elements at once, and no further.

    Args:
        reads: what of it a value mixes.

    Returns:
        the sum, and what its terms still mix. A single term, the result itself, where nothing is gained.
    """
    left: dict[Any, Reads] = {}
    ways: dict[Any, tuple[int, ...]] = {}
    made = {v: e for e in jaxpr.eqns for v in e.outvars}

    def of(v: Any) -> Reads:
        return Reads() if isinstance(v, Literal) or v not in varies else left[v] if v in left else reads(v)

    for eqn in _linear_part(jaxpr, out, varies):
        v = eqn.outvars[0]
        left[v] = reads(v)
        if not left[v]:
            continue
        for way in linear_in(eqn, varies):
            given = (u for i, u in enumerate(eqn.invars) if i not in way)
            found = Reads().union(*(of(eqn.invars[i]) for i in way), *(_whole(u, varies, reads) for u in given))
            if found < left[v]:
                left[v], ways[v] = found, way
    terms, path, todo, seen = [], [], [out], {out}
    while todo:
        v = todo.pop()
        if v not in ways:
            terms.append(v)
            continue
        path.append((made[v], ways[v]))
        new = {made[v].invars[i]: None for i in ways[v]}
        todo.extend(u for u in new if u not in seen)
        seen.update(new)
    order = {id(e): i for i, e in enumerate(jaxpr.eqns)}
    path.sort(key=lambda step: order[id(step[0])])
    return Sum(jaxpr, out, tuple(terms), tuple(path)), of(out)


def _whole(v: Any, varies: Container[Any], reads: Callable[[Any], Reads]) -> Reads:
    return Reads() if isinstance(v, Literal) or v not in varies else reads(v)


def _linear_part(jaxpr: Jaxpr, out: Any, varies: Container[Any]) -> list[JaxprEqn]:
    """The equations through which the walk could go, in order."""
    found, wanted = [], {out}
    for eqn in reversed(jaxpr.eqns):
        # calls for their effects alone, and loops of which no result is used, have none
        ways = linear_in(eqn, varies) if wanted.intersection(eqn.outvars[:1]) else ()
        if ways:
            found.append(eqn)
            wanted.update(eqn.invars[i] for way in ways for i in way)
    return found[::-1]


def candidates(jaxpr: Jaxpr, out: Any, varies: Container[Any]) -> list[Any]:
    """Values of which it matters what they mix."""
    found = {} if isinstance(out, Literal) else {out: None}
    for eqn in _linear_part(jaxpr, out, varies):
        found |= {v: None for v in eqn.invars if not isinstance(v, Literal) and v in varies}
    return list(found)
