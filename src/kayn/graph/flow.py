"""Which inputs of a program reach which of its outputs: the flow of data, whatever the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.calls import called
from kayn.programs.primitives import IDENTITY

Sources = frozenset[str]


def reach(jaxpr: Jaxpr, inputs: Sequence[Sources]) -> list[Sources]:
    """The sources of every output, given those of every input; calls, branches and loops are looked into."""
    env: dict[Any, Sources] = dict.fromkeys(jaxpr.constvars, Sources())
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Sources:
        return Sources() if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, results(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def results(eqn: JaxprEqn, inputs: Sequence[Sources]) -> list[Sources]:
    """The sources of an equation's results, given those of its operands."""
    call = called(eqn)
    if call is not None:
        return reach(call[0], inputs)
    special = SPECIAL.get(eqn.primitive.name)
    return special(eqn, inputs) if special else [Sources().union(*inputs)] * len(eqn.outvars)


def _barrier(eqn: JaxprEqn, inputs: Sequence[Sources]) -> list[Sources]:
    return list(inputs)


def _cond(eqn: JaxprEqn, inputs: Sequence[Sources]) -> list[Sources]:
    found = [reach(branch.jaxpr, inputs[1:]) for branch in eqn.params["branches"]]
    return [inputs[0].union(*own) for own in zip(*found, strict=True)]


def _scan(eqn: JaxprEqn, inputs: Sequence[Sources]) -> list[Sources]:
    constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    end = constants + carried
    consts, carry, rows = inputs[:constants], list(inputs[constants:end]), inputs[end:]
    while True:
        out = reach(eqn.params["jaxpr"].jaxpr, [*consts, *carry, *rows])
        grown = [a | b for a, b in zip(carry, out, strict=False)]
        if grown == carry:
            return [*carry, *out[carried:]]
        carry = grown


def _while(eqn: JaxprEqn, inputs: Sequence[Sources]) -> list[Sources]:
    tests, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    end = tests + constants
    carry = list(inputs[end:])
    while True:
        (decides,) = reach(eqn.params["cond_jaxpr"].jaxpr, [*inputs[:tests], *carry])
        out = reach(eqn.params["body_jaxpr"].jaxpr, [*inputs[tests:end], *carry])
        grown = [a | b | decides for a, b in zip(carry, out, strict=True)]
        if grown == carry:
            return carry
        carry = grown


SPECIAL = {**dict.fromkeys(IDENTITY, _barrier), "cond": _cond, "scan": _scan, "while": _while}
"""Equations whose results do not all depend on all operands."""
