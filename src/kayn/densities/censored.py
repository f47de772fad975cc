"""Log probabilities of what is only known to lie below, above, within or outside of bounds, however far out in a tail.

NumPyro takes one minus a distribution function, which float32 rounds to a multiple of 6e-8: a survival probability of
1e-20 becomes 6e-8, and its logarithm is 28 nats too high.

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results, in nats,
have their common shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.densities.incomplete import log_beta_mass, log_gamma_mass, log_lower_gamma, log_upper_gamma
from kayn.densities.special import floats, log_minus_expm1
from kayn.densities.tails import MASSES, log_mass, log_normal_mass
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import as_asymmetric_laplace

Mass = Callable[[dist.Distribution, Array, Array], Array]
"""Log probability of an interval: (distribution, lower end, upper end), ends anywhere, infinite ones among them."""


def _by_hazard(
    hazard: Callable[[dist.Distribution, Array], Array],
    start: Callable[[dist.Distribution], Array | float] = lambda fn: 0.0,
) -> Mass:
    """From the cumulative hazard, minus the log probability to survive, that begins at `start`."""

    def mass(fn: dist.Distribution, low: Array, high: Array) -> Array:
        first, low, high = floats(start(fn), low, high)
        begun, endless, never = low > first, jnp.isposinf(high), high <= first
        before = jnp.where(begun, hazard(fn, jnp.where(begun, low, first + 1)), 0.0)
        after = hazard(fn, jnp.where(endless | never, first + 1, high))
        dies = log_minus_expm1(jnp.where(endless | never, 1.0, jnp.maximum(after - before, 0.0)))
        return jnp.where(never, -jnp.inf, jnp.where(endless, 0.0, dies) - before)

    return mass


def _gumbel(fn: dist.Distribution, low: Array, high: Array) -> Array:
    loc, scale, low, high = floats(fn.loc, fn.scale, low, high)
    endless, below = jnp.isposinf(high), jnp.isneginf(low)
    upper = jnp.where(endless, 0.0, jnp.exp(-(jnp.where(endless, loc, high) - loc) / scale))
    gap = jnp.where(below, 1.0, jnp.exp(-(jnp.where(below, loc, low) - loc) / scale) - upper)
    return jnp.where(below, 0.0, log_minus_expm1(gap)) - upper


def _half(full: Callable[[dist.Distribution], dist.Distribution]) -> Mass:
    return lambda fn, low, high: math.log(2) + log_mass(full(fn), jnp.maximum(low, 0.0), high)


def _log_normal(fn: dist.Distribution, low: Array, high: Array) -> Array:
    return log_mass(fn.base_dist, _log(low), _log(high))


def _log(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)


def _uniform(fn: dist.Distribution, low: Array, high: Array) -> Array:
    first, last, low, high = floats(fn.low, fn.high, low, high)
    return jnp.log(jnp.clip(high, first, last) - jnp.clip(low, first, last)) - jnp.log(last - first)


def _student(fn: dist.Distribution, low: Array, high: Array) -> Array:
    # on the side where the distribution function is small
    loc, low, high = floats(fn.loc, low, high)
    mirrored = low + high > 2 * loc
    low, high = jnp.where(mirrored, 2 * loc - high, low), jnp.where(mirrored, 2 * loc - low, high)
    below, above = jnp.isneginf(low), jnp.isposinf(high)
    # the centre has no derivative there
    beside = loc - fn.scale
    least = jnp.where(below, 0.0, fn.cdf(jnp.where(below, beside, low)))
    return jnp.log(jnp.where(above, 1.0, fn.cdf(jnp.where(above, beside, high))) - least)


def _gamma(fn: dist.Distribution, low: Array, high: Array) -> Array:
    a, rate, low, high = floats(fn.concentration, fn.rate, low, high)
    endless = jnp.isposinf(high)
    return log_gamma_mass(
        a, rate * jnp.maximum(low, 0.0), jnp.where(endless, jnp.inf, rate * jnp.where(endless, 1.0, high))
    )


def _inverse_gamma(fn: dist.Distribution, low: Array, high: Array) -> Array:
    a, rate, low, high = floats(fn.concentration, fn.rate, low, high)
    begun = low > 0
    return log_gamma_mass(
        a, rate / jnp.maximum(high, 0.0), jnp.where(begun, rate / jnp.where(begun, low, 1.0), jnp.inf)
    )


def _asymmetric_laplace(fn: dist.Distribution, low: Array, high: Array) -> Array:
    """Both sides of the location, each an exponential law."""
    loc, left, right, low, high = floats(fn.loc, fn.left_scale, fn.right_scale, low, high)
    total = left + right
    under = _log_exponential(jnp.maximum(loc - high, 0.0), loc - low, left)
    over = _log_exponential(jnp.maximum(low - loc, 0.0), high - loc, right)
    return jnp.logaddexp(under + jnp.log(left / total), over + jnp.log(right / total))


def _log_exponential(low: Array, high: Array, scale: Array) -> Array:
    """Log probability of an interval under an exponential law, -inf where it is empty."""
    empty, endless = high <= low, jnp.isposinf(high)
    start = jnp.where(empty, 0.0, low)
    gap = jnp.where(empty | endless, 1.0, high) - jnp.where(endless, 0.0, start)
    return jnp.where(empty, -jnp.inf, jnp.where(endless, 0.0, log_minus_expm1(gap / scale)) - start / scale)


def _levy(fn: dist.Distribution, low: Array, high: Array) -> Array:
    # of the reciprocal of a squared normal variable
    loc, scale, low, high = floats(fn.loc, fn.scale, low, high)
    near = jnp.where(jnp.isposinf(high), 0.0, jnp.sqrt(scale / (jnp.where(jnp.isposinf(high), loc + 1, high) - loc)))
    begun = low > loc
    far = jnp.where(begun, jnp.sqrt(scale / jnp.where(begun, low - loc, 1.0)), jnp.inf)
    return math.log(2) + log_normal_mass(near, far, far - near)


def _beta(fn: dist.Distribution, low: Array, high: Array) -> Array:
    a, b, low, high = floats(fn.concentration1, fn.concentration0, low, high)
    return log_beta_mass(a, b, jnp.clip(low, 0.0, 1.0), jnp.clip(high, 0.0, 1.0))


def _poisson(fn: dist.Distribution, low: Array, high: Array) -> Array:
    """Of counts above `low`, up to `high`."""
    rate, low, high = floats(fn.rate, low, high)
    below, above = low < 0, jnp.isposinf(high)
    first, last = jnp.floor(jnp.where(below, 0.0, low)) + 1, jnp.floor(jnp.where(above, 0.0, high)) + 1
    right = ~below & (low > rate)
    # tails on the side where they are small
    beyond, after = log_lower_gamma(first, rate), jnp.where(above, -jnp.inf, log_lower_gamma(last, rate))
    until, before = jnp.where(above, 0.0, log_upper_gamma(last, rate)), log_upper_gamma(first, rate)
    tail = beyond + jnp.where(above, 0.0, log_minus_expm1(jnp.where(right & ~above, beyond - after, 1.0)))
    body = until + jnp.where(below, 0.0, log_minus_expm1(jnp.where(right | below, 1.0, until - before)))
    return jnp.where(right, tail, body)


FAMILIES: Mapping[type, Mass] = {
    **dict.fromkeys(MASSES, log_mass),
    dist.LogNormal: _log_normal,
    dist.HalfNormal: _half(lambda fn: dist.Normal(0.0, fn.scale)),
    dist.HalfCauchy: _half(lambda fn: dist.Cauchy(0.0, fn.scale)),
    dist.StudentT: _student,
    dist.Gumbel: _gumbel,
    dist.Uniform: _uniform,
    dist.Gamma: _gamma,
    dist.Chi2: _gamma,
    dist.InverseGamma: _inverse_gamma,
    dist.Beta: _beta,
    dist.BetaProportion: _beta,
    dist.Poisson: _poisson,
    dist.Levy: _levy,
    dist.AsymmetricLaplace: _asymmetric_laplace,
    dist.AsymmetricLaplaceQuantile: lambda fn, low, high: _asymmetric_laplace(as_asymmetric_laplace(fn), low, high),
    dist.Exponential: _by_hazard(lambda fn, x: fn.rate * x),
    dist.Weibull: _by_hazard(lambda fn, x: (x / fn.scale) ** fn.concentration),
    dist.Gompertz: _by_hazard(lambda fn, x: fn.concentration * jnp.expm1(fn.rate * x)),
    dist.Pareto: _by_hazard(lambda fn, x: fn.alpha * jnp.log(x / fn.scale), lambda fn: fn.scale),
}
"""Log probability of an interval by family."""


def left_censored(fn: dist.Distribution, value: Array) -> Array:
    """Log density of `LeftCensoredDistribution`, nats: where `censored`, the log mass below the value.

    Raises:
        KeyError: the law within is none of `FAMILIES`.
    """
    mass = FAMILIES[type(fn.base_dist)](fn.base_dist, -jnp.inf, value)
    return jnp.where(fn.censored, mass, _exactly(fn, value, fn.censored))


def right_censored(fn: dist.Distribution, value: Array) -> Array:
    """Log density of `RightCensoredDistribution`, nats: where `censored`, the log mass above the value.

    Raises:
        KeyError: the law within is none of `FAMILIES`.
    """
    mass = FAMILIES[type(fn.base_dist)](fn.base_dist, value, jnp.inf)
    return jnp.where(fn.censored, mass, _exactly(fn, value, fn.censored))


def _exactly(fn: dist.Distribution, value: Array, elsewhere: Array) -> Array:
    """The density, taken at a harmless value where it does not count."""
    base = fn.base_dist
    # NumPyro's Lévy law says nothing of its support
    harmless = base.loc + base.scale if base.support is None else base.support.feasible_like(value)
    return base.log_prob(jnp.where(elsewhere, harmless, value))


def interval_censored(fn: dist.Distribution, value: Array) -> Array:
    """Log density of `IntervalCensoredDistribution`, nats; value: [..., 2], the ends of an interval.

    Censored on the left it is known to lie below the upper end, on the right above the lower, on both sides outside of
    them. Otherwise it is known to lie between the ends, and equal ends are a point, which has a density.

    Raises:
        KeyError: the law within is none of `FAMILIES`.
    """
    base, mass = fn.base_dist, FAMILIES[type(fn.base_dist)]
    low, high = value[..., 0], value[..., 1]
    left, right = fn.left_censored & ~fn.right_censored, fn.right_censored & ~fn.left_censored
    outside = fn.left_censored & fn.right_censored
    point = jnp.isclose(low, high) & ~(left | right | outside)
    # one interval for those of the first three kinds; for a point, or what lies outside, two half-lines or a density
    apart = jnp.where(point, low + 1, high)
    within = mass(base, jnp.where(left, -jnp.inf, low), jnp.where(right, jnp.inf, apart))
    either = jnp.logaddexp(mass(base, -jnp.inf, low), mass(base, apart, jnp.inf))
    return jnp.where(point, _exactly(fn, low, ~point), jnp.where(outside, either, within))
