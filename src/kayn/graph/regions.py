"""Which elements count of what branches and loops are given, whose bodies are programs of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun

from kayn.graph.bodies import Influence, Origin
from kayn.support.arrays import Array


@dataclass(frozen=True)
class Inner:
    """What a rule needs of the program around an equation.

    Attributes:
        values: of the equation's operands.
        origins: what each of them is computed from.
        known: whether values of an origin may be looked at. Loops are run without the others, since their equation
            would read them all.
        influences: an inner program, values and origins of its inputs and what is wanted of its outputs, to what
            counts of the inputs; whether its values may be looked at.
        outcome: an inner program and origins of its inputs to those of its outputs.
        merged: the origin of what may be either of two.
    """

    values: Sequence[Array]
    origins: Sequence[Origin]
    known: Callable[[Origin], bool]
    influences: Callable[[ClosedJaxpr, Sequence[Array], Sequence[Origin], Sequence[Influence], bool], list[Influence]]
    outcome: Callable[[ClosedJaxpr, Sequence[Origin]], list[Origin]]
    merged: Callable[[Origin, Origin], Origin]


def full(influence: Influence, shape: Sequence[int]) -> Array:
    """The same as an array."""
    return jnp.full(shape, influence) if isinstance(influence, bool) else jnp.broadcast_to(influence, shape)


def _fulls(found: Sequence[Influence], like: Sequence[Any]) -> list[Array]:
    return [full(f, jnp.shape(v)) for f, v in zip(found, like, strict=True)]


def _union(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [x | y for x, y in zip(a, b, strict=True)]


def cond(inner: Inner, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """What counts in the branch that is taken, where that is known; in any of them, where it is not."""
    which, *operands = inner.values
    branches = eqn.params["branches"]
    chosen = jnp.clip(jnp.asarray(which).astype(jnp.int32), 0, len(branches) - 1)
    found = [jnp.zeros(jnp.shape(v), bool) for v in operands]
    for i, branch in enumerate(branches):
        own = _fulls(inner.influences(branch, operands, inner.origins[1:], outs, True), operands)
        found = _union(found, [o & (chosen == i) for o in own] if inner.known(inner.origins[0]) else own)
    return [True, *found]


def scan(inner: Inner, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """Step by step from the last, with the values that were carried into each."""
    body, constants, carried = (eqn.params[p] for p in ("jaxpr", "num_consts", "num_carry"))
    ends = constants, constants + carried
    origins = list(inner.origins)
    while True:
        out = inner.outcome(body, origins)[:carried]
        grown = [inner.merged(a, b) for a, b in zip(origins[slice(*ends)], out, strict=True)]
        if grown == origins[slice(*ends)]:
            break
        origins[slice(*ends)] = grown
    consts, start, rows = (list(part) for part in _cut(_without_unknown(inner, origins), ends))
    run = jaxpr_as_fun(body)
    options = {"length": eqn.params["length"]}

    def forth(carry: list[Array], row: list[Array]) -> tuple[list[Array], list[Array]]:
        return run(*consts, *carry, *row)[:carried], carry

    _, before = lax.scan(forth, start, rows, **options, reverse=eqn.params["reverse"])
    wanted = [full(o, v.aval.shape) for o, v in zip(outs, eqn.outvars, strict=True)]

    def back(
        state: tuple[list[Array], list[Array]], step: tuple[list[Array], list[Array], list[Array]]
    ) -> tuple[Any, Any]:
        (found, carry), (values, row, results) = state, step
        given = [*consts, *values, *row]
        own = _fulls(inner.influences(body, given, origins, [*carry, *results], True), given)
        of_consts, of_carry, of_rows = _cut(own, ends)
        return (_union(found, of_consts), list(of_carry)), list(of_rows)

    first = [jnp.zeros(jnp.shape(c), bool) for c in consts], wanted[:carried]
    steps = before, rows, wanted[carried:]
    (of_consts, of_start), of_rows = lax.scan(back, first, steps, **options, reverse=not eqn.params["reverse"])
    return [*of_consts, *of_start, *of_rows]


def while_loop(inner: Inner, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """What counts after any number of steps, whose values are not looked at; what ends the loop counts too."""
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    ends = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    of_test, of_body, start = _cut(_without_unknown(inner, inner.origins, True), ends)
    # any step may be the first: origins of what is carried are those of the results
    tests, bodies, _ = _cut(inner.origins, ends)
    last = [inner.merged(a, b) for a, b in zip(inner.origins[ends[1] :], _all(inner, len(start)), strict=True)]
    decides = _fulls(inner.influences(test, [*of_test, *start], [*tests, *last], [True], False), [*of_test, *start])
    wanted = _union(_fulls(outs, start), decides[len(of_test) :])

    def once(wanted: list[Array]) -> list[Array]:
        found = inner.influences(body, [*of_body, *start], [*bodies, *last], wanted, False)
        return _fulls(found, [*of_body, *start])

    def grow(state: tuple[list[Array], Any]) -> tuple[list[Array], Any]:
        wanted, _ = state
        grown = _union(wanted, once(wanted)[len(of_body) :])
        changed = [jnp.any(a != b) for a, b in zip(grown, wanted, strict=True)]
        return grown, jnp.any(jnp.stack(changed))

    wanted, _ = jax.lax.while_loop(lambda state: state[1], grow, (wanted, jnp.array(bool(start))))
    return [*decides[: len(of_test)], *once(wanted)[: len(of_body)], *wanted]


def _without_unknown(inner: Inner, origins: Sequence[Origin], whatever: bool = False) -> list[Array]:
    """Values with zeros in the places of those that are not looked at, or of all."""

    def blank(value: Array) -> Array:
        return value if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else jnp.zeros(value.shape, value.dtype)

    values = [jnp.asarray(v) for v in inner.values]
    return [blank(v) if whatever or not inner.known(o) else v for v, o in zip(values, origins, strict=True)]


def _all(inner: Inner, count: int) -> list[Origin]:
    """For each of so many values, what they could be computed from: everything that the loop is given."""
    found = inner.origins[0]
    for origin in inner.origins[1:]:
        found = inner.merged(found, origin)
    return [found] * count


def _cut(values: Sequence[Any], ends: tuple[int, int]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    return values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]


RULES = {"cond": cond, "scan": scan, "while": while_loop}
