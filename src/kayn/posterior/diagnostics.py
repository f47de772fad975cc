"""Is this estimate any good? Effective sample size and Pareto k-hat of marginal weights."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from kayn.support.arrays import Array, namespace

POOR_EFFICIENCY = 0.2
"""Efficiency of particles, as `efficiency` defines it, below which they are called poor, however many there are."""
UNSETTLED = 0.25
"""Efficiency below which the fit of a guide goes on, where that helps: steps cost little next to poor weights."""
FAIR_EFFICIENCY = 0.43
"""Efficiency from which they are not, however few."""
FAIR_ESS = 13.5
"""Effective sample size from which it takes less than that: the error of weighted averages falls with their number."""
GOOD_EFFICIENCY = 0.8
"""Efficiency above which weights are so even that the shape of their tail matters only where it is endless."""
POOR_SPREAD = 1.0
"""Standard deviation of log Z over replicates, in nats, above which it is low by half a nat and more (half of its
variance), and means of what many groups depend on with it: by .3 to .6 of their sd in hierarchies of 300 groups."""
POOR_KHAT = 0.7
"""Pareto k-hat above which importance estimates are unreliable
(Vehtari et al., Pareto smoothed importance sampling, 2024)."""
POOR_SHIFT = 0.3
"""Posterior standard deviations by which the number of particles may move a mean, estimated between replicates."""
POOR_TAILS = 0.08
"""Noise of weights in the tails, as `noise_of_tails` has it, from which the spread is too small by a tenth and more:
where weights are found for few particles of much else, those that fit tails are rare."""
POOR_SHARE = 0.25
"""Part of a posterior's variance, as `largest_share` has it, that a single replicate of 32 and more may have. One that
counts like the others there never has it, however far off."""
FARTHEST = 9.0
"""Typical variances up to which one of a replicate counts there: what has heavy tails is no worse known for them."""
FALSE_ALARM = 0.01
"""How often means and log evidences that have nothing in common are taken to move together, a latent."""
LEAST_SHARED = 0.25
"""What replicates are worth at least, as a part of their number, when they count by their evidence."""
POWERS = np.append(2.0 ** (-np.arange(64) / 4), 0.0)
"""Powers of the evidence by which they may count."""
MIN_REPLICATES = 8
"""Fewer replicates than this say nothing of what moves together."""


def log_mean(log_values: Array) -> Array:
    """The logarithm of the mean of [R] values whose logarithms are given: a scalar."""
    xp = namespace(log_values)
    top = xp.max(log_values)
    top = xp.where(xp.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return top + xp.log(xp.mean(xp.exp(log_values - top)))


def log_mean_error(log_values: Array) -> Array:
    """Its Monte Carlo standard error (delta method); NaN of one value."""
    if len(log_values) < 2:
        return np.nan
    xp = namespace(log_values)
    return xp.std(xp.exp(log_values - log_mean(log_values)), ddof=1) / math.sqrt(len(log_values))


def shares(log_z: Array) -> Array:
    """How much replicates count in what is pooled of them: [R], summing to one; none of those that are impossible.

    Z and Z times a mean are unbiased, so that replicates that count by their Z are of one large sample, without the
    bias of order 1 / K that their average has (`shift`). Where Z varies too much for that, they count by the highest
    power of it at which they are worth a quarter of their number.

    Args:
        log_z: [R] log evidences of independent replicates.
    """
    xp = namespace(log_z)
    possible = xp.isfinite(log_z)
    top = xp.max(xp.where(possible, log_z, xp.finfo(log_z.dtype).min))
    own = xp.where(possible, log_z, top) - top
    by_power = xp.where(possible, xp.exp(POWERS[:, None] * own), 0.0)
    by_power = by_power / xp.maximum(by_power.sum(1, keepdims=True), 1)
    enough = LEAST_SHARED * possible.sum() * (by_power**2).sum(1) <= 1
    return by_power[xp.argmax(enough)].astype(log_z.dtype)


def effective_sample_size(weights: Array) -> Array:
    """`1 / sum_k w_k^2` over the first axis, for weights that sum to one: between 1 and K;
    0 where all weights are zero."""
    squares = (weights**2).sum(0)
    return np.where(squares > 0, 1.0 / np.where(squares > 0, squares, 1.0), 0.0)


def efficiency(weights: Array) -> np.ndarray:
    """`(ESS - 1) / (K - 1)` of particle sets, averaged over replicates: 1 for equal weights,
    0 if one particle has it all.

    Args:
        weights: [R, K, ...], summing to one over K >= 2.
    """
    ess = effective_sample_size(np.moveaxis(np.asarray(weights), 1, 0))
    return np.mean((ess - 1) / (weights.shape[1] - 1), axis=0)


def shift(log_z: Array, means: Array, sd: Array, share: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
    """By how much the pooled means of single replicates are off, since their particles are so few.

    Z and Z times a replicate's mean are unbiased, so that the posterior mean is E[Z m] / E[Z], or E[m] plus the
    covariance of m and Z / E[Z]: means of equal shares are off by minus this covariance, which falls as 1 / K. Shares
    that are a power of Z leave a part of it.

    Args:
        log_z: [R], finite.
        means: [R, ...] of single replicates.
        sd: [...], of the posterior.
        share: [R], how much replicates count; equally without.

    Returns:
        What is to be added to the pooled mean, in posterior standard deviations [...], and its standard error;
        both are zero where nothing says that means and log Z move together (Fisher's test of their correlation, for all
        elements at once).
    """
    count, size = len(log_z), max(math.prod(np.shape(sd)), 1)
    own = (means - means.mean(0)) / np.where(sd > 0, sd, np.inf)
    ratio, apart = np.exp(log_z - log_z.max()), log_z - log_z.mean()
    left = ratio / ratio.mean() - (1 if share is None else share * count)
    ratio = ratio / ratio.mean() - 1
    spread = np.std(own, axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.tensordot(apart, own, 1) / ((count - 1) * np.std(apart, ddof=1) * spread)
        seen = np.abs(np.arctanh(np.clip(np.nan_to_num(correlation), -1, 1))) * math.sqrt(count - 3)
    told = seen > NormalDist().inv_cdf(1 - FALSE_ALARM / 2 / size)
    error = np.std(ratio, ddof=1) * spread / math.sqrt(count)
    return np.where(told, np.tensordot(left, own, 1) / count, 0.0), np.where(told, error, 0.0)


def largest_share(variances: Array, share: Array) -> np.ndarray:
    """The largest part that a single replicate has in a posterior's variance: [...].

    A particle in a tail that the guide hardly reaches has a weight like all others of its replicate together. One such
    particle in thousands moves means and variances, and leaves effective sample sizes and k-hat as they are.

    Args:
        variances: [R, ...] of single replicates, about the mean of all.
        share: [R], how much replicates count.
    """
    typical = np.median(variances, 0)
    far = np.minimum(variances / np.where(typical > 0, typical, np.inf), FARTHEST)
    parts = far * np.reshape(share, (-1, *(1,) * (far.ndim - 1)))
    return parts.max(0) / np.maximum(parts.sum(0), np.finfo(float).tiny)


def noise_of_tails(values: Array, weights: Array) -> float:
    """How much weights of nearly the same value of a number differ, where a tenth to a fifth of it lies beyond.

    Given the value, a weight is an estimate, over the particles of all else. What it varies by is what is missing
    elsewhere in that tail: rare combinations would have to make up for it.

    Args:
        values, weights: [R, K] of single replicates, whose weights sum to one each.

    Returns:
        The variance of weights given the value, over their squared mean, in the worse of the two tails.
    """
    order = np.argsort(values, axis=None)
    own = np.asarray(weights, np.float64).ravel()[order]
    beyond = np.cumsum(own) / max(own.sum(), np.finfo(float).tiny)
    found = [own[(beyond > low) & (beyond <= low + 0.1)] for low in (0.1, 0.8)]
    # differences of neighbours, so that what the values change does not count
    return max(float(np.mean(np.diff(w) ** 2) / 2 / np.mean(w) ** 2) if len(w) > 1 else 0.0 for w in found)


def poor_below(size: int, least: float = POOR_EFFICIENCY) -> float:
    """Efficiency below which K = `size` particles are called poor; `least` however many there are."""
    return max(least, min(FAIR_EFFICIENCY, (FAIR_ESS - 1) / max(size - 1, 1)))
