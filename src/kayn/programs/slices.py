"""Cut a jaxpr down to the equations that one output needs, and run it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
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


def equations_of(
    eqns: Sequence[JaxprEqn],
    wanted: Iterable[Any],
    known: Container[Any] = (),
    also: Callable[[JaxprEqn], bool] = lambda eqn: False,
) -> tuple[list[JaxprEqn], set[Any]]:
    """Those of some equations that variables (or literals) need, in order, and all variables in them.

    Args:
        known: variables that need none.
        also: which equations are needed besides.
    """
    needed = {v for v in wanted if not isinstance(v, Literal)}
    found: list[JaxprEqn] = []
    for eqn in reversed(eqns):
        if any(v in needed and v not in known for v in eqn.outvars) or also(eqn):
            found.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return found[::-1], needed


def needed_equations(jaxpr: Jaxpr, positions: Sequence[int]) -> tuple[list[JaxprEqn], set[Any]]:
    """The equations that some outputs need, in order, and all variables in them."""
    return equations_of(jaxpr.eqns, (jaxpr.outvars[p] for p in positions), also=_ordered)


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
    return bool(eqn.effects) and eqn.primitive.name in ("debug_callback", "io_callback")
