"""Which elements of a program's inputs can change some of its outputs at all: a boolean pass backwards through the jaxpr.

Where the program itself picks by a predicate (`jnp.where`) or multiplies by what may be exactly zero, the answer depends
on numbers, and is computed with the program. It may say yes where the truth is no; it must never say no where an element
counts. Operations without a rule say that every element counts if any of their result does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from kayn.graph.picks import picked_anywhere
from kayn.programs.primitives import ELEMENTWISE, INDEXED, LINEAR, PARTIAL, REDUCTIONS
from kayn.support.arrays import Array

Influence = bool | Any
"""True for all elements, False for none, else a boolean array of the variable's shape."""


class Source(IntEnum):
    """What a value is computed from; predicates and factors are looked at up to some source."""

    KNOWN = 0
    """Data and parameters alone."""
    DISCRETE = 1
    """Discrete latents too."""
    CONTINUOUS = 2


@dataclass(frozen=True)
class Origin:
    """Where a value comes from, and whether it is computed from whole numbers alone, so that it may well be exactly zero."""

    source: Source
    whole: bool


CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


@dataclass
class _Body:
    """A jaxpr with the values of its inputs and where they come from; values inside are computed when they are asked for."""

    jaxpr: Jaxpr
    inputs: Sequence[Array]
    origins: dict[Any, Origin]
    predicates: Source
    zeros: Source
    _values: dict[Any, Array] = field(default_factory=dict)

    @cached_property
    def _given(self) -> dict[Any, Array]:
        return dict(zip((*self.jaxpr.constvars, *self.jaxpr.invars), self.inputs, strict=True))

    def __post_init__(self) -> None:
        for eqn in self.jaxpr.eqns:
            read = [self.origins[v] for v in eqn.invars if not isinstance(v, Literal)]
            source = max((o.source for o in read), default=Source.KNOWN)
            for v in eqn.outvars:
                self.origins[v] = Origin(source, is_whole(v.aval) or (bool(read) and all(o.whole for o in read)))

    def origin(self, atom: Any) -> Origin:
        return Origin(Source.KNOWN, is_whole(atom.aval)) if isinstance(atom, Literal) else self.origins[atom]

    def source(self, atom: Any) -> Source:
        return self.origin(atom).source

    def may_be_zero(self, atom: Any) -> bool:
        """Whether a factor is worth looking at; other numbers are hardly ever exactly zero."""
        if self.source(atom) > self.zeros:
            return False
        value = atom.val if isinstance(atom, Literal) else self._given.get(atom)
        if value is not None and not isinstance(value, jax.core.Tracer):
            return not np.all(np.asarray(value))
        return self.origin(atom).whole

    def value(self, atom: Any) -> Array:
        if isinstance(atom, Literal):
            return atom.val
        if not self._values:
            self._values = run_equations(self.jaxpr, self.inputs)
        return self._values[atom]


def is_whole(value: Any) -> bool:
    """Whether a type is that of whole numbers or truth values."""
    return not jnp.issubdtype(value.dtype, jnp.inexact)


def run_equations(jaxpr: Jaxpr, inputs: Sequence[Array]) -> dict[Any, Array]:
    """The value of every variable; `inputs` are those of constants and inputs."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
    for eqn in jaxpr.eqns:
        variables = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, Literal)))
        alone = Jaxpr([], variables, list(eqn.outvars), [eqn], eqn.effects, jaxpr.debug_info)
        out = jaxpr_as_fun(ClosedJaxpr(alone, []))(*(env[v] for v in variables))
        env.update(zip(eqn.outvars, out, strict=True))
    return env


def influences(
    jaxpr: Jaxpr,
    inputs: Sequence[Array],
    origins: Sequence[Origin],
    wanted: Sequence[Influence],
    predicates: Source,
    zeros: Source,
) -> list[Influence]:
    """For every constant and input, which of its elements can change what is wanted.

    Args:
        inputs: values of constants and inputs.
        origins: what each of them is.
        wanted: for every output, the elements that matter.
        predicates, zeros: predicates and factors that come from beyond these are not looked at.
    """
    variables = (*jaxpr.constvars, *jaxpr.invars)
    body = _Body(jaxpr, inputs, dict(zip(variables, origins, strict=True)), predicates, zeros)
    found: dict[Any, Influence] = {}

    def add(atom: Any, influence: Influence) -> None:
        if not isinstance(atom, Literal) and body.source(atom) > Source.KNOWN:
            found[atom] = _either(found.get(atom, False), influence)

    for atom, influence in zip(jaxpr.outvars, wanted, strict=True):
        add(atom, influence)
    for eqn in reversed(jaxpr.eqns):
        outs = [found.get(v, False) for v in eqn.outvars]
        if any(out is not False for out in outs):
            for atom, influence in zip(eqn.invars, _backwards(body, eqn, outs), strict=True):
                add(atom, influence)
    return [found.get(v, False) for v in variables]


def _backwards(body: _Body, eqn: JaxprEqn, outs: list[Influence]) -> list[Influence]:
    name = eqn.primitive.name
    if name in CALLS and (inner := _called(eqn)) is not None:
        values = [*inner.consts, *map(body.value, eqn.invars)]
        origins = [*(Origin(Source.KNOWN, is_whole(c)) for c in inner.consts), *map(body.origin, eqn.invars)]
        found = influences(inner.jaxpr, values, origins, outs, body.predicates, body.zeros)
        return found[len(inner.consts) :]
    rule = RULES.get(name)
    return _everything(body, eqn, outs) if rule is None else rule(body, eqn, outs)


def _called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    inner = next((eqn.params[p] for p in ("jaxpr", "call_jaxpr") if p in eqn.params), None)
    if isinstance(inner, Jaxpr) and not inner.constvars:
        inner = ClosedJaxpr(inner, [])
    fits = isinstance(inner, ClosedJaxpr) and len(inner.jaxpr.invars) == len(eqn.invars)
    return inner if fits else None


def _either(a: Influence, b: Influence) -> Influence:
    if a is True or b is True:
        return True
    return b if a is False else a if b is False else a | b


def _any(influence: Influence) -> Influence:
    return influence if isinstance(influence, bool) else jnp.any(influence)


def _spread(influence: Influence, shape: Sequence[int]) -> Influence:
    return influence if isinstance(influence, bool) else jnp.broadcast_to(influence, shape)


def _everything(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    some: Influence = False
    for out in outs:
        some = _either(some, _any(out))
    return [_spread(some, getattr(v.aval, "shape", ())) for v in eqn.invars]


def _fitted(out: Influence, shape: Sequence[int]) -> Influence:
    """What counts of an operand, which may have ones where the result has more."""
    if isinstance(out, bool) or out.shape == tuple(shape):
        return out
    ones = tuple(d for d, size in enumerate(shape) if size == 1) if out.ndim == len(shape) else tuple(range(out.ndim))
    return _spread(jnp.any(out, ones, keepdims=out.ndim == len(shape)), shape)


def _elementwise(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    out = outs[0]
    for other in outs[1:]:
        out = _either(out, other)
    return [_fitted(out, v.aval.shape) for v in eqn.invars]


def _where(condition: Any, out: Influence) -> Influence:
    return condition if out is True else condition & out


def _select(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    which, *cases = eqn.invars
    if body.source(which) > body.predicates:
        return _elementwise(body, eqn, outs)
    chosen = jnp.asarray(body.value(which)).astype(jnp.int32)
    shape = eqn.outvars[0].aval.shape
    picked = [_where(jnp.broadcast_to(chosen == i, shape), outs[0]) for i in range(len(cases))]
    return [_fitted(outs[0], which.aval.shape), *(_fitted(p, v.aval.shape) for p, v in zip(picked, cases, strict=True))]


def _product(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
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


def _linear(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    if all(out is True for out in outs) and eqn.primitive.name not in PARTIAL:
        return [True] * len(eqn.invars)
    zeros = [jnp.zeros(v.aval.shape, jnp.float32) for v in eqn.invars]

    def call(position: int, x: Array) -> list[Array]:
        out = eqn.primitive.bind(*zeros[:position], x, *zeros[position + 1 :], **eqn.params)
        return out if eqn.primitive.multiple_results else [out]

    like = [v.aval for v in eqn.outvars]
    return [_transposed(partial(call, i), zeros[i], outs, like) for i in range(len(zeros))]


def _indexed(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    source, *places = eqn.invars
    rest = _everything(body, eqn, outs)[1:]
    if outs[0] is not False and eqn.primitive.name == "gather":
        offset = eqn.params["dimension_numbers"].offset_dims
        picked = outs[0] if outs[0] is True else jnp.any(outs[0], offset)[..., None]
        rest = [_spread(picked, places[0].aval.shape)]
    if any(body.source(p) > body.predicates for p in places):
        return [picked_anywhere(eqn, outs[0]), *rest]
    at = [body.value(p) for p in places]
    params = {**eqn.params, "fill_value": 0} if "fill_value" in eqn.params else eqn.params

    def call(x: Array) -> list[Array]:
        return [eqn.primitive.bind(x, *at, **params)]

    like = [v.aval for v in eqn.outvars]
    return [_transposed(call, jnp.zeros(source.aval.shape, jnp.float32), outs, like), *rest]


def _reduction(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    out, shape = outs[0], eqn.invars[0].aval.shape
    if isinstance(out, bool):
        return [out]
    kept = [d for d in range(len(shape)) if d not in eqn.params["axes"]]
    return [lax.broadcast_in_dim(out, shape, kept)]


def _cumulative(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
    if isinstance(outs[0], bool):
        return [outs[0]]
    options = {"axis": eqn.params["axis"], "reverse": not eqn.params["reverse"]}
    return [lax.cummax(outs[0].astype(jnp.int32), **options) > 0]


def _along(count: int) -> Callable[[_Body, JaxprEqn, Sequence[Influence]], list[Influence]]:
    """Batched linear algebra: the last `count` dimensions are read as a whole."""

    def rule(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
        found: Influence = False
        batch = eqn.outvars[0].aval.shape[: len(eqn.outvars[0].aval.shape) - count]
        for out, v in zip(outs, eqn.outvars, strict=True):
            if v.aval.shape[: len(batch)] != batch:
                return _everything(body, eqn, outs)
            whole = out if isinstance(out, bool) else jnp.any(out, tuple(range(len(batch), out.ndim)))
            found = _either(found, whole)
        if any(v.aval.shape[: len(batch)] != batch for v in eqn.invars):
            return _everything(body, eqn, outs)
        spread = [(1,) * (len(v.aval.shape) - len(batch)) for v in eqn.invars]
        return [
            found if isinstance(found, bool) else jnp.broadcast_to(found.reshape(batch + ones), v.aval.shape)
            for v, ones in zip(eqn.invars, spread, strict=True)
        ]

    return rule


def _dot(body: _Body, eqn: JaxprEqn, outs: Sequence[Influence]) -> list[Influence]:
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


Rule = Callable[[_Body, JaxprEqn, list[Influence]], list[Influence]]
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(["mul", "mul_no_nan", "and"], _product),
    "select_n": _select,
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(INDEXED, _indexed),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(["cumlogsumexp", "cumprod", "cummax", "cummin"], _cumulative),
    **dict.fromkeys(["cholesky", "lu", "eigh", "qr", "svd", "triangular_solve"], _along(2)),
    "dot_general": _dot,
}
