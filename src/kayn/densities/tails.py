"""Probabilities of half-lines and intervals as logarithms, however far out in a tail,
and the laws that are cut or censored by them.

Distances are standardised, `(value - loc) / scale`. A law that is symmetric is mirrored so that an interval lies to the
right, where its mass is its density at the near end times a ratio close to one; the density at the value is compared
with that at the near end by their distance, not as a difference of two large numbers.

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results, in nats,
have their common shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import erf, erfc

from kayn.densities.special import LOG_ROOT_2PI, floats, log_beyond, log_minus_expm1
from kayn.support.arrays import Array

THIN = 3e-3
"""Width, times one and the distance from the centre, below which a normal density is all but linear over an
interval."""
NOWHERE = 1e4
"""Standard deviations from the centre beyond which there is nothing."""


def log_normal_mass(low: Array, high: Array, width: Array) -> Array:
    """Log probability of an interval under the standard normal law."""
    mirrored = low + high < 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    in_tail = low > 0
    tail = _log_tail_ratio(low, width) - jnp.where(in_tail, low, 0.0) ** 2 / 2 - LOG_ROOT_2PI
    return jnp.where(in_tail, tail, _log_middle(low, high))


def _log_middle(low: Array, high: Array) -> Array:
    """For ends on both sides of the centre."""
    inside = low <= 0
    low, high = jnp.where(inside, low, -1.0), jnp.where(inside, high, 1.0)
    root = math.sqrt(0.5)
    # as what is missing, where that is small
    wide = (low < -1) & (high > 1)
    missing = 0.5 * (erfc(-jnp.where(wide, low, -2.0) * root) + erfc(jnp.where(wide, high, 2.0) * root))
    within = 0.5 * (erf(jnp.where(wide, 1.0, high) * root) - erf(jnp.where(wide, -1.0, low) * root))
    return jnp.where(wide, jnp.log1p(-missing), jnp.log(within))


def _log_tail_ratio(low: Array, width: Array) -> Array:
    """Log of the mass of an interval to the right of the centre, less the log density at its near end."""
    endless = jnp.isposinf(width)
    low, width = jnp.where(low > 0, low, 1.0), jnp.where(endless, 1.0, width)
    thin = width * (1 + low) < THIN
    # the mass beyond each end, by Mills' ratio
    apart = jnp.where(thin, 1.0, log_beyond(low) - log_beyond(low + width) + width * (low + width / 2))
    share = jnp.where(endless, 0.0, jnp.log1p(-jnp.exp(-apart)))
    middle = low + width / 2
    linear = jnp.log(jnp.where(thin, width, 1.0)) - width / 2 * (low + width / 4)
    linear = linear + jnp.log1p(jnp.where(thin, width**2 * (middle**2 - 1) / 24, 0.0))
    return jnp.where(thin & ~endless, linear, log_beyond(low) + share)


def log_cauchy_mass(low: Array, high: Array, width: Array) -> Array:
    """Log probability of an interval under the standard Cauchy law.

    The difference of two angles is the angle of a quotient; ends at infinity have an angle of their own.
    """
    left, right = jnp.isneginf(low), jnp.isposinf(high)
    a, b = jnp.where(left, 0.0, low), jnp.where(right, 0.0, high)
    between = jnp.arctan2(jnp.where(left | right, 1.0, width), jnp.where(left | right, 1.0, 1 + a * b))
    below, above = jnp.arctan2(1.0, -b), jnp.arctan2(1.0, a)
    one_sided = jnp.where(left, jnp.where(right, jnp.pi, below), above)
    return jnp.log(jnp.where(left | right, one_sided, between) / jnp.pi)


def log_logistic_mass(low: Array, high: Array, width: Array) -> Array:
    """Log probability of an interval under the standard logistic law: `s(high) s(-low) (1 - exp(-width))`, s the
    sigmoid."""
    return jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + log_minus_expm1(width)


def log_laplace_mass(low: Array, high: Array, width: Array) -> Array:
    """Log probability of an interval under the standard Laplace law: exponential in a tail,
    else one less both tails."""
    mirrored = low + high < 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    in_tail = low > 0
    tail = math.log(0.5) - jnp.where(in_tail, low, 0.0) + log_minus_expm1(width)
    a, b = jnp.where(in_tail, -1.0, low), jnp.where(in_tail, 1.0, high)
    return jnp.where(in_tail, tail, jnp.log(-0.5 * (jnp.expm1(a) + jnp.expm1(-b))))


def log_soft_laplace_mass(low: Array, high: Array, width: Array) -> Array:
    """Log probability of an interval under the standard law of `SoftLaplace`.

    The distribution function is 2 / pi times the angle whose tangent is `exp(z)`.
    """
    mirrored = low + high < 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    # tan(angle of high - angle of low) = (e^high - e^low) / (1 + e^(low + high)), divided by e^high
    endless, everything = jnp.isposinf(high), jnp.isneginf(low)
    gap = jnp.where(endless | everything, 1.0, width)
    span = jnp.where(endless | everything, 1.0, high)
    start = jnp.where(everything, 0.0, low)
    log_tangent = jnp.where(endless, 0.0, log_minus_expm1(gap)) - jnp.where(
        endless, start, jnp.logaddexp(start, jnp.where(endless, 0.0, -span))
    )
    small = log_tangent < -10
    angle = jnp.log(jnp.arctan(jnp.exp(jnp.where(small, 0.0, log_tangent))))
    return jnp.where(everything, 0.0, math.log(2 / math.pi) + jnp.where(small, log_tangent, angle))


MASSES: Mapping[type, Callable[[Array, Array, Array], Array]] = {
    dist.Normal: log_normal_mass,
    dist.Cauchy: log_cauchy_mass,
    dist.Logistic: log_logistic_mass,
    dist.Laplace: log_laplace_mass,
    dist.SoftLaplace: log_soft_laplace_mass,
}
"""Log probability of an interval by family of a location and a scale:
from standardised ends and the width between them."""


def log_mass(base: dist.Distribution, low: Array, high: Array) -> Array:
    """Log probability of an interval under a law of `MASSES`; ends may be infinite."""
    loc, scale, low, high = floats(base.loc, base.scale, low, high)
    return MASSES[type(base)](*_standardised(low, high, loc, scale))


def _standardised(low: Array, high: Array, loc: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Ends, and the width between them, which the ends far out do not tell;
    with finite derivatives at infinite ends."""
    below, above = jnp.isneginf(low), jnp.isposinf(high)
    a = jnp.where(below, -jnp.inf, (jnp.where(below, 0.0, low) - loc) / scale)
    b = jnp.where(above, jnp.inf, (jnp.where(above, 0.0, high) - loc) / scale)
    width = jnp.where(below | above, 1.0, high - low) / scale
    return a, b, jnp.where(below | above, jnp.inf, width)


def _cut(fn: dist.Distribution, value: Array, low: Array, high: Array) -> Array:
    """Log density of what is known to lie between two ends."""
    base = fn.base_dist
    if type(base) is not dist.Normal:
        return base.log_prob(value) - log_mass(base, low, high)
    value, loc, scale, low, high = floats(value, base.loc, base.scale, low, high)
    a, b, width = _standardised(low, high, loc, scale)
    mirrored = a + b < 0
    end = jnp.where(mirrored, high, low)
    near, far = jnp.where(mirrored, -b, a), jnp.where(mirrored, -a, b)
    in_tail = near > 0
    # the density at the value against that at the near end, by the distance between these
    distance = jnp.where(in_tail, jnp.abs(value - jnp.where(in_tail, end, 0.0)), 0.0) / scale
    tail = -distance * (jnp.where(in_tail, near, 0.0) + distance / 2) - _log_tail_ratio(near, width)
    middle = -(((value - loc) / scale) ** 2) / 2 - LOG_ROOT_2PI - _log_middle(near, far)
    return jnp.where(in_tail, tail, middle) - jnp.log(scale)


def _normal_beyond(base: dist.Distribution, value: Array, end: Array, side: float) -> Array:
    """Log density of a Normal variable that is known to lie above an end (`side` 1) or below it (-1).

    As the density at the value against that at the centre, or at the end if that is farther: by the distance between
    these.
    """
    value, loc, scale, end = floats(value, base.loc, base.scale, end)
    # an end at infinity is none, and has derivatives that are numbers only if it is not there
    cut = jnp.where(jnp.isinf(end), -NOWHERE * scale, side * (end - loc))
    # no maxima: where both are the same, a maximum has no second derivative
    in_tail = cut > 0
    near, start = jnp.where(in_tail, cut, 0.0), jnp.where(in_tail, end, loc)
    distance = side * (value - start) / scale
    return -distance * (near / scale + distance / 2) - log_beyond(cut / scale) - jnp.log(scale)


def left_truncated(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a law of `MASSES` above `low`, nats: its own, less the log probability to lie there."""
    if type(fn.base_dist) is dist.Normal:
        return _normal_beyond(fn.base_dist, value, fn.low, 1.0)
    return _cut(fn, value, fn.low, jnp.inf)


def right_truncated(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a law of `MASSES` below `high`, nats: its own, less the log probability to lie there."""
    if type(fn.base_dist) is dist.Normal:
        return _normal_beyond(fn.base_dist, value, fn.high, -1.0)
    return _cut(fn, value, -jnp.inf, fn.high)


def truncated(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a law of `MASSES` between `low` and `high`, nats: its own, less the log mass there."""
    return _cut(fn, value, fn.low, fn.high)
