"""Whether particles of a wider guide tell of the same posterior.

Weights know of the posterior where there are particles. A tail or a second part that the guide leaves out is met by one
particle in thousands, or by none, and the weights of the others look right: no effective sample size or k-hat tells
(a mixture whose components may widen has standard deviations of two thirds of the right ones so, with a k-hat of .5).
Particles of the same guide made wider are less even in weight, but go there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kayn.posterior.diagnostics import FALSE_ALARM, MIN_REPLICATES, POOR_SPREAD
from kayn.posterior.enough import ALMOST_ALL, OPERATIONS, by_replicate, deviations, possible
from kayn.posterior.pool import Pool
from kayn.posterior.poor_fit import ADVICE, complaints
from kayn.support.names import in_model

WIDENED = (8.0, 2.0)
"""How much wider guides are that are looked at, as `QEM`'s `overdispersion`: the first whose weights are even enough to
know moments by. Of a single coordinate the standard deviation is three times the guide's."""
REPLICATES = 64
"""Of the wider guide, where all of them together take no more than `enough.OPERATIONS`."""
MOVED = 0.15
"""Posterior standard deviations by which a mean, and share by which a standard deviation, may differ."""
SAME = 0.2
"""How far apart they are, two standard errors included, where one confirms the other."""


def doubts(found: Pool, look: Callable[[float, int], Pool | None]) -> tuple[str, ...]:
    """What there is to say against a posterior: what its own weights say, and what particles of a wider guide do.

    Heavy tails of weights alone (k-hat) say that something may be missing. Where the wider guide, which has particles
    there, gives the same moments, nothing is.

    Args:
        look: gives a posterior of a guide so much wider, of so many replicates; None where there is none. It is called
            only where it decides.
    """
    reasons = tuple(complaints(found))
    if reasons and any(complaints(found, tails=False)):
        return reasons
    wider = _seen(found, look)
    if wider is None:
        return reasons
    if reasons and all(_same(found, wider, n) for n in _continuous(found)):
        return ()
    return reasons or tuple(_missed(found, wider))


def _seen(found: Pool, look: Callable[[float, int], Pool | None]) -> Pool | None:
    """A posterior of a wider guide whose weights are even enough to know moments by; None where there is none, or it
    would take long, or there are too few replicates to compare it with."""
    dear = REPLICATES * found.problem.layout.operations > OPERATIONS
    if dear or found.draws.subsample or possible(found).sum() < MIN_REPLICATES:
        return None
    for how in WIDENED:
        wider = look(how, REPLICATES)
        if wider is None:
            return None
        log_z = np.asarray(wider.log_evidences)[possible(wider)]
        if log_z.size >= MIN_REPLICATES and np.std(log_z) < POOR_SPREAD:
            return wider
    return None


def _continuous(pool: Pool) -> list[str]:
    return [n for n in pool.drawn_names if not pool.problem.graph.latent(n).discrete]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Means and variances [*shape] of pooled replicates, and the standard errors of both."""

    mean: np.ndarray
    mean_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    sd: np.ndarray

    @staticmethod
    def of(pool: Pool, name: str) -> _Moments:
        shares = np.asarray(pool._shares, np.float64)[possible(pool)]
        means, about = by_replicate(pool, name)
        mean = np.tensordot(shares, means, 1)
        off = mean - means.mean(0)
        own = about - 2 * (means - means.mean(0)) * off + off**2  # squares about the one mean
        variance = np.tensordot(shares, own, 1)
        errors = (np.sqrt(np.tensordot(shares**2, (x - m) ** 2, 1)) for x, m in ((means, mean), (own, variance)))
        return _Moments(mean, next(errors), variance, next(errors), deviations(means, own))


def _apart(found: Pool, wider: Pool, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How far the wider particles' mean is off, in standard deviations, and by what share their standard deviation is
    larger, each with its standard error; zero of what does not vary."""
    a, b = _Moments.of(found, name), _Moments.of(wider, name)
    varies = (a.sd > 0) & (b.sd > 0)
    sd, variance = np.where(varies, b.sd, np.inf), np.where(varies, b.variance, np.inf)
    wide = np.where(varies, np.sqrt(b.variance / np.where(varies, a.variance, 1)) - 1, 0.0)
    wide_error = np.hypot(b.variance_error, a.variance_error) / variance / 2
    return (b.mean - a.mean) / sd, np.hypot(a.mean_error, b.mean_error) / sd, wide, wide_error


def _same(found: Pool, wider: Pool, name: str) -> bool:
    """Whether two posteriors agree about almost all elements, and know them well enough to say so."""
    shift, error, wide, wide_error = _apart(found, wider, name)
    most = np.maximum(np.abs(shift) + 2 * error, np.abs(wide) + 2 * wide_error)
    return bool(np.quantile(most, ALMOST_ALL, method="higher") < SAME)


def _missed(found: Pool, wider: Pool) -> Iterator[str]:
    """Latents of which the wider guide says something else."""
    for name in _continuous(found):
        shift, error, wide, wide_error = _apart(found, wider, name)
        most = NormalDist().inv_cdf(1 - FALSE_ALARM / 2 / max(shift.size, 1))
        moved = (np.abs(shift) > np.maximum(MOVED, most * error)) | (wide > np.maximum(MOVED, most * wide_error))
        if moved.any():
            size = np.where(moved, np.maximum(np.abs(shift), wide), -1.0)
            worst = np.unravel_index(np.argmax(size), size.shape)
            where = f" of element {', '.join(map(str, worst))}" if worst else ""
            yield (
                f"latent {in_model(name)!r}: particles of a wider guide tell of another posterior: the mean{where} "
                f"moves by {shift[worst]:+.2f} +- {error[worst]:.2f} sds, and the sd is {1 + wide[worst]:.2f} times as "
                f"large: the guide misses a part of it. {ADVICE}"
            )
