"""Logarithms of incomplete gamma and beta functions, also where the functions themselves are too small for a float.

Where a tail's probability is far below one, it is the density at its end times a factor that converges fast: a
continued fraction for the upper gamma function (DLMF 8.9.2) and for the beta function (DLMF 8.17.22), a power series
for the lower gamma function (DLMF 8.7.1).

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results, in nats,
have their common shape.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import betainc, gammainc, gammaincc

from kayn.densities.counts import log_beta_density, log_gamma_density
from kayn.densities.special import log_minus_expm1
from kayn.support.arrays import Array

FRACTIONS = 40
"""Levels of a continued fraction, and terms of the series."""
FAR = 1e-20
"""Probabilities below this are taken by their logarithms."""


def log_upper_gamma(a: Array, x: Array) -> Array:
    """Log of the regularised upper incomplete gamma function, for x >= 0."""
    direct = gammaincc(a, x)
    far = direct < FAR
    beyond = jnp.where(far, x, a + 10)
    fraction = beyond + (2 * FRACTIONS + 1) - a
    for k in reversed(range(1, FRACTIONS + 1)):
        fraction = beyond + (2 * k - 1) - a - k * (k - a) / fraction
    return jnp.where(far, log_gamma_density(a, beyond) - jnp.log(fraction), jnp.log(jnp.where(far, 1.0, direct)))


def log_lower_gamma(a: Array, x: Array) -> Array:
    """Log of the regularised lower incomplete gamma function, for x >= 0."""
    direct = gammainc(a, x)
    far = (direct < FAR) & (x > 0)
    below = jnp.where(far, x, a / 2)
    series = jnp.ones_like(below)
    for k in reversed(range(1, FRACTIONS + 1)):
        series = 1 + series * below / (a + k)
    return jnp.where(
        far, log_gamma_density(a, below) - jnp.log(a) + jnp.log(series), jnp.log(jnp.where(far, 1.0, direct))
    )


def log_gamma_mass(a: Array, low: Array, high: Array) -> Array:
    """Log probability of an interval under a gamma law of rate one; `high` may be infinite."""
    endless, right = jnp.isposinf(high), low > a
    finite_high = jnp.where(endless, low + 1, high)
    beyond = log_upper_gamma(a, jnp.where(right, low, a + 1))
    rest = log_upper_gamma(a, jnp.where(right, finite_high, a + 2))
    tail = beyond + jnp.where(endless, 0.0, log_minus_expm1(jnp.maximum(beyond - rest, 0.0)))
    begun = low > 0
    until = jnp.where(endless, 0.0, log_lower_gamma(a, jnp.where(right | endless, a, finite_high)))
    before = log_lower_gamma(a, jnp.where(begun & ~right, low, a / 2))
    left = until + jnp.where(begun, log_minus_expm1(jnp.where(begun & ~right, until - before, 1.0)), 0.0)
    return jnp.where(right, tail, left)


def log_lower_beta(a: Array, b: Array, x: Array, rest: Array) -> Array:
    """Log of the regularised incomplete beta function at x = 1 - `rest`."""
    direct = betainc(a, b, x)
    far = (direct < FAR) & (x > 0)
    middle = a / (a + b)
    x, rest = jnp.where(far, x, middle / 2), jnp.where(far, rest, 1 - middle / 2)
    fraction = jnp.ones_like(x)
    for k in reversed(range(1, 2 * FRACTIONS)):
        m = k // 2
        odd = -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
        even = m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + (odd if k % 2 else even) * x / fraction
    tail = log_beta_density(a, b, x, rest) + jnp.log(x) - jnp.log(a) - jnp.log(fraction)
    return jnp.where(far, tail, jnp.log(jnp.where(far, 1.0, direct)))


def log_beta_mass(a: Array, b: Array, low: Array, high: Array) -> Array:
    """Log probability of an interval under a beta law, for ends between zero and one."""
    right = low > a / (a + b)
    near, far = jnp.where(right, 1 - low, high), jnp.where(right, 1 - high, low)
    first, second = jnp.where(right, b, a), jnp.where(right, a, b)
    until = log_lower_beta(first, second, near, jnp.where(right, low, 1 - high))
    open_ended = far <= 0
    inner = jnp.where(open_ended, near / 2, far)
    before = log_lower_beta(first, second, inner, 1 - inner)
    return until + jnp.where(open_ended, 0.0, log_minus_expm1(jnp.where(open_ended, 1.0, until - before)))
