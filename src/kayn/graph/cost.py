"""What operations cost: whether an output is dear to compute on many combinations of particles, and how long scatters are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph.slices import needed_equations
from kayn.graph.trace import Program

TRANSCENDENTAL = frozenset(
    (
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "logistic",
        "tanh",
        "erf",
        "erfc",
        "erf_inv",
        "pow",
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "atan2",
    )
)
POLYNOMIAL = frozenset(
    ("lgamma", "digamma", "polygamma", "igamma", "igammac", "regularized_incomplete_beta", "bessel_i0e", "bessel_i1e")
)
"""Compilers take these apart into cheap operations, and repeat those wherever the result is used."""


def is_dear(program: Program, name: str, axis_of: Mapping[str, str]) -> bool:
    """Whether an output has transcendental functions of several particle axes at a time, or special functions of any.

    Args:
        axis_of: the particle axis of every latent, by name.
    """
    axes: dict[Any, frozenset[str]] = {}
    for variable, latent in zip(program.jaxpr.invars, program.inputs, strict=False):
        axes[variable] = frozenset((axis_of[latent],)) if latent in axis_of else frozenset()
    eqns, _ = needed_equations(program.jaxpr, [program.outputs.index(name)])
    return _any_dear(eqns, axes)


def _any_dear(eqns: Iterable[JaxprEqn], axes: dict[Any, frozenset[str]]) -> bool:
    for eqn in eqns:
        mine = [frozenset[str]() if isinstance(v, Literal) else axes.get(v, frozenset()) for v in eqn.invars]
        together = frozenset[str]().union(*mine)
        axes.update(dict.fromkeys(eqn.outvars, together))
        name = eqn.primitive.name
        if (name in TRANSCENDENTAL and len(together) > 1) or (name in POLYNOMIAL and together):
            return True
        if any(_any_dear(inner.eqns, _bound(inner, mine, together)) for inner in _inner(eqn)):
            return True
    return False


def longest_scatter(jaxpr: Jaxpr) -> int:
    """The largest number of updates of any scatter in a program."""
    mine = (math.prod(e.invars[1].aval.shape[:-1]) for e in jaxpr.eqns if e.primitive.name.startswith("scatter"))
    within = (longest_scatter(inner) for eqn in jaxpr.eqns for inner in _inner(eqn))
    return max((*mine, *within), default=0)


def _inner(eqn: JaxprEqn) -> list[Jaxpr]:
    """Programs within an equation."""
    found = [
        v.jaxpr if isinstance(v, ClosedJaxpr) else v
        for p in eqn.params.values()
        for v in (p if isinstance(p, tuple) else (p,))
    ]
    return [v for v in found if isinstance(v, Jaxpr)]


def _bound(jaxpr: Jaxpr, mine: Sequence[frozenset[str]], together: frozenset[str]) -> dict[Any, frozenset[str]]:
    exact = len(mine) == len(jaxpr.invars)
    return {v: mine[i] if exact else together for i, v in enumerate(jaxpr.invars)}
