"""Log densities over intervals and ordered categories, as sums of logarithms instead of logarithms of differences.

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results, in nats,
have their common shape.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import xlogy

from kayn.densities.counts import gamma
from kayn.densities.incomplete import log_gamma_mass
from kayn.densities.special import floats, log_minus_expm1
from kayn.support.arrays import Array


def kumaraswamy(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a Kumaraswamy law, nats: `log a + log b + (a - 1) log x + (b - 1) log(1 - x^a)`.

    The last logarithm is taken from `-a log x`, so that it holds where x^a is close to one.
    """
    a, b, x = floats(fn.concentration1, fn.concentration0, value)
    flat = b == 1
    beyond = jnp.where(flat, 0.0, log_minus_expm1(-a * jnp.log(jnp.where(flat, 0.5, x))))
    return jnp.log(a) + jnp.log(b) + xlogy(a - 1, x) + (b - 1) * beyond


def power_law(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a power of the value between two ends, nats: `high ** b - low ** b` by its larger part."""
    alpha, low, high, x = floats(fn.alpha, fn.low, fn.high, value)
    power, width = alpha + 1, jnp.log(high / low)
    flat = jnp.abs(power) * width < 1e-4
    steep = jnp.where(flat, 1.0, jnp.abs(power))
    end = jnp.where(power > 0, jnp.log(high), jnp.log(low))
    mass = power * end + log_minus_expm1(steep * width) - jnp.log(steep)
    linear = power * (jnp.log(low) + jnp.log(high)) / 2 + jnp.log(width)
    return alpha * jnp.log(x) - jnp.where(flat, linear, mass)


def ordered_logistic(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of a category, nats; `cutpoints`: [..., C - 1].

    That of a logistic variable between two of them: the logarithms of both half-lines and of the distance between the
    ends.
    """
    predictor, cutpoints = floats(fn.predictor, fn.cutpoints)
    count = cutpoints.shape[-1]
    value = jnp.asarray(value, int)
    shape = jnp.broadcast_shapes(value.shape, predictor.shape, cutpoints.shape[:-1])
    value = jnp.broadcast_to(value, shape)
    # summed over the alternatives, not looked up: rows of plates stay apart
    chosen = value[..., None] == jnp.arange(count + 1)
    first = jnp.zeros_like(cutpoints[..., :1])
    upper = jnp.concatenate([cutpoints, first], -1) - predictor[..., None]
    lower = jnp.concatenate([first, cutpoints], -1) - predictor[..., None]
    gap = jnp.concatenate([first + 1, jnp.diff(cutpoints, axis=-1), first + 1], -1)
    place = jnp.arange(count + 1)
    below = jnp.where(place == count, 0.0, jax.nn.log_sigmoid(upper))
    above = jnp.where(place == 0, 0.0, jax.nn.log_sigmoid(-lower))
    between = jnp.where((place == 0) | (place == count), 0.0, log_minus_expm1(gap))
    return jnp.sum(jnp.where(chosen, below + above + between, 0.0), -1)


def _cut_gamma(fn: dist.Distribution, value: Array, low: Array, high: Array) -> Array:
    a, rate, low, high = floats(fn.base_dist.concentration, fn.base_dist.rate, low, high)
    return gamma(fn.base_dist, value) - log_gamma_mass(a, rate * low, rate * high)


def left_truncated_gamma(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a gamma law above `low`, nats: its own, less the log probability to lie there."""
    return _cut_gamma(fn, value, fn.low, jnp.inf)


def right_truncated_gamma(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a gamma law below `high`, nats: its own, less the log probability to lie there."""
    return _cut_gamma(fn, value, 0.0, fn.high)


def truncated_gamma(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a gamma law between `low` and `high`, nats: its own, less the log probability to lie there."""
    return _cut_gamma(fn, value, fn.low, fn.high)
