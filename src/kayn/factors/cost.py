"""What operations cost: whether an output is dear to compute on many combinations of particles,
and how long scatters are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.programs.outputs import OutputName
from kayn.programs.primitives import POLYNOMIAL, TRANSCENDENTAL
from kayn.programs.slices import needed_equations
from kayn.programs.trace import Program
from kayn.xla.jit import inner_jaxprs


def is_dear(program: Program, output: OutputName, axis_of: Mapping[str, str]) -> bool:
    """Whether an output has transcendental functions of several particle axes at a time, or special functions of any.

    Args:
        axis_of: the particle axis of every latent, by name.
    """
    axes: dict[Any, frozenset[str]] = {}
    for variable, latent in zip(program.jaxpr.invars, program.inputs, strict=False):
        axes[variable] = frozenset((axis_of[latent],)) if latent in axis_of else frozenset()
    eqns, _ = needed_equations(program.jaxpr, [program.outputs.index(output)])
    return _any_dear(eqns, axes)


def _any_dear(eqns: Iterable[JaxprEqn], axes: dict[Any, frozenset[str]]) -> bool:
    for eqn in eqns:
        mine = [frozenset[str]() if isinstance(v, Literal) else axes.get(v, frozenset()) for v in eqn.invars]
        together = frozenset[str]().union(*mine)
        axes.update(dict.fromkeys(eqn.outvars, together))
        name = eqn.primitive.name
        if (name in TRANSCENDENTAL and len(together) > 1) or (name in POLYNOMIAL and together):
            return True
        if any(_any_dear(inner.eqns, _bound(inner, mine, together)) for inner in inner_jaxprs(eqn)):
            return True
    return False


def _bound(jaxpr: Jaxpr, mine: Sequence[frozenset[str]], together: frozenset[str]) -> dict[Any, frozenset[str]]:
    exact = len(mine) == len(jaxpr.invars)
    return {v: mine[i] if exact else together for i, v in enumerate(jaxpr.invars)}
