"""Which elements of an operation's operands count, given those of its results that do: a rule a primitive.

Operations without a rule are taken to read everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from kayn.graph.bodies import Body, Influence
from kayn.graph.picks import picked_anywhere
from kayn.programs.primitives import ELEMENTWISE, IDENTITY, INDEXED, LINEAR, PARTIAL, REDUCTIONS
from kayn.support.arrays import Array


def either(a: Influence, b: Influence) -> Influence:
    """The elements that count in one of two ways."""
    if a is True or b is True:
        return True
    return b if a is False else a if b is False else a | b


def _any(influence: Influence) -> Influence:
    return influence if isinstance(influence, bool) else jnp.any(influence)


def _spread(influence: Influence, shape: Sequence[int]) -> Influence:
    return influence if isinstance(influence, bool) else jnp.broadcast_to(influence, shape)


def everything(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """All of every operand, if anything of a result counts."""
    some: Influence = False
    for out in outs:
        some = either(some, _any(out))
    return [_spread(some, getattr(v.aval, "shape", ())) for v in eqn.invars]


def _fitted(out: Influence, shape: Sequence[int]) -> Influence:
    """What counts of an operand, which may have ones where the result has more."""
    if isinstance(out, bool) or out.shape == tuple(shape):
        return out
    ones = tuple(d for d, size in enumerate(shape) if size == 1) if out.ndim == len(shape) else tuple(range(out.ndim))
    return _spread(jnp.any(out, ones, keepdims=out.ndim == len(shape)), shape)


def _elementwise(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    out = outs[0]
    for other in outs[1:]:
        out = either(out, other)
    return [_fitted(out, v.aval.shape) for v in eqn.invars]


def _where(condition: Any, out: Influence) -> Influence:
    return condition if out is True else condition & out


def _select(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    which, *cases = eqn.invars
    if body.source(which) > body.look.predicates:
        return _elementwise(body, eqn, outs)
    chosen = jnp.asarray(body.value(which)).astype(jnp.int32)
    shape = eqn.outvars[0].aval.shape
    picked = [_where(jnp.broadcast_to(chosen == i, shape), outs[0]) for i in range(len(cases))]
    return [_fitted(outs[0], which.aval.shape), *(_fitted(p, v.aval.shape) for p, v in zip(picked, cases, strict=True))]


def _product(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    def through(other: Any) -> Influence:
        if not body.may_be_zero(other):
            return outs[0]
        return _where(jnp.broadcast_to(body.value(other) != 0, eqn.outvars[0].aval.shape), outs[0])

    a, b = eqn.invars
    return [_fitted(through(b), a.aval.shape), _fitted(through(a), b.aval.shape)]


def _transposed(call: Callable[..., list[Array]], at: Any, outs: Sequence[Array], like: Any) -> Array:
    """The elements of an operand that reach wanted ones of a linear operation."""
    shapes = jax.tree.leaves(like)
    weights = [jnp.broadcast_to(jnp.asarray(out, jnp.float32), s.shape) for out, s in zip(outs, shapes, strict=True)]
    _, back = jax.vjp(call, at)
    return back(weights)[0] > 0


def _linear(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    if all(out is True for out in outs) and eqn.primitive.name not in PARTIAL:
        return [True] * len(eqn.invars)
    zeros = [jnp.zeros(v.aval.shape, jnp.float32) for v in eqn.invars]

    def call(position: int, x: Array) -> list[Array]:
        out = eqn.primitive.bind(*zeros[:position], x, *zeros[position + 1 :], **eqn.params)
        return out if eqn.primitive.multiple_results else [out]

    like = [v.aval for v in eqn.outvars]
    return [_transposed(partial(call, i), zeros[i], outs, like) for i in range(len(zeros))]


def _indexed(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    source, *places = eqn.invars
    rest = everything(body, eqn, outs)[1:]
    if outs[0] is not False and eqn.primitive.name == "gather":
        offset = eqn.params["dimension_numbers"].offset_dims
        picked = outs[0] if outs[0] is True else jnp.any(outs[0], offset)[..., None]
        rest = [_spread(picked, places[0].aval.shape)]
    if any(body.source(p) > body.look.predicates for p in places):
        return [picked_anywhere(eqn, outs[0]), *rest]
    at = [body.value(p) for p in places]
    params = {**eqn.params, "fill_value": 0} if "fill_value" in eqn.params else eqn.params

    def call(x: Array) -> list[Array]:
        return [eqn.primitive.bind(x, *at, **params)]

    like = [v.aval for v in eqn.outvars]
    return [_transposed(call, jnp.zeros(source.aval.shape, jnp.float32), outs, like), *rest]


def _placed(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """What is put into an array counts where it comes to lie, and what it takes the place of does not."""
    first = eqn.primitive.name == "dynamic_update_slice"
    into, updates, places = (eqn.invars[0], eqn.invars[1 if first else 2], eqn.invars[2:] if first else eqn.invars[1:2])
    some, shape = _any(outs[0]), into.aval.shape
    rest = [_spread(some, p.aval.shape) for p in places]
    kept, own = outs[0], _spread(some, updates.aval.shape)
    if all(body.source(p) <= body.look.predicates for p in places):
        at = [body.value(p) for p in places]

        def call(x: Array) -> list[Array]:
            if first:
                return [lax.dynamic_update_slice(jnp.zeros(shape, x.dtype), x, at)]
            numbers, mode = (eqn.params[n] for n in ("dimension_numbers", "mode"))
            return [lax.scatter_add(jnp.zeros(shape, x.dtype), at[0], x, numbers, mode=mode)]

        ones = jnp.ones(updates.aval.shape, jnp.float32)
        if eqn.primitive.name in ("dynamic_update_slice", "scatter"):
            kept = _where(call(ones)[0] == 0, outs[0])
        own = _transposed(call, 0 * ones, outs, [eqn.outvars[0].aval])
    return [kept, own, *rest] if first else [kept, *rest, own]


def _sort(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    some: Influence = False
    for out in outs:
        some = either(some, out if isinstance(out, bool) else jnp.any(out, eqn.params["dimension"], keepdims=True))
    return [_spread(some, v.aval.shape) for v in eqn.invars]


def _barrier(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    return list(outs)


def _reduction(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    out, shape = outs[0], eqn.invars[0].aval.shape
    if isinstance(out, bool):
        return [out]
    kept = [d for d in range(len(shape)) if d not in eqn.params["axes"]]
    return [lax.broadcast_in_dim(out, shape, kept)]


def _cumulative(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    if isinstance(outs[0], bool):
        return [outs[0]]
    options = {"axis": eqn.params["axis"], "reverse": not eqn.params["reverse"]}
    return [lax.cummax(outs[0].astype(jnp.int32), **options) > 0]


def _along(count: int) -> Callable[[Body, JaxprEqn, Sequence[Influence]], list[Influence]]:
    """Batched linear algebra: the last `count` dimensions are read as a whole."""

    def rule(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
        found: Influence = False
        batch = eqn.outvars[0].aval.shape[: len(eqn.outvars[0].aval.shape) - count]
        for out, v in zip(outs, eqn.outvars, strict=True):
            if v.aval.shape[: len(batch)] != batch:
                return everything(body, eqn, outs)
            whole = out if isinstance(out, bool) else jnp.any(out, tuple(range(len(batch), out.ndim)))
            found = either(found, whole)
        if any(v.aval.shape[: len(batch)] != batch for v in eqn.invars):
            return everything(body, eqn, outs)
        spread = [(1,) * (len(v.aval.shape) - len(batch)) for v in eqn.invars]
        return [
            found if isinstance(found, bool) else jnp.broadcast_to(found.reshape(batch + ones), v.aval.shape)
            for v, ones in zip(eqn.invars, spread, strict=True)
        ]

    return rule


def _triangular_solve(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """Right-hand sides are solved for one by one, each with the matrix of its batch."""
    out = outs[0]
    if isinstance(out, bool):
        return [out, out]
    mixed = out.ndim - (2 if eqn.params["left_side"] else 1)
    found = [jnp.any(out, (out.ndim - 2, out.ndim - 1), keepdims=True), jnp.any(out, mixed, keepdims=True)]
    return [_spread(f, v.aval.shape) for f, v in zip(found, eqn.invars, strict=True)]


def _dot(body: Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    """Rows and columns that count, of those that meet no zero on the other side."""

    def through(side: int) -> Influence:
        own, other = eqn.invars[side].aval.shape, eqn.invars[1 - side]
        known = body.may_be_zero(other)
        if outs[0] is True and not known:
            return True
        present = jnp.asarray(body.value(other) != 0 if known else jnp.ones(other.aval.shape), jnp.float32)
        numbers = eqn.params["dimension_numbers"]

        def call(x: Array) -> list[Array]:
            return [lax.dot_general(*((x, present) if side == 0 else (present, x)), numbers)]

        return _transposed(call, jnp.zeros(own, jnp.float32), outs, [eqn.outvars[0].aval])

    return [through(0), through(1)]


Rule = Callable[[Body, JaxprEqn, list[Influence]], list[Influence]]
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(["mul", "mul_no_nan", "and"], _product),
    "select_n": _select,
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(INDEXED, _indexed),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(["cumlogsumexp", "cumprod", "cummax", "cummin"], _cumulative),
    **dict.fromkeys(["cholesky", "lu", "eigh", "qr", "svd"], _along(2)),
    "triangular_solve": _triangular_solve,
    "dot_general": _dot,
    **dict.fromkeys(["dynamic_update_slice", "scatter", "scatter-add", "scatter-sub", "scatter_add"], _placed),
    **dict.fromkeys(["scatter-mul", "scatter_mul", "scatter-min", "scatter-max"], _placed),
    "sort": _sort,
    **dict.fromkeys(IDENTITY, _barrier),
}
