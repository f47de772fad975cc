"""Which latents enter a traced value together: values as sums and as products of parts that depend on a few latents
each.

The linear predictor of a regression, `alpha[group] + x @ beta`, is a sum of one part for `alpha` and one for `beta`,
and a rate that is the exponential of one is a product. Nothing is computed: equations are read one by one, and what has
no rule counts as one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.calls import called
from kayn.programs.outputs import OutputName
from kayn.programs.primitives import SAME
from kayn.programs.trace import Program

Sets = frozenset[frozenset[str]]
"""Sets of latents, one for each part; none for what depends on no latent."""


@dataclass(frozen=True)
class Parts:
    """A value as a sum of functions of `terms`, and as a product of functions of `factors`."""

    terms: Sets
    factors: Sets

    @property
    def together(self) -> Sets:
        """One part of everything."""
        return _one(self.terms | self.factors)


CONSTANT = Parts(frozenset(), frozenset())


def read_parts(program: Program) -> dict[OutputName, Parts]:
    """The parts of every output of a program, sets that share a latent united."""
    jaxpr = program.jaxpr
    inputs = [_latent(program.inputs[i]) if i < len(program.inputs) else CONSTANT for i in range(len(jaxpr.invars))]
    found = _walk(jaxpr, [CONSTANT] * len(jaxpr.constvars), inputs)
    return {n: Parts(_disjoint(p.terms), _disjoint(p.factors)) for n, p in zip(program.outputs, found, strict=True)}


def _latent(name: str) -> Parts:
    alone = frozenset((frozenset((name,)),))
    return Parts(alone, alone)


def _one(sets: Sets) -> Sets:
    return frozenset((frozenset[str]().union(*sets),)) if sets else sets


def _disjoint(sets: Sets) -> Sets:
    out: list[frozenset[str]] = []
    for mine in sets:
        joined = mine.union(*(other for other in out if other & mine))
        out = [joined, *(other for other in out if not other & mine)]
    return frozenset(out)


def _walk(jaxpr: Jaxpr, constants: Sequence[Parts], inputs: Sequence[Parts]) -> list[Parts]:
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

    def read(atom: object) -> Parts:
        return CONSTANT if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn: JaxprEqn, operands: Sequence[Parts]) -> list[Parts]:
    call = called(eqn)
    if call is not None:
        inner, consts = call
        return _walk(inner, [CONSTANT] * len(consts), operands)
    if all(p == CONSTANT for p in operands):
        return [CONSTANT] * len(eqn.outvars)
    return [_rule(eqn, operands)(operands)] * len(eqn.outvars)


def _rule(eqn: JaxprEqn, operands: Sequence[Parts]) -> Callable[[Sequence[Parts]], Parts]:
    name = eqn.primitive.name
    if name in SAME:
        return _same if _fixed(_indices(name, operands)) else _opaque
    # whole numbers are rounded or wrap around
    if not all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
        return _opaque
    return RULES.get(name, _opaque)


def _indices(name: str, operands: Sequence[Parts]) -> Sequence[Parts]:
    """Operands that say where entries come from."""
    if name == "select_n":
        return operands[:1]
    return operands[1:] if name in ("gather", "dynamic_slice") else ()


def _union(operands: Sequence[Parts], of: Callable[[Parts], Sets]) -> Sets:
    return frozenset[frozenset[str]]().union(*(of(p) for p in operands))


def _together(operands: Sequence[Parts]) -> Sets:
    return _one(_union(operands, lambda p: p.together))


def _opaque(operands: Sequence[Parts]) -> Parts:
    return Parts(_together(operands), _together(operands))


def _same(operands: Sequence[Parts]) -> Parts:
    return Parts(_union(operands, lambda p: p.terms), _union(operands, lambda p: p.factors))


def _sum(operands: Sequence[Parts]) -> Parts:
    return Parts(_union(operands, lambda p: p.terms), _together(operands))


def _product(operands: Sequence[Parts]) -> Parts:
    moving = [p for p in operands if p != CONSTANT]
    return Parts(moving[0].terms if len(moving) == 1 else _together(operands), _union(operands, lambda p: p.factors))


def _quotient(operands: Sequence[Parts]) -> Parts:
    found = _product(operands)
    return found if operands[1] == CONSTANT else Parts(_together(operands), found.factors)


def _linear(operands: Sequence[Parts]) -> Parts:
    return Parts(_product(operands).terms, _together(operands))


def _power(operands: Sequence[Parts]) -> Parts:
    return Parts(_together(operands), operands[0].factors) if _fixed(operands[1:]) else _opaque(operands)


def _fixed(operands: Sequence[Parts]) -> bool:
    return all(p == CONSTANT for p in operands)


RULES: Mapping[str, Callable[[Sequence[Parts]], Parts]] = {
    **dict.fromkeys(("add", "add_any", "sub", "reduce_sum", "cumsum"), _sum),
    **dict.fromkeys(("mul", "neg"), _product),
    "convert_element_type": _same,
    "div": _quotient,
    "dot_general": _linear,
    **dict.fromkeys(("abs", "integer_pow", "pow", "rsqrt", "sqrt", "square", "reduce_prod"), _power),
    "exp": lambda operands: Parts(operands[0].together, operands[0].terms),
    "log": lambda operands: Parts(operands[0].factors, operands[0].together),
}
"""How parts combine, by primitive."""
