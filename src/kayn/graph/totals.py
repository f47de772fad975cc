"""Loops that add up: what every step adds, as an array of its own that is summed behind the loop.

`total + term(x)` as the carry of a `scan` or `fori_loop` is the way in which a log likelihood is written row by row. A
carry that nothing but the sum itself reads is taken out of the loop; a loop without any other carry is no loop at all,
and its steps are computed side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from kayn.programs.calls import called
from kayn.programs.interpret import Value, interpreted
from kayn.support.arrays import Array

SAME = frozenset(("convert_element_type", "copy", "copy_p", "reshape"))


def run_flat(jaxpr: Jaxpr, inputs: Sequence[Array]) -> list[Array]:
    """Run a program, calls of others in it as if their equations stood there, and loops that add up as sums.

    Those with derivatives of their own stay calls.
    """

    def flat(eqn: JaxprEqn, value: Value) -> list[Array]:
        values = [value(v) for v in eqn.invars]
        call = None if eqn.primitive.name.startswith("custom") else called(eqn)
        if call is not None:
            return run_flat(call[0], [*call[1], *values])
        sums = _sums_of(eqn)
        return _as_it_stands(eqn, values, jaxpr) if sums is None else _without_sums(eqn, sums, values)

    return interpreted(jaxpr, inputs, flat)


def _as_it_stands(eqn: JaxprEqn, values: Sequence[Array], jaxpr: Jaxpr) -> list[Array]:
    given = {v: x for v, x in zip(eqn.invars, values, strict=True) if not isinstance(v, Literal)}
    alone = Jaxpr([], list(given), list(eqn.outvars), [eqn], eqn.effects, jaxpr.debug_info)
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*given.values())


@dataclass(frozen=True, eq=False)
class _Sums:
    """A loop's carries by what becomes of them.

    Attributes:
        body: the loop's body, flat.
        added: places of carries to which something is added that does not depend on them.
        counted: by place of a carry, the whole number that is added to it in every step.
    """

    body: ClosedJaxpr
    added: tuple[int, ...]
    counted: Mapping[int, Any]


def _sums_of(eqn: JaxprEqn) -> _Sums | None:
    """The carries of a loop that only add up; None where there are none, or the equation is no loop."""
    if eqn.primitive.name != "scan":
        return None
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body = eqn.params["jaxpr"]
    carries = range(consts, consts + carried)
    if not any(_is_float(body.jaxpr.invars[i]) for i in carries):
        return None
    flat = jax.make_jaxpr(lambda *x: run_flat(body.jaxpr, [*body.consts, *x]))(*(v.aval for v in body.jaxpr.invars))
    jaxpr = flat.jaxpr
    made = {v: e for e in jaxpr.eqns for v in e.outvars}
    uses: dict[Any, int] = {}
    for v in (*(v for e in jaxpr.eqns for v in e.invars), *jaxpr.outvars):
        if not isinstance(v, Literal):
            uses[v] = uses.get(v, 0) + 1
    pairs = [(i, jaxpr.invars[consts + i], jaxpr.outvars[i]) for i in range(carried)]
    added = tuple(i for i, x, out in pairs if _is_float(x) and _adds_to(x, out, made, uses))
    counted = {i: n for i, x, out in pairs if not _is_float(x) and (n := _counts(x, out, made)) is not None}
    return _Sums(flat, added, counted) if added else None


def _is_float(v: Any) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.floating)


def _adds_to(x: Any, out: Any, made: Mapping[Any, JaxprEqn], uses: Mapping[Any, int]) -> bool:
    """Whether a result is an operand, which nothing else reads, with something added."""
    while not isinstance(out, Literal):
        if out is x:
            return uses[x] == 1
        eqn = made.get(out)
        if eqn is None or uses[out] != 1:
            return False
        name, operands = eqn.primitive.name, eqn.invars
        if name in ("add", "add_any"):
            # the operand is followed on the side that it is on
            side = next((v for v in operands if not isinstance(v, Literal) and _reaches(x, v, made)), None)
        elif name == "sub" or (name in SAME and operands[0].aval.shape == out.aval.shape and _is_float(operands[0])):
            side = operands[0]
        else:
            return False
        if side is None or side.aval.shape != out.aval.shape:
            return False
        out = side
    return False


def _reaches(x: Any, out: Any, made: Mapping[Any, JaxprEqn]) -> bool:
    todo, seen = [out], {out}
    while todo:
        v = todo.pop()
        if v is x:
            return True
        new = {o for o in (made[v].invars if v in made else ()) if not isinstance(o, Literal)} - seen
        seen |= new
        todo.extend(new)
    return False


def _counts(x: Any, out: Any, made: Mapping[Any, JaxprEqn]) -> Any:
    """The number that a step adds to a counter, None for what is none."""
    eqn = made.get(out) if not isinstance(out, Literal) else None
    if eqn is None or eqn.primitive.name != "add" or x.aval.shape or x not in eqn.invars:
        return None
    other = next((v for v in eqn.invars if v is not x), None)
    return np.asarray(other.val) if isinstance(other, Literal) else None


def _without_sums(eqn: JaxprEqn, sums: _Sums, values: Sequence[Array]) -> list[Array]:
    """The loop's results, with what its steps add given back step by step and summed then."""
    consts, carried, length = (eqn.params[n] for n in ("num_consts", "num_carry", "length"))
    fixed, init, xs = values[:consts], values[consts : consts + carried], values[consts + carried :]
    steps = jnp.arange(length)[::-1] if eqn.params["reverse"] else jnp.arange(length)
    counts = [(init[i] + n * steps).astype(init[i].dtype) for i, n in sums.counted.items()]
    kept = [i for i in range(carried) if i not in sums.added and i not in sums.counted]
    run = jaxpr_as_fun(sums.body)

    def step(state: Sequence[Array], now: tuple[Sequence[Array], Sequence[Array]]) -> tuple[list[Array], list[Array]]:
        given = dict(zip(kept, state, strict=True)) | dict(zip(sums.counted, now[0], strict=True))
        zeros = {i: jnp.zeros_like(init[i]) for i in sums.added}
        out = run(*fixed, *((given | zeros)[i] for i in range(carried)), *now[1])
        return [out[i] for i in kept], [*(out[i] for i in sums.added), *out[carried:]]

    if kept:
        options = {"length": length, "reverse": eqn.params["reverse"]}
        state, stacked = jax.lax.scan(step, [init[i] for i in kept], (counts, list(xs)), **options)
    else:
        state, stacked = [], jax.vmap(lambda now: step([], now)[1], axis_size=length)((counts, list(xs)))
    last = dict(zip(kept, state, strict=True))
    last |= {i: init[i] + n * length for i, n in sums.counted.items()}
    last |= {i: init[i] + jnp.sum(x, 0) for i, x in zip(sums.added, stacked, strict=False)}
    return [*(last[i] for i in range(carried)), *stacked[len(sums.added) :]]
