"""Cut a jaxpr down to the equations that one output needs, and run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.squeeze import run_squeezed
from kayn.support.arrays import Array


def equation_as_function(eqn: JaxprEqn, jaxpr: Jaxpr) -> Callable[..., list[Array]]:
    """An equation of `jaxpr` as a function of all its operands (literals included)."""

    def compute(*values: Array) -> list[Array]:
        given = {v: x for v, x in zip(eqn.invars, values, strict=True) if not isinstance(v, Literal)}
        return run_squeezed([eqn], given, eqn.outvars, jaxpr.debug_info)

    return compute


def needed_equations(jaxpr: Jaxpr, positions: Sequence[int]) -> tuple[list[JaxprEqn], set[Any]]:
    """The equations that some outputs need, in order, and all variables in them."""
    needed = {jaxpr.outvars[p] for p in positions if not isinstance(jaxpr.outvars[p], Literal)}
    eqns: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars) or (eqn.effects and _ordered(eqn)):
            eqns.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return eqns[::-1], needed


def without_dead(jaxpr: Jaxpr) -> Jaxpr:
    """The same program without the equations that no output needs; what is read of it need not be traced with them."""
    return jaxpr.replace(eqns=needed_equations(jaxpr, range(len(jaxpr.outvars)))[0])


def slice_outputs(jaxpr: Jaxpr, positions: Sequence[int]) -> tuple[Callable[..., list[Array]], tuple[int, ...]]:
    """The program that computes some outputs only.

    Returns:
        A function, and the positions (constants first, then inputs) of the arguments it takes.
    """
    outvars = [jaxpr.outvars[p] for p in positions]
    eqns, needed = needed_equations(jaxpr, positions)
    variables = [*jaxpr.constvars, *jaxpr.invars]
    used = tuple(i for i, v in enumerate(variables) if v in needed)

    def run(*values: Array) -> list[Array]:
        return run_squeezed(
            eqns, {variables[i]: x for i, x in zip(used, values, strict=True)}, outvars, jaxpr.debug_info
        )

    return run, used


def _ordered(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in ("debug_callback", "io_callback")
