"""Which elements of a program's inputs can change some of its outputs at all:
a boolean pass backwards through the jaxpr.

Where the program itself picks by a predicate (`jnp.where`) or multiplies by what may be exactly zero, the answer
depends on numbers, and is computed with the program. It may say yes where the truth is no; it must never say no where
an element counts. Operations without a rule say that every element counts if any of their result does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph import regions
from kayn.graph.bodies import Body, Influence, Look, Origin, Source, is_whole
from kayn.graph.lost import line_of
from kayn.graph.reads import RULES, either, everything
from kayn.programs.calls import called
from kayn.support.arrays import Array


def influences(
    jaxpr: Jaxpr,
    inputs: Sequence[Array],
    origins: Sequence[Origin],
    wanted: Sequence[Influence],
    look: Look,
) -> list[Influence]:
    """For every constant and input, which of its elements can change what is wanted.

    Args:
        inputs: values of constants and inputs.
        origins: what each of them is.
        wanted: for every output, the elements that matter.
        look: what is looked at.
    """
    variables = (*jaxpr.constvars, *jaxpr.invars)
    body = Body(jaxpr, inputs, dict(zip(variables, origins, strict=True)), look)
    found: dict[Any, Influence] = {}

    def add(atom: Any, influence: Influence) -> None:
        if not isinstance(atom, Literal) and body.source(atom) > Source.KNOWN:
            found[atom] = either(found.get(atom, False), influence)

    for atom, influence in zip(jaxpr.outvars, wanted, strict=True):
        add(atom, influence)
    for eqn in reversed(jaxpr.eqns):
        outs = [found.get(v, False) for v in eqn.outvars]
        if any(out is not False for out in outs):
            for atom, influence in zip(eqn.invars, _backwards(body, eqn, outs), strict=True):
                add(atom, influence)
    return [found.get(v, False) for v in variables]


def _backwards(body: Body, eqn: JaxprEqn, outs: list[Influence]) -> list[Influence]:
    name = eqn.primitive.name
    if (call := called(eqn)) is not None:
        inner = ClosedJaxpr(call[0], list(call[1]))
        before = len(body.look.unresolved)
        values, origins = [body.value(v) for v in eqn.invars], [body.origin(v) for v in eqn.invars]
        found = _within(body, inner, values, origins, outs, True)
        # what a library compiles apart has forgotten where it was called
        new = [(what, line or line_of(eqn)) for what, line in body.look.unresolved[before:]]
        body.look.unresolved[before:] = new
        return found
    if name in regions.RULES:
        origins = [body.origin(v) for v in eqn.invars]
        values = [body.value(v) for v in eqn.invars]
        around = regions.Inner(values, origins, body.looks_at, partial(_within, body), _outcome, _merged)
        return regions.RULES[name](around, eqn, outs)
    rule = RULES.get(name)
    if rule is not None:
        return rule(body, eqn, outs)
    body.look.unresolved.append((name, line_of(eqn)))
    return [False] * len(eqn.invars) if body.look.trusting else everything(body, eqn, outs)


def _within(
    body: Body,
    inner: ClosedJaxpr,
    values: Sequence[Array],
    origins: Sequence[Origin],
    wanted: Sequence[Influence],
    looks: bool,
) -> list[Influence]:
    """As `influences`, of a program within this one, for its inputs alone; whether values in it may be looked at."""
    look = body.look if looks else body.look.blind
    given, own = [*inner.consts, *values], [*(Origin(Source.KNOWN, is_whole(c)) for c in inner.consts), *origins]
    return influences(inner.jaxpr, given, own, wanted, look)[len(inner.consts) :]


def _outcome(inner: ClosedJaxpr, origins: Sequence[Origin]) -> list[Origin]:
    """Origins of a program's outputs."""
    variables = (*inner.jaxpr.constvars, *inner.jaxpr.invars)
    own = [*(Origin(Source.KNOWN, is_whole(c)) for c in inner.consts), *origins]
    body = Body(inner.jaxpr, (), dict(zip(variables, own, strict=True)), Look().blind)
    return [body.origin(v) for v in inner.jaxpr.outvars]


def _merged(a: Origin, b: Origin) -> Origin:
    return Origin(max(a.source, b.source), a.whole and b.whole)
