"""Running products of exponentials as exponentials of running sums, which can be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from kayn.programs.interpret import Value, interpreted
from kayn.support.arrays import Array


def with_sums_of_logs(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A program without calls in which no exponentials are multiplied one after the other."""
    if not any(_logs(closed.jaxpr, e) is not None for e in closed.jaxpr.eqns):
        return closed
    avals = [v.aval for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *x: _run(closed.jaxpr, [*closed.consts, *x]))(*avals)


def _logs(jaxpr: Jaxpr, eqn: JaxprEqn) -> Any:
    """The logs of what an equation multiplies; None for other equations, and for what is no exponential."""
    if eqn.primitive.name != "cumprod":
        return None
    return next((e.invars[0] for e in jaxpr.eqns if e.primitive.name == "exp" and e.outvars[0] is eqn.invars[0]), None)


def _run(jaxpr: Jaxpr, inputs: Sequence[Array]) -> list[Array]:
    def of_logs(eqn: JaxprEqn, value: Value) -> list[Array] | None:
        logs = _logs(jaxpr, eqn)
        if logs is None:
            return None
        return [jnp.exp(jax.lax.cumsum(value(logs), eqn.params["axis"], eqn.params["reverse"]))]

    return interpreted(jaxpr, inputs, of_logs)
