"""Run a program one equation after the other, some of them in another way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.slices import equation_as_function
from kayn.support.arrays import Array

Value = Callable[[Any], Array]
Rule = Callable[[JaxprEqn, Value], Sequence[Array] | None]
RuleOf = Callable[[JaxprEqn, Sequence[int], Value], Sequence[Array] | None]


def interpreted(jaxpr: Jaxpr, inputs: Sequence[Array], rule: Rule) -> list[Array]:
    """A program's results.

    Args:
        inputs: its constants and inputs.
        rule: what an equation puts out, given the value of every variable or literal up to there; None where it is to
            be computed as it stands.
    """
    env: dict[Any, Array] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def value(v: Any) -> Array:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        out = rule(eqn, value)
        if out is None:
            out = equation_as_function(eqn, jaxpr)(*map(value, eqn.invars))
        env.update(zip(eqn.outvars, out, strict=True))
    return [value(v) for v in jaxpr.outvars]


def interpreted_behind(jaxpr: Jaxpr, inputs: Sequence[Array], starts: Collection[Any], rule: RuleOf) -> list[Array]:
    """A program's results.

    Args:
        inputs: its constants and inputs.
        starts: variables.
        rule: as in `interpreted`, of equations that read these or what is made of them; also given which operands do.
    """
    reached = set(starts)

    def behind(eqn: JaxprEqn, value: Value) -> Sequence[Array] | None:
        mine = [i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in reached]
        if not mine:
            return None
        reached.update(eqn.outvars)
        return rule(eqn, mine, value)

    return interpreted(jaxpr, inputs, behind)
