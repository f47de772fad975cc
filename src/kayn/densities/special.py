"""Functions that densities are made of, in forms that keep their digits where the textbook's cancel.

A log probability of counts is a small difference of log gamma functions of large numbers, which float32 holds to seven
digits of many millions. Loader (Fast and accurate computation of binomial probabilities, 2000) takes the large part out
by algebra: what is left is a sum of small terms, `excess` and `deviance`. Probabilities of tails are written by Mills'
ratio.

Unless shapes are given, functions work entry by entry: arguments are broadcast, and results have their common shape.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc

from kayn.support.arrays import Array

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
"""Coefficients of Stirling's series for log gamma, DLMF 5.11.1."""
STEPS = (4, 9)
"""Whole numbers to go further until the series is exact to the last digit, from zero on: in float32 and float64."""
NEAR = 0.1
"""Relative distance below which a deviance is summed as a series."""
TERMS = (4, 8)
"""Terms of that series, in float32 and float64."""
ASYMPTOTIC = (10.0, 30.0)
"""Standard deviations from which Mills' ratio is summed as a series, in float32 and float64."""
T = TypeVar("T")


def floats(*arrays: Array) -> tuple[Array, ...]:
    """The same numbers as floats of one type, that of `jnp.result_type(float)` at least."""
    dtype = jnp.result_type(float, *arrays)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def _for(x: Array, numbers: tuple[T, T]) -> T:
    """That of two numbers which is for an array's type: the first up to float32."""
    return numbers[jnp.finfo(x.dtype).bits > 32]


def excess(x: Array) -> Array:
    """`log gamma(x + 1) - x log x + x` for x >= 0: zero at zero, and `log(2 pi x) / 2` and less than 1 /
    (12 x) more for large x.

    By Stirling's series some steps further on, and the factors between: sums of small terms, without log gamma, which
    takes CPUs as long as ten logarithms, and without a selection, which keeps all else in its chain from their vector
    units.
    """
    (x,) = floats(x)
    steps = _for(x, STEPS)
    x = jnp.minimum(x, jnp.finfo(x.dtype).max)
    further = x + (steps + 1)
    inverse = 1 / further
    series = jnp.zeros_like(inverse)
    for coefficient in reversed(STIRLING):
        series = series * inverse**2 + coefficient
    between = jnp.ones_like(x)
    for step in range(1, steps + 1):
        between = between * (further / (x + step))
    # the derivative of the reciprocal of less is no float
    moved = x * jnp.log1p((steps + 1) / jnp.maximum(x, 1e-10)) - (steps + 1)
    return moved + 0.5 * jnp.log(further) + LOG_ROOT_2PI + series * inverse + jnp.log(between)


def deviance(x: Array, mean: Array, difference: Array, log_mean: Array | None = None) -> Array:
    """`x log(x / mean) - x + mean`, never negative, for x, mean >= 0.

    Args:
        difference: `x - mean`, which the caller may know better than by a subtraction.
        log_mean: its logarithm, where `mean` itself may be too small for a float.
    """
    log_mean = jnp.log(mean) if log_mean is None else log_mean
    return _deviance(*jnp.broadcast_arrays(*floats(x, mean, difference, log_mean)))


def small_deviance(x: Array, difference: Array, v: Array) -> Array:
    """The deviance of x from `mean` where `v = difference / (x + mean)` is at most `NEAR`: the series of
    `difference v + 2 x (artanh(v) - v)`."""
    series = jnp.zeros_like(v)
    for j in reversed(range(_for(v, TERMS))):
        series = series * v**2 + 1 / (2 * j + 3)
    return difference * v + 2 * x * v**3 * series


@jax.custom_jvp
def _deviance(x: Array, mean: Array, difference: Array, log_mean: Array) -> Array:
    total = x + mean
    v = difference / jnp.where(total > 0, total, 1.0)
    positive = x > 0
    logs = jnp.where(positive, x * (jnp.log(jnp.where(positive, x, 1.0)) - log_mean), 0.0)
    return jnp.where(jnp.abs(v) < NEAR, small_deviance(x, difference, v), logs - difference)


@_deviance.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # as a function of x and the mean; what else is given follows from these
    x, mean, difference, log_mean = primals
    dx, _, _, dlog_mean = tangents
    positive, far = x > 0, jnp.abs(difference) > 0.5 * mean
    near = jnp.log1p(jnp.where(far, 0.0, difference / jnp.where(mean > 0, mean, 1.0)))
    by_x = jnp.where(positive, jnp.where(far, jnp.log(jnp.where(positive, x, 1.0)) - log_mean, near), 0.0)
    return _deviance(*primals), by_x * dx - difference * dlog_mean


def log_rising(x: Array, step: Array) -> Array:
    """`log gamma(x + step) - log gamma(x)` for x > 0, step >= 0, in the digits of the result and not of its parts."""
    x, step = floats(x, step)
    # x log(1 + step / x) is close to step where x is large
    ratio = jnp.log1p(step / x)
    return excess(x + step) - excess(x) + step * jnp.log(x + step) + (x * ratio - step) - ratio


@jax.custom_jvp
def log_beyond(x: Array) -> Array:
    """Log of the standard normal probability beyond x over the density at x or, left of zero, at zero.

    For x >= 0 this is the logarithm of Mills' ratio, at any distance.
    """
    far = x > _for(x, ASYMPTOTIC)
    right = jnp.maximum(x, 0.0)
    square = 1 / jnp.maximum(right, _for(x, ASYMPTOTIC)) ** 2
    series = jnp.zeros_like(square)
    for k in reversed(range(9)):
        series = 1 - (2 * k + 1) * square * series
    near = jnp.log(0.5 * erfc(jnp.where(far, 0.0, x) * math.sqrt(0.5))) + right**2 / 2 + LOG_ROOT_2PI
    return jnp.where(far, jnp.log(series) + 0.5 * jnp.log(square), near)


@log_beyond.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    value = log_beyond(x)
    # x - 1 / M, whose digits cancel in the tail
    far = x > _for(x, ASYMPTOTIC)
    beyond = jnp.where(far, x, 1.0)
    square = 1 / beyond**2
    tail = -(1 - square * (2 - square * (10 - 74 * square))) / beyond
    # no maximum and no minimum, which have no derivative at zero
    right = x > 0
    hazard = jnp.exp(-(jnp.where(right, 0.0, x) ** 2) / 2 - value)
    return value, dx * jnp.where(far, tail, jnp.where(right, x, 0.0) - hazard)


def log_minus_expm1(x: Array) -> Array:
    """`log(1 - exp(-x))` for x >= 0."""
    small = x < math.log(2)
    return jnp.where(
        small, jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0))), jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x)))
    )


@jax.custom_jvp
def log_sigmoid(x: Array) -> Array:
    """Log probability of a standard logistic variable below x."""
    return jnp.minimum(x, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


@log_sigmoid.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # the derivative of each operation in turn would select by sign,
    # and take ten times as long as the one operation that they amount to
    return log_sigmoid(*primals), jax.nn.sigmoid(-primals[0]) * tangents[0]
