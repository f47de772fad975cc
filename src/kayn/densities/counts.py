"""Log probabilities of counts, and densities of laws with a large concentration, as sums of small terms.

Source: Loader, Fast and accurate computation of binomial probabilities (2000); the forms for Pólya's urns follow by the
same algebra: with `S = n + sum a` and `m_i = (a_i + x_i) / S`, the logarithms of a beta-binomial probability are the
deviances of x_i from `n m_i` and of a_i from `m_i sum a`.

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results, in nats,
have their common shape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import xlog1py, xlogy

from kayn.densities.special import NEAR, deviance, excess, floats, log_rising, log_sigmoid, small_deviance
from kayn.support.arrays import Array


def poisson(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of a Poisson count, nats: minus the deviance of x from the rate, minus `excess(x)` (Loader,
    2000)."""
    rate, x = floats(fn.rate, value)
    return -deviance(x, rate, x - rate) - excess(x)


def _binomial(x: Array, n: Array, p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """Probability of x of n, of which neither need be whole: p and q = 1 - p with their logarithms."""
    rest = n - x
    difference = x * q - rest * p
    return (
        excess(n)
        - excess(x)
        - excess(rest)
        - deviance(x, n * p, difference, jnp.log(n) + log_p)
        - deviance(rest, n * q, -difference, jnp.log(n) + log_q)
    )


def binomial_probs(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of x of n, nats, from the probability of each (Loader, 2000)."""
    x, n, p = floats(value, fn.total_count, fn.probs)
    return _binomial(x, n, p, 1 - p, jnp.log(p), jnp.log1p(-p))


def binomial_logits(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of x of n, nats, from the log odds of each: neither probability is one minus the other."""
    x, n, logits = floats(value, fn.total_count, fn.logits)
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return _binomial(x, n, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits), log_p, log_q)


def _negative_binomial(x: Array, a: Array, p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """Count x, of probability q in each try, before `a` others, of probability p: a of a + x, the last one of them."""
    n = a + x
    difference = x * p - a * q
    return (
        excess(n)
        - excess(a)
        - excess(x)
        - deviance(a, n * p, -difference, jnp.log(n) + log_p)
        - deviance(x, n * q, difference, jnp.log(n) + log_q)
        - jnp.log1p(x / a)
    )


def gamma_poisson(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of a Poisson count whose rate is gamma distributed, nats; `NegativeBinomial2` is one."""
    x, a, rate = floats(value, fn.concentration, fn.rate)
    # of two ways to write either, the one that holds at a rate of zero and of infinity
    p, q = 1 / (1 + 1 / rate), 1 / (1 + rate)
    return _negative_binomial(x, a, p, q, -jnp.log1p(1 / rate), -jnp.log1p(rate))


def negative_binomial_probs(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of the count before `total_count` others, nats, from the count's probability in each try."""
    x, a, q = floats(value, fn.total_count, fn.probs)
    return _negative_binomial(x, a, 1 - q, q, jnp.log1p(-q), jnp.log(q))


def negative_binomial_logits(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of the count before `total_count` others, nats, from the count's log odds in each try."""
    x, a, logits = floats(value, fn.total_count, fn.logits)
    p, q = jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)
    return _negative_binomial(x, a, p, q, jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits))


def few_gamma_poisson(fn: dist.Distribution, value: Array) -> Array:
    """As `gamma_poisson`, of counts so small that their products with logarithms keep their digits."""
    x, a, rate = floats(value, fn.concentration, fn.rate)
    return _few(x, a, -jnp.log1p(1 / rate), -jnp.log1p(rate))


def few_negative_binomial_probs(fn: dist.Distribution, value: Array) -> Array:
    """As `negative_binomial_probs`, of small counts."""
    x, a, q = floats(value, fn.total_count, fn.probs)
    return _few(x, a, jnp.log1p(-q), jnp.log(q))


def few_negative_binomial_logits(fn: dist.Distribution, value: Array) -> Array:
    """As `negative_binomial_logits`, of small counts."""
    x, a, logits = floats(value, fn.total_count, fn.logits)
    return _few(x, a, log_sigmoid(-logits), log_sigmoid(logits))


def _few(x: Array, a: Array, log_p: Array, log_q: Array) -> Array:
    """As `_negative_binomial`. What depends on the count and the dispersion alone, often far smaller arrays, stays
    apart; only its logarithms of the probabilities meet the rows."""
    # a count of zero does not ask how improbable one is
    log_q = jnp.maximum(log_q, jnp.finfo(log_q.dtype).min)
    return log_rising(a, x) - _log_factorial(x) + a * log_p + x * log_q


def _log_factorial(x: Array) -> Array:
    """Zero of zero."""
    return excess(x) + xlogy(x, x) - x


def few_beta_binomial(fn: dist.Distribution, value: Array) -> Array:
    """As `beta_binomial`, of a small total count."""
    x, n, a, b = floats(value, fn.total_count, fn.concentration1, fn.concentration0)
    ways = _log_factorial(n) - _log_factorial(x) - _log_factorial(n - x)
    return ways + log_rising(a, x) + log_rising(b, n - x) - log_rising(a + b, n)


def _urn(x: Array, a: Array, n: Array, concentration: Array) -> Array:
    """The part of one category in the probability of counts x from an urn with concentrations a."""
    total = n + concentration
    old, new = concentration / total, n / total
    difference = x * old - a * new
    return (
        excess(a + x)
        - excess(a)
        - excess(x)
        - deviance(x, (a + x) * new, difference)
        - deviance(a, (a + x) * old, -difference)
        - jnp.log1p(x / a)
    )


def _whole_urn(n: Array, concentration: Array) -> Array:
    return excess(n) + excess(concentration) - excess(n + concentration) + jnp.log1p(n / concentration)


def beta_binomial(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of x of n, nats, whose probability is beta distributed: two categories of an urn."""
    x, n, a, b = floats(value, fn.total_count, fn.concentration1, fn.concentration0)
    return _whole_urn(n, a + b) + _urn(x, a, n, a + b) + _urn(n - x, b, n, a + b)


def beta_negative_binomial(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of the count before `n` others, nats, where the count's probability in each try is beta
    distributed."""
    # the last of n + x draws is one of the n, and so are n - 1 of those before it
    x, n, a, b = floats(value, fn.n, fn.concentration1, fn.concentration0)
    both = _urn(x, a, n + x, a + b) + _urn(n, b, n + x, a + b)
    return _whole_urn(n + x, a + b) + both - jnp.log1p(x / n)


def dirichlet_multinomial(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of counts from an urn, nats; value and concentration: [..., C], summed over the categories."""
    x, a = floats(value, fn.concentration)
    n, total = jnp.sum(x, -1, keepdims=True), jnp.sum(a, -1, keepdims=True)
    return _whole_urn(n, total)[..., 0] + jnp.sum(_urn(x, a, n, total), -1)


def multinomial_probs(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of counts, nats, from shares; value and `probs`: [..., C], summed over the categories."""
    x, p = floats(value, fn.probs)
    return _multinomial(x, p, jnp.log(p))


def multinomial_logits(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of counts, nats, from logits; value and `logits`: [..., C], summed over the categories."""
    x, logits = floats(value, fn.logits)
    log_p = jax.nn.log_softmax(logits, -1)
    return _multinomial(x, jnp.exp(log_p), log_p)


def _multinomial(x: Array, p: Array, log_p: Array) -> Array:
    n = jnp.sum(x, -1, keepdims=True)
    rest = deviance(x, n * p, x - n * p, jnp.log(jnp.maximum(n, 1.0)) + log_p)
    return excess(n)[..., 0] - jnp.sum(excess(x) + rest, -1)


def student_t(fn: dist.Distribution, value: Array) -> Array:
    """Log density of Student's law with a location and a scale, nats."""
    df, loc, scale, value = floats(fn.df, fn.loc, fn.scale, value)
    square = ((value - loc) / scale) ** 2
    return student(df, 1, square) - jnp.log(scale)


def student(df: Array, size: int, square: Array) -> Array:
    """Log density of Student's law in `size` dimensions, standardised, at a squared distance, nats."""
    constant = log_rising(0.5 * df, 0.5 * size) - 0.5 * size * jnp.log(jnp.pi * df)
    return constant - 0.5 * (df + size) * jnp.log1p(square / df)


def gamma(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a gamma variable, nats: that of its logarithm, as of `log_gamma_density`, less `log x`."""
    a, rate, x = floats(fn.concentration, fn.rate, value)
    log_x = jnp.log(x)
    return _log_gamma(a, rate * x, (a - 1) * log_x + a * jnp.log(rate), log_x)


def inverse_gamma(fn: dist.Distribution, value: Array) -> Array:
    """Log density of one over a gamma variable, nats: that of its logarithm less `log x`."""
    a, rate, x = floats(fn.concentration, fn.rate, value)
    log_x = jnp.log(x)
    return _log_gamma(a, rate / x, a * jnp.log(rate) - (a + 1) * log_x, log_x)


def _log_gamma(a: Array, y: Array, powers: Array, log_x: Array) -> Array:
    """Log density of the logarithm of a gamma variable at log y, less `log_x`.

    Args:
        powers: `a log y - log_x`.
    """
    return _by_deviance(a, y, a - y, log_x, powers - a * jnp.log(a) + (a - y))


def _by_deviance(a: Array, y: Array, difference: Array, log_x: Array, powers: Array) -> Array:
    """`log a - excess(a)`, less the deviance of a from y and `log_x`.

    Near y, where the powers cancel, by the deviance. Elsewhere, the ends of a support included, by the powers.

    Args:
        difference: `a - y`.
        powers: minus the deviance and `log_x`, as they are written in textbooks.
    """
    v = difference / (a + y)
    near = -small_deviance(a, difference, jnp.clip(v, -NEAR, NEAR)) - log_x
    return jnp.log(a) - excess(a) + jnp.where(jnp.abs(v) < NEAR, near, powers)


def log_gamma_density(a: Array, x: Array) -> Array:
    """Log density of the logarithm of a gamma variable with rate one."""
    return jnp.log(a) - deviance(a, x, a - x) - excess(a)


def beta(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a beta variable, nats: as of `log_beta_density`, less `log(1 - x)`."""
    a, b, x = floats(fn.concentration1, fn.concentration0, value)
    total = a + b
    log_total = jnp.log(total)
    difference = a * (1 - x) - b * x
    parts = excess(total) - log_total
    for c, share, log_share, power, gap in (
        (a, x, jnp.log(x), xlogy(a - 1, x), difference),
        (b, 1 - x, jnp.log1p(-x), xlog1py(b - 1, -x), -difference),
    ):
        powers = power - c * (jnp.log(c) - log_total) + gap
        parts += _by_deviance(c, total * share, gap, log_share, powers)
    return parts


def log_beta_density(a: Array, b: Array, x: Array, rest: Array) -> Array:
    """Log density of a beta variable at x = 1 - `rest`, times that rest."""
    total, difference = a + b, a * rest - b * x
    both = deviance(a, total * x, difference) + deviance(b, total * rest, -difference)
    return excess(total) - excess(a) - excess(b) - both + jnp.log(a) + jnp.log(b / total) - jnp.log(x)


def von_mises(fn: dist.Distribution, value: Array) -> Array:
    """Log density of an angle, nats: `kappa (cos(x - mu) - 1) - log(2 pi I0(kappa) exp(-kappa))`.

    The cosine less one is taken from the sine of half the angle, which keeps its digits; the Bessel function is scaled.
    """
    concentration, loc, value = floats(fn.concentration, fn.loc, value)
    # the cosine of a small angle, less one
    cosine = -2 * jnp.sin(0.5 * (value - loc)) ** 2
    return concentration * cosine - jnp.log(2 * jnp.pi * jax.scipy.special.i0e(concentration))
