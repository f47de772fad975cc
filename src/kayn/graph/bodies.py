"""A program that is read backwards for what counts in it: where its values come from,
and those that may be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from kayn.support.arrays import Array

Influence = bool | Any
"""True for all elements, False for none, else a boolean array of the variable's shape."""


class Source(IntEnum):
    """What a value is computed from; predicates and factors are looked at up to some source."""

    NOTHING = -1
    """No value at all: none is looked at."""
    KNOWN = 0
    """Data and parameters alone."""
    DISCRETE = 1
    """Discrete latents too."""
    CONTINUOUS = 2


@dataclass(frozen=True)
class Origin:
    """Where a value comes from, and whether it is computed from whole numbers alone,
    so that it may well be exactly zero."""

    source: Source
    whole: bool


@dataclass(frozen=True)
class Look:
    """How far a pass looks.

    Attributes:
        predicates, zeros: predicates and factors that come from beyond these are not looked at.
        unresolved: equations without a rule are added here, as their primitive and the line of the model.
        trusting: such an equation is taken to read nothing, instead of everything.
    """

    predicates: Source = Source.KNOWN
    zeros: Source = Source.KNOWN
    unresolved: list[tuple[str, str]] = field(default_factory=list)
    trusting: bool = False

    @property
    def blind(self) -> Look:
        """The same without any values."""
        return replace(self, predicates=Source.NOTHING, zeros=Source.NOTHING)


@dataclass
class Body:
    """A jaxpr with the values of its inputs and where they come from;
    values inside are computed when they are asked for."""

    jaxpr: Jaxpr
    inputs: Sequence[Array]
    origins: dict[Any, Origin]
    look: Look
    _values: dict[Any, Array] = field(default_factory=dict)

    @cached_property
    def _given(self) -> dict[Any, Array]:
        return dict(zip((*self.jaxpr.constvars, *self.jaxpr.invars), self.inputs, strict=True))

    def __post_init__(self) -> None:
        """Find where all values come from."""
        for eqn in self.jaxpr.eqns:
            read = [self.origins[v] for v in eqn.invars if not isinstance(v, Literal)]
            source = max((o.source for o in read), default=Source.KNOWN)
            for v in eqn.outvars:
                self.origins[v] = Origin(source, is_whole(v.aval) or (bool(read) and all(o.whole for o in read)))

    def origin(self, atom: Any) -> Origin:
        """Where a variable or a literal comes from."""
        return Origin(Source.KNOWN, is_whole(atom.aval)) if isinstance(atom, Literal) else self.origins[atom]

    def source(self, atom: Any) -> Source:
        """What it is computed from."""
        return self.origin(atom).source

    def looks_at(self, origin: Origin) -> bool:
        """Whether a value may be looked at, as a predicate or as a factor."""
        return origin.source <= max(self.look.predicates, self.look.zeros)

    def may_be_zero(self, atom: Any) -> bool:
        """Whether a factor is worth looking at; other numbers are hardly ever exactly zero."""
        if self.source(atom) > self.look.zeros:
            return False
        value = atom.val if isinstance(atom, Literal) else self._given.get(atom)
        if value is not None and not isinstance(value, jax.core.Tracer):
            return not np.all(np.asarray(value))
        return self.origin(atom).whole

    def value(self, atom: Any) -> Array:
        """Its value; all are computed when one is asked for."""
        if isinstance(atom, Literal):
            return atom.val
        if not self._values:
            self._values = run_equations(self.jaxpr, self.inputs)
        return self._values[atom]


def is_whole(value: Any) -> bool:
    """Whether a type is that of whole numbers or truth values."""
    return not jnp.issubdtype(value.dtype, jnp.inexact)


def run_equations(jaxpr: Jaxpr, inputs: Sequence[Array]) -> dict[Any, Array]:
    """The value of every variable; `inputs` are those of constants and inputs."""
    inside = [v for eqn in jaxpr.eqns for v in eqn.outvars]
    given = [*jaxpr.constvars, *jaxpr.invars]
    whole = Jaxpr([], given, inside, jaxpr.eqns, jaxpr.effects, jaxpr.debug_info)
    return dict(zip((*given, *inside), (*inputs, *jaxpr_as_fun(ClosedJaxpr(whole, []))(*inputs)), strict=True))
