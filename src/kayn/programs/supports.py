"""The set that a latent lies in, as far as it can be compared with that of its guide: a box,
or a set that has a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array

BOX = "box"
ORDERED = {"ordered_vector": (-math.inf, math.inf), "positive_ordered_vector": (0.0, math.inf), "l1_ball": (-1.0, 1.0)}
"""Sets within a box that have as many dimensions as it, with the ends of the smallest box around them."""
SAME = {"softplus_lower_cholesky": "lower_cholesky", "positive_semidefinite": "positive_definite"}
NAMED = (
    *("corr_cholesky", "corr_matrix", "lower_cholesky", "positive_definite", "positive_semidefinite", "simplex"),
    *("softplus_lower_cholesky", "sphere", "scaled_unit_lower_cholesky", *ORDERED),
)


@dataclass(frozen=True, eq=False)
class Ends:
    """The ends of a box: numbers, arrays, or traced values, broadcast from the right against the latent's value."""

    lower: Array | float
    upper: Array | float
    whole: bool = False


@dataclass(frozen=True)
class Support:
    """A support without arrays.

    Attributes:
        kind: "box" for sets of independent numbers, else the name of NumPyro's constraint.
        lower, upper: ends of a box; None for finite ends that are known only when the program runs.
        whole: it holds whole numbers only.
    """

    kind: str
    lower: float | None
    upper: float | None
    whole: bool = False

    @property
    def endless(self) -> bool:
        """Whether it is all real numbers."""
        return self.kind == BOX and not self.whole and (self.lower, self.upper) == (-math.inf, math.inf)

    def __str__(self) -> str:
        """The set in words, with a question mark for an end that is known only when the program runs."""
        if self.kind != BOX:
            return self.kind
        low, high = ("?" if end is None else f"{end:g}" for end in (self.lower, self.upper))
        return f"{'whole numbers in ' if self.whole else ''}[{low}, {high}]"


def support_of(fn: dist.Distribution) -> Support | None:
    """None for sets that cannot be compared."""
    ends = ends_of(fn)
    if ends is not None:
        return Support(BOX, _number(ends.lower), _number(ends.upper), ends.whole)
    support = _without_events(_declared(fn))
    if isinstance(support, constraints.multinomial):
        return Support("multinomial", 0.0, _number(support.upper_bound), True)
    name = next((n for n in NAMED if type(support) is type(getattr(constraints, n, None))), None)
    if name is None:
        return None
    low, high = ORDERED.get(name, (-math.inf, math.inf))
    return Support(SAME.get(name, name), low, high)


def ends_of(fn: dist.Distribution) -> Ends | None:
    """The box that a distribution's values lie in, None where it is none.

    What transforms declare is not relied on where the ends can be followed: a shifted exponential calls itself real.
    """
    base = innermost(fn)
    if isinstance(base, dist.TransformedDistribution):
        ends = ends_of(base.base_dist)
        for transform in base.transforms:
            ends = None if ends is None else _image(ends, transform)
        if ends is not None:
            return ends
    return _box(_without_events(_declared(base)))


def _declared(fn: dist.Distribution) -> constraints.Constraint | None:
    try:
        return fn.support
    except NotImplementedError:
        return None


def _without_events(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _box(support: Any) -> Ends | None:
    match support:
        case _ if support is constraints.real or type(support) is type(constraints.real):
            return Ends(-math.inf, math.inf)
        case constraints.greater_than():
            return Ends(support.lower_bound, math.inf)
        case constraints.less_than():
            return Ends(-math.inf, support.upper_bound)
        case constraints.interval():
            return Ends(support.lower_bound, support.upper_bound)
        case constraints.integer_interval():
            return Ends(support.lower_bound, support.upper_bound, True)
        case constraints.integer_greater_than():
            return Ends(support.lower_bound, math.inf, True)
        case _ if type(support) is type(constraints.boolean):
            return Ends(0, 1, True)
    return None


def _image(ends: Ends, transform: Any) -> Ends | None:
    """Where an increasing map takes a box; None for other maps."""
    match transform:
        case transforms.IdentityTransform():
            return ends
        case transforms.IndependentTransform():
            return _image(ends, transform.base_transform)
        case transforms.ComposeTransform():
            moved: Ends | None = ends
            for part in transform.parts:
                moved = None if moved is None else _image(moved, part)
            return moved
        case transforms.AffineTransform():
            scale = _number(transform.scale)
            if scale is None:
                return ends if (_number(ends.lower), _number(ends.upper)) == (-math.inf, math.inf) else None
            a, b = (_affine(transform.loc, scale, end) for end in (ends.lower, ends.upper))
            return Ends(a, b) if scale > 0 else Ends(b, a)
        case transforms.ExpTransform():
            return Ends(_through(jnp.exp, math.exp, ends.lower), _through(jnp.exp, math.exp, ends.upper))
        case transforms.SigmoidTransform():
            low, high = _number(ends.lower), _number(ends.upper)
            return Ends(0.0, 1.0) if low == -math.inf and high == math.inf else None
    return None


def _affine(loc: Array | float, scale: float, end: Array | float) -> Array | float:
    known, shift = _number(end), _number(loc)
    if known is not None and math.isinf(known):
        return known * scale
    return loc + scale * end if known is None or shift is None else shift + scale * known


def _through(function: Callable[[Array], Array], plain: Callable[[float], float], end: Array | float) -> Array | float:
    known = _number(end)
    if known is None:
        return function(end)
    return plain(known) if known < 80 else math.inf


def _number(end: Array | float) -> float | None:
    """An end that is one known number."""
    if isinstance(end, jax.core.Tracer) or np.size(end) != 1:
        return None
    return float(np.asarray(end).reshape(()))


def number_of_values(fn: dist.Distribution) -> int | None:
    """How many values each element may have, all of the same; None where these cannot be listed."""
    if not fn.has_enumerate_support or fn.event_dim > 0:
        return None
    try:
        return int(jax.eval_shape(lambda: fn.enumerate_support(expand=False)).shape[0])
    except (NotImplementedError, jax.errors.ConcretizationTypeError):  # ends are computed, or differ between elements
        return None
