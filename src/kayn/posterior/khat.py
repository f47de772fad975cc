"""Pareto k-hat of weights: the shape of the tail that their largest have."""

from __future__ import annotations

import math

import numpy as np

from kayn.support.arrays import Array

MIN_PARTICLES_FOR_KHAT = 25
"""Fewer weights than this have no tail to speak of."""
PRIOR_SHAPE, PRIOR_COUNT = 0.5, 10
"""Shape towards which that of a tail is drawn, and the number of weights that this counts like."""
ENTRIES = 2**22
"""Numbers that the fits of many tails at once may take."""


def tail_length(count: int) -> int:
    """How many of the largest of so many weights a Pareto distribution is fitted to (Vehtari et al., 2024)."""
    return int(3 * count**0.5) if count > 225 else count // 5


def endless_khat(count: int) -> float:
    """k-hat of so many weights from which their very mean cannot exist: one, and two of its standard errors there.

    However even most weights are, such a tail says that the guide misses some of the posterior.
    Of too few weights to have a tail no k-hat says so.
    """
    tail = tail_length(count)
    return 1 + 2 * 2 / tail**0.5 if tail else math.inf


def pareto_khat(weights: Array) -> np.ndarray:
    """Pareto shape of the largest weights along the first axis; NaN with fewer than 25 particles,
    or where the tail is no more than ties.

    Discrete latents have few different weights. Where the largest are all equal, or a quarter of the tail is no larger
    than what lies below it, no Pareto distribution can be fitted.

    Args:
        weights: [K, ...], nonnegative.
    """
    weights = np.asarray(weights, np.float64)
    shape = weights.shape[1:]
    if weights.shape[0] < MIN_PARTICLES_FOR_KHAT:
        return np.full(shape, np.nan)
    columns = weights.reshape(weights.shape[0], -1).T
    count = tail_length(weights.shape[0])
    tails = np.sort(columns, axis=1)[:, -count - 1 :]
    tails /= np.maximum(tails[:, -1:], np.finfo(np.float64).tiny)
    excess = tails[:, 1:] - tails[:, :1]
    # what the fit divides by: the excess of the tail's lower quartile over the largest weight below the tail
    spread = (tails[:, 1] < 1 - 1e-6) & (excess[:, _quartile(count)] > 0)
    khat = np.full(columns.shape[0], np.nan)
    khat[spread] = pareto_shapes(excess[spread])
    return khat.reshape(shape)


def pareto_shapes(tails: np.ndarray) -> np.ndarray:
    """Shapes of generalised Pareto distributions with location zero: the posterior mean on a grid of scales (Zhang and
    Stephens, 2009), drawn towards a half (Vehtari et al., Pareto smoothed importance sampling, 2024, appendix C).

    ArviZ has it for one tail at a time, and from arviz-stats 1.3 on none for tails of five. This is for thousands at
    once, and without what importing ArviZ takes.

    Args:
        tails: [columns, n] sorted, positive from their lower quartile on.

    Returns:
        [columns].
    """
    count = tails.shape[1]
    points = 30 + int(count**0.5)
    block = max(1, ENTRIES // (points * count))
    parts = [_shapes(tails[i : i + block], points) for i in range(0, len(tails), block)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _shapes(tails: np.ndarray, points: int) -> np.ndarray:
    """The same of so few tails that all of them fit into memory for each of the grid's points."""
    count = tails.shape[1]
    steps = 1 - np.sqrt(points / (np.arange(points) + 0.5))
    # minus the shape over the scale: [columns, points]
    grid = steps / (3 * tails[:, _quartile(count), None]) + 1 / tails[:, -1:]
    shapes = np.log1p(-grid[:, :, None] * tails[:, None]).mean(2)
    fits = count * (np.log(-grid / shapes) - shapes - 1)
    with np.errstate(under="ignore"):
        weights = np.exp(fits - fits.max(1, keepdims=True))
    best = (grid * weights).sum(1) / weights.sum(1)
    shape = np.log1p(-best[:, None] * tails).mean(1)
    return (count * shape + PRIOR_COUNT * PRIOR_SHAPE) / (count + PRIOR_COUNT)


def _quartile(count: int) -> int:
    """Where the lower quartile of so many sorted numbers lies."""
    return int(count / 4 + 0.5) - 1
