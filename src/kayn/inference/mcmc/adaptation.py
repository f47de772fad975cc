"""Steps of local proposals, learnt in warm-up and then frozen: by plate element, so that it moves as often as it
should; and by coordinate of an element, by its spread."""

from __future__ import annotations

import jax.numpy as jnp

from kayn.support.arrays import Array

FASTEST, LEAST = 1.0, 0.02
"""Rates at which steps change at the beginning of warm-up, and at the latest."""


def target_rate(count: int, coordinates: int) -> float:
    """How often an element should move, of `count` particles of some coordinates.

    Where the autocorrelation time of a Normal's coordinates is least, within the 12 % that it does not matter: for one
    coordinate .25 of 2 particles, .4 of 3, .68 of 10 and .8 of 30; for 4 and 16 coordinates a fifth less.
    """
    return 0.9 * (count - 1) / (count + 2) * (1.0 if coordinates == 1 else 0.8)


def adapted(log_step: Array, moved: Array, rate: float, sweep: Array) -> Array:
    """The log of a step after a sweep (Robbins & Monro, 1951).

    Args:
        moved: whether each element did.
        sweep: number of the sweep, from zero.
    """
    gain = jnp.maximum(FASTEST / (1.0 + sweep) ** 0.6, LEAST)
    return log_step + (gain * (moved - rate)).astype(log_step.dtype)


def spread_after(mean: Array, variance: Array, current: Array, sweep: Array) -> tuple[Array, Array]:
    """Running mean and variance of a coordinate, in which the distant past counts less and less."""
    rate = _share(sweep, mean)
    new = mean + rate * (current - mean)
    return new, variance + rate * ((current - mean) * (current - new) - variance)


def covariance_after(covariance: Array, centred: Array, sweep: Array) -> Array:
    """The running covariance [*scope, d, d] that goes with `spread_after`.

    Args:
        centred: coordinates less their running mean before the sweep, [*scope, d].
    """
    rate = _share(sweep, covariance)
    return covariance + rate * ((1 - rate) * centred[..., :, None] * centred[..., None, :] - covariance)


def _share(sweep: Array, like: Array) -> Array:
    return (2.0 / (sweep + 3.0) ** 0.8).astype(like.dtype)
