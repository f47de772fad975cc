"""What an exponential family says of itself: `log p(value | parameters) = sum_f statistic_f * natural_f`.

A *form* splits a log density into statistics, computed from some arguments, and naturals, computed from the others, so
that each is evaluated on its own particle axes and a matrix product combines them. Families have several forms: which
one pays depends on which arguments share particle axes. Forms that expand a square (`cancels`) measure value and
location from a common reference, and are only used where float precision survives the subtraction
(`kayn.factors.by_product`).

Functions of one particle: arguments are [*outer, *core] with outer dimensions aligned, results are lists of pieces
[*outer, F].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.support.arrays import Array

Arguments = Mapping[str, Any]
Pieces = list[Any]
Parameters = Callable[[dist.Distribution], dict[str, Array]]
"""A distribution's parameters in the form that a family's density needs."""
WEIGHTS = ("mask", "scale_factor")
"""Arguments that multiply the statistics, whatever the family."""


@dataclass(frozen=True)
class Form:
    """One way to split a family's log density.

    Attributes:
        left: arguments that the statistics depend on.
        right: arguments that the naturals depend on.
        statistics: (arguments, reference) to pieces.
        naturals: (arguments, reference) to as many pieces.
        referenced: arguments that the reference is computed from.
        reference: means over particles, from the referenced arguments as [*outer, *core, P]; constants to the gradient.
        cancels: the number of leading pieces that are large terms of a small square.
    """

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    statistics: Callable[[Arguments, Arguments], Pieces]
    naturals: Callable[[Arguments, Arguments], Pieces]
    referenced: tuple[str, ...] = ()
    reference: Callable[[Arguments], Arguments] = lambda arguments: {}
    cancels: int = 0


@dataclass(frozen=True)
class Predictor:
    """How a regression enters a family's density: by an argument that is a sum of terms, or the exponential of one.

    Attributes:
        argument: its name.
        exponential: whether the argument is the exponential of the sum, as rates are; the density is then linear in the
            sum but for the argument itself. Otherwise the argument is the sum, and the density the square of what is
            left of the value, in units of `scale`.
        log_value: whether it is the logarithm of the value that the sum is compared with.
    """

    argument: str
    exponential: bool = False
    log_value: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """An exponential family: what all of kayn knows about it.

    Attributes:
        laws: its classes of NumPyro, each with what gives the parameters.
        forms: ways to split the density, the one without cancellation first.
        core_ndim: dimensions of arguments that belong to one element of the distribution, where there are any.
        predictor: how a regression enters it, if kayn splits that into its terms.
        has_factorials: whether statistics end with log factorials, which cancel against the other terms.
        solved: the arguments of a triangular system that every form solves, for vectors: in the square of their size.
        special: the arguments of every special function in the density's naturals, which take most of its time.
    """

    name: str
    laws: Mapping[type, Parameters]
    forms: tuple[Form, ...]
    core_ndim: Mapping[str, int] = field(default_factory=dict)
    predictor: Predictor | None = None
    has_factorials: bool = False
    solved: tuple[str, ...] = ()
    special: tuple[tuple[str, ...], ...] = ()

    def __repr__(self) -> str:
        """The name."""
        return self.name

    def operations(self, shape: Sequence[int]) -> int:
        """Operations of the density for a value of this shape, [*outer, *core]."""
        return math.prod(shape) * (shape[-1] if self.solved else 1)


def attributes(*names: str) -> Parameters:
    """Parameters that are attributes of the distribution."""
    return lambda fn: {name: getattr(fn, name) for name in names}


def scalars(*pieces: Array) -> Pieces:
    """Pieces of one feature each: [*outer, 1]."""
    return [jnp.asarray(p)[..., None] for p in pieces]


def ones(like: Array) -> Array:
    """One, with dimensions of size one: pieces that do not vary must not look as if they did."""
    return jnp.ones((1,) * like.ndim, like.dtype)


def mean(array: Array) -> Array:
    """Over particles; those that are not finite do not count."""
    valid = jnp.isfinite(array)
    return jnp.sum(jnp.where(valid, array, 0.0), -1) / jnp.maximum(jnp.sum(valid, -1), 1)


def typical_scale(scale: Array) -> Array:
    """Geometric mean over the particles with a positive scale."""
    positive = (scale > 0) & jnp.isfinite(scale)
    logs = jnp.log(jnp.where(positive, scale, 1.0))
    return jnp.exp(jnp.sum(logs, -1) / jnp.maximum(jnp.sum(positive, -1), 1))


def natural_form(
    parameters: Sequence[str], statistics: Callable[..., Pieces], naturals: Callable[..., Pieces], *known: str
) -> tuple[Form, ...]:
    """The textbook form of a family whose terms the plain density sums just the same.

    Args:
        known: parameters that belong with the value, such as a number of trials.
    """
    left, right = ("value", *known), tuple(parameters)

    def of(function: Callable[..., Pieces], names: Sequence[str]) -> Callable[[Arguments, Arguments], Pieces]:
        return lambda arguments, reference: function(*(arguments[n] for n in names))

    return (Form("natural", left, right, of(statistics, left), of(naturals, right)),)


def weighted(form: Form, arguments: Mapping[str, Array], reference: Mapping[str, Array]) -> Pieces:
    """Statistics times the site's scale, zero where masked."""
    pieces = form.statistics(arguments, reference)
    if "mask" in arguments:
        pieces = [jnp.where(arguments["mask"][..., None], p, 0.0) for p in pieces]
    if "scale_factor" in arguments:
        pieces = [p * arguments["scale_factor"][..., None] for p in pieces]
    return pieces
