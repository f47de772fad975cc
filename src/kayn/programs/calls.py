"""Equations that call another program on the operands as they are."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from kayn.programs.primitives import CALLS
from kayn.support.arrays import Array


def called(eqn: JaxprEqn) -> tuple[Jaxpr, Sequence[Array]] | None:
    """The program that an equation calls, and its constants; None if it is not such a call."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = next((eqn.params[p] for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in eqn.params), None)
    if isinstance(inner, ClosedJaxpr):
        inner, consts = inner.jaxpr, inner.consts
    elif isinstance(inner, Jaxpr) and not inner.constvars:
        consts = ()
    else:
        return None
    fits = len(inner.invars) == len(eqn.invars) and len(inner.outvars) == len(eqn.outvars)
    return (inner, consts) if fits else None
