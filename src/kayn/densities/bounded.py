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
from kayn.densities.special import floats, log_minus_expm1, log_sigmoid
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


@jax.custom_jvp
def _log_share(x: Array, counts: Array) -> Array:
    """The log probability of a standard logistic variable below x where that counts (1), and 0 where it does not (0).

    Without a selection, which would send the whole chain through scalar loops. Below what is impossible, -inf, lies
    the lowest number here, which zero times is zero.
    """
    lowest = jnp.finfo(x.dtype).min
    return counts * jnp.maximum(log_sigmoid(x), lowest)


@_log_share.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, counts = primals
    return _log_share(x, counts), counts * jax.nn.sigmoid(-x) * tangents[0]


def ordered_logistic(fn: dist.Distribution, value: Array) -> Array:
    """Log probability of a category, nats; `cutpoints`: [..., C - 1].

    That of a logistic variable between two of them: the logarithms of both half-lines and of the distance between the
    ends. These are picked before they meet the predictor: two logarithms for each of its entries, not for each category
    as well.
    """
    predictor, cutpoints = floats(fn.predictor, fn.cutpoints)
    count = cutpoints.shape[-1]
    place = jnp.arange(count)
    value = jnp.asarray(value, int)
    # summed over the alternatives, not looked up: rows of plates stay apart
    upper, lower = (jnp.where(place == v[..., None], cutpoints, 0.0).sum(-1) for v in (value, value - 1))
    gaps = log_minus_expm1(jnp.diff(cutpoints, axis=-1))
    between = jnp.where(place[1:] == value[..., None], gaps, 0.0).sum(-1)
    one = jnp.ones_like(upper)
    below = _log_share(upper - predictor, jnp.where(value < count, one, 0.0))
    return below + _log_share(predictor - lower, jnp.where(value > 0, one, 0.0)) + between


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
