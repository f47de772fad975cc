"""Run equations without dimensions of size one.

A latent in `plate(..., dim=-2)` has a last dimension of size one, which stays the last one under `vmap`. XLA's loops on
CPUs run along the last dimension: with a single element in it they take several times as long. Equations are therefore
run on squeezed arrays wherever that is a matter of bookkeeping, and as they stand elsewhere. It also spares programs
their reshapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from kayn.programs.primitives import ELEMENTWISE
from kayn.support.arrays import Array

Shape = tuple[int, ...]


def run_squeezed(
    eqns: Sequence[JaxprEqn], given: Mapping[Var, Array], wanted: Sequence[Any], debug_info: Any
) -> list[Array]:
    """Values of variables (or literals) after some equations, in their full shapes."""
    env = {v: _squeezed(x) for v, x in given.items()}
    _run(eqns, env, debug_info)
    return [jnp.reshape(_read(env, v), v.aval.shape) if hasattr(v.aval, "shape") else _read(env, v) for v in wanted]


def _run(eqns: Sequence[JaxprEqn], env: dict[Var, Array], debug_info: Any) -> None:
    for eqn in eqns:
        operands = [_read(env, v) for v in eqn.invars]
        rule = RULES.get(eqn.primitive.name)
        values = rule(eqn, operands) if rule else None
        if values is None:
            values = _as_it_stands(eqn, operands, debug_info)
        for variable, value in zip(eqn.outvars, values, strict=True):
            env[variable] = value


def _read(env: Mapping[Var, Array], v: Any) -> Array:
    return _squeezed(v.val) if isinstance(v, Literal) else env[v]


def _squeezed(value: Array) -> Array:
    shape = jnp.shape(value)
    return jnp.reshape(value, _without_ones(shape)) if 1 in shape else value


def _without_ones(shape: Sequence[int]) -> Shape:
    return tuple(n for n in shape if n != 1)


def _kept(shape: Sequence[int], dims: Sequence[int]) -> Shape:
    """Dimensions of an array in its squeezed form; those of size one are left out."""
    return tuple(sum(n != 1 for n in shape[:d]) for d in dims if shape[d] != 1)


def _as_it_stands(eqn: JaxprEqn, operands: Sequence[Array], debug_info: Any) -> list[Array]:
    given = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, Literal)}
    full = [jnp.reshape(x, v.aval.shape) if 1 in getattr(v.aval, "shape", ()) else x for v, x in given.items()]
    alone = Jaxpr([], list(given), list(eqn.outvars), [eqn], eqn.effects, debug_info)
    return [_squeezed(x) for x in jaxpr_as_fun(ClosedJaxpr(alone, []))(*full)]


def _elementwise(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    out = eqn.outvars[0].aval.shape

    def fitted(value: Array, shape: Sequence[int]) -> Array:
        # a dimension of size one that is broadcast stays
        wanted = tuple(n for n, m in zip(shape, out, strict=True) if m != 1) if len(shape) == len(out) else shape
        return value if jnp.shape(value) == wanted else jnp.reshape(value, wanted)

    fits = [fitted(x, v.aval.shape) for x, v in zip(operands, eqn.invars, strict=True)]
    return [eqn.primitive.bind(*fits, **eqn.params)]


def _broadcast_in_dim(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array] | None:
    if len(operands) > 1 or eqn.params.get("sharding") is not None:
        return None
    source, target = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    dims = [d for n, d in zip(source, eqn.params["broadcast_dimensions"], strict=True) if n != 1]
    return [lax.broadcast_in_dim(operands[0], _without_ones(target), _kept(target, dims))]


def _same_order(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array] | None:
    """Reshapes that only add and remove dimensions of size one."""
    if _without_ones(eqn.invars[0].aval.shape) == _without_ones(eqn.outvars[0].aval.shape):
        return list(operands[:1])
    return None


def _transpose(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    shape = eqn.invars[0].aval.shape
    order = _kept(shape, eqn.params["permutation"])
    return [operands[0] if order == tuple(range(len(order))) else lax.transpose(operands[0], order)]


def _reduce(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    axes = _kept(eqn.invars[0].aval.shape, eqn.params["axes"])
    return [eqn.primitive.bind(*operands, **{**eqn.params, "axes": axes})] if axes else list(operands)


def _call(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    closed = eqn.params["jaxpr"]
    inner = dict(zip(closed.jaxpr.invars, operands, strict=True))
    inner |= {v: _squeezed(x) for v, x in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
    _run(closed.jaxpr.eqns, inner, closed.jaxpr.debug_info)
    return [_read(inner, v) for v in closed.jaxpr.outvars]


def _barrier(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    return list(eqn.primitive.bind(*operands, **eqn.params))


RULES: Mapping[str, Callable[[JaxprEqn, Sequence[Array]], list[Array] | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "broadcast_in_dim": _broadcast_in_dim,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _same_order),
    "transpose": _transpose,
    "optimization_barrier": _barrier,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduce),
    **dict.fromkeys(("jit", "pjit"), _call),
}
"""How to run a primitive on squeezed operands. All others, and where a rule says None,
get the shapes they were traced with."""
