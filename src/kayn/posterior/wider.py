"""Whether particles of a wider guide tell of the same posterior, or know it better.

Weights know of the posterior where there are particles. A tail or a second part that the guide leaves out is met by one
particle in thousands, or by none, and the weights of the others look right: no effective sample size or k-hat tells
(a mixture whose components may widen has standard deviations of two thirds of the right ones so, with a k-hat of .5).
Particles of the same guide made wider are less even in weight, but go there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Generic

import numpy as np
import scipy.special

from kayn.posterior.diagnostics import FALSE_ALARM, MIN_REPLICATES, POOR_SPREAD
from kayn.posterior.enough import (
    ALMOST_ALL,
    KNOWN,
    LONGEST,
    OPERATIONS,
    Draw,
    PoolT,
    Take,
    affordable,
    deviations,
    measured_by_replicate,
    possible,
    twice_as_many,
    worst_error,
)
from kayn.posterior.measured import Measure
from kayn.posterior.pool import Pool
from kayn.posterior.poor_fit import ADVICE, check, complaints, heavy_tails, worst_element
from kayn.support.arrays import KeyArray
from kayn.support.names import in_model

WIDENED = (8.0, 2.0)
"""How much wider guides are that are looked at, as `QEM`'s `overdispersion`: the first whose weights are even enough to
know moments by. Of a single coordinate the standard deviation is three times the guide's."""
REACHING = 2.0
"""How much wider the guide is that takes the place of one whose tails are too light."""
REPLICATES, GLIMPSE = 64, 16
"""Of the wider guide. The fewer tell first whether its weights are even enough, and are all where more are dear."""
SURE = 1024
"""And at most, where moments are to be confirmed of which something is said against the weights."""
LOOK = 2**29
"""Operations that all of them may take: a second or two."""
EVEN_SPREAD = 0.25
"""Standard deviation of log Z over replicates, in nats, up to which a wider guide takes another's place: what single
replicates lack is half the variance."""
Wider = Callable[[float, bool], Draw[PoolT] | None]
"""Draws from a guide so much wider, in all coordinates or in long vectors alone; None where there is none."""
MOVED = 0.15
"""Posterior standard deviations by which a mean, and share by which a standard deviation, may differ."""
SAME = 0.2
"""How far apart they are, two standard errors included, where one confirms the other."""


def assured(
    found: PoolT, reasons: tuple[str, ...], wider: Wider[PoolT], take: Take[PoolT], key: KeyArray
) -> tuple[PoolT, tuple[str, ...]]:
    """A posterior, and what there is to say against it: what its own weights say, and what particles of a wider guide
    do.

    Where replicates of a wider guide disagree less, or the narrower one's weights have heavy tails (k-hat) and the
    wider one's have not, those are the posterior. Where the wider guide is too uneven for that, it still tells whether
    moments are the same.

    Args:
        reasons: all its `complaints`.
        wider: is called only where it decides.
    """
    if (reasons and any(complaints(found, uneven=False, tails=False))) or not comparable(found):
        return found, reasons
    look, taken = cache(partial(_look, wider, key)), cache(take)  # of guides that are asked for twice
    instead = cache(partial(_better, take=taken))
    heavy = heavy_tails(found)
    if heavy and (better := instead(look(REACHING))) is not None:
        return better, ()
    judge = next(filter(None, map(look, WIDENED)), None)
    if judge is None:
        return found, () if reasons and _tails_confirmed(found, wider, take, key) else reasons
    if (heavy or _error(judge.seen) < _error(found)) and (better := instead(judge)) is not None:
        return better, ()
    judge, missed = _asked_again(found, judge, key)
    if not reasons or missed:
        return found, reasons or missed
    if _confirmed(found, judge, taken, key):
        return found, ()
    return found, () if _tails_confirmed(found, wider, take, key) else reasons


@dataclass(frozen=True, eq=False)
class _Look(Generic[PoolT]):
    """At a guide so much wider, whose weights are even enough to know moments by."""

    how: float
    draw: Draw[PoolT]
    seen: PoolT


def _look(wider: Wider[PoolT], key: KeyArray, how: float, vectors: bool = False) -> _Look[PoolT] | None:
    draw = wider(how, vectors)
    if draw is None:
        return None
    seen = draw(key, GLIMPSE)
    if _spread(seen) < POOR_SPREAD and REPLICATES * seen.problem.layout.operations <= LOOK:
        seen = draw(key, REPLICATES)
    return _Look(how, draw, seen) if _spread(seen) < POOR_SPREAD else None


def _better(look: _Look[PoolT] | None, take: Take[PoolT]) -> PoolT | None:
    """The posterior of a wider guide, if it is known well enough and nothing is said against it."""
    if look is None or not _reaches(look.seen):
        return None
    better = replace(take(look.draw), widened=True)
    known = worst_error(better, _continuous(better)) < 2 * KNOWN
    return better if known and _reaches(better) and not check(better) else None


def agree(found: Pool, other: Pool) -> bool:
    """Whether nothing tells two posteriors apart, neither of which is known to be the wider one."""
    return not any(_missed(found, other)) and not any(_missed(other, found))


def comparable(found: Pool) -> bool:
    """Whether a look at another guide does not take long, and there are enough replicates to compare it with."""
    known = not found.draws.subsample and bool(possible(found).sum() >= MIN_REPLICATES)
    return known and not dear(found.problem.layout.operations)


def dear(operations: float) -> bool:
    """Whether a glimpse of a guide takes long, whose replicates take so many operations each."""
    return GLIMPSE * operations > OPERATIONS


def _spread(pool: Pool) -> float:
    """Standard deviation of log Z over replicates; without end of too few that are possible."""
    log_z = np.asarray(pool.log_evidences)[possible(pool)]
    return float(np.std(log_z)) if log_z.size >= MIN_REPLICATES else math.inf


def _reaches(wider: Pool) -> bool:
    """Whether a wider guide's weights are even enough to take the place of a narrower one's."""
    return _spread(wider) < EVEN_SPREAD and not heavy_tails(wider)


def _error(pool: Pool) -> float:
    """Of means and standard deviations of a single replicate, relative."""
    return worst_error(pool, _continuous(pool)) * float(possible(pool).sum()) ** 0.5


def _continuous(pool: Pool) -> list[str]:
    return [n for n in pool.drawn_names if not pool.problem.graph.latent(n).discrete]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Means and variances [*shape] of pooled replicates, the standard errors of both, and in what."""

    mean: np.ndarray
    mean_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    sd: np.ndarray
    measure: Measure

    @staticmethod
    def of(pool: Pool, name: str, measure: Measure | None = None) -> _Moments:
        shares = np.asarray(pool._shares, np.float64)[possible(pool)]
        means, about, measure = measured_by_replicate(pool, name, measure)
        mean = np.tensordot(shares, means, 1)
        off = mean - means.mean(0)
        own = about - 2 * (means - means.mean(0)) * off + off**2  # squares about the one mean
        variance = np.tensordot(shares, own, 1)
        errors = (np.sqrt(np.tensordot(shares**2, (x - m) ** 2, 1)) for x, m in ((means, mean), (own, variance)))
        return _Moments(mean, next(errors), variance, next(errors), deviations(means, own), measure)


def _apart(found: Pool, wider: Pool, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How far the wider particles' mean is off, in standard deviations, and by what share their standard deviation is
    larger, each with its standard error; zero of what does not vary."""
    b = _Moments.of(wider, name)
    a = _Moments.of(found, name, b.measure)
    varies = (a.sd > 0) & (b.sd > 0)
    sd, variance = np.where(varies, b.sd, np.inf), np.where(varies, b.variance, np.inf)
    wide = np.where(varies, np.sqrt(b.variance / np.where(varies, a.variance, 1)) - 1, 0.0)
    wide_error = np.hypot(b.variance_error, a.variance_error) / variance / 2
    return (b.mean - a.mean) / sd, np.hypot(a.mean_error, b.mean_error) / sd, wide, wide_error


def _same(found: Pool, wider: Pool) -> bool:
    """Whether two posteriors agree about almost all elements, and know them well enough to say so."""
    return _small(found, wider, lambda apart, error: np.abs(apart) + 2 * error)


def _may_know(found: Pool, wider: Pool, count: float) -> bool:
    """Whether so many replicates like those of the wider guide could know moments that are the same well enough."""
    share = (wider.num_replicates / count) ** 0.5
    return _small(found, wider, lambda _, error: 2 * share * error)


def _small(found: Pool, wider: Pool, size: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> bool:
    """Whether what is made of how far means and deviations are apart, and of the errors of that, is small."""

    def largest(name: str) -> float:
        shift, error, wide, wide_error = _apart(found, wider, name)
        return float(np.quantile(np.maximum(size(shift, error), size(wide, wide_error)), ALMOST_ALL, method="higher"))

    return all(largest(n) < SAME for n in _continuous(found))


def _confirmed(found: PoolT, look: _Look[PoolT], take: Take[PoolT], key: KeyArray) -> bool:
    """Whether a wider guide's particles tell of the same posterior, of which more are drawn until they do, where these
    can be enough.

    That takes less time than chains, if it does.
    """
    begun, seen = time.perf_counter(), look.seen
    while not _same(found, seen):
        most = min(SURE, affordable(seen))
        late = time.perf_counter() - begun > LONGEST
        if late or 2 * seen.num_replicates > most or not _may_know(found, seen, most):
            return False
        seen = take(look.draw) if seen is look.seen else twice_as_many(look.draw, key, seen)
    return True


def _asked_again(found: Pool, look: _Look[PoolT], key: KeyArray) -> tuple[_Look[PoolT], tuple[str, ...]]:
    """What the wider guide tells of another posterior, still with more replicates where these do not take long.

    Their moments are no Normal numbers, least of all those of few replicates of uneven weights: what only these tell is
    chance more often than `FALSE_ALARM` says, and chains would be the price.
    """
    missed = tuple(_missed(found, look.seen))
    while missed and 2 * look.seen.num_replicates <= min(2 * REPLICATES, affordable(look.seen)):
        look = replace(look, seen=twice_as_many(look.draw, key, look.seen))
        missed = tuple(_missed(found, look.seen))
    return look, missed


def _tails_confirmed(found: PoolT, wider: Wider[PoolT], take: Take[PoolT], key: KeyArray) -> bool:
    """Whether noise in the tails is all that there is against a posterior, and a guide that is wider in its long
    vectors alone, of whose particles few fit there, tells of the same."""
    if any(complaints(found, tails=False)):
        return False
    look = _look(wider, key, WIDENED[-1], vectors=True)
    return look is not None and _confirmed(found, look, take, key)


def _missed(found: Pool, wider: Pool) -> Iterator[str]:
    """Latents of which the wider guide says something else."""
    fewer = min(possible(pool).sum() for pool in (found, wider))
    apart = {n: _apart(found, wider, n) for n in _continuous(found)}
    compared = sum(shift.size for shift, *_ in apart.values())
    most = scipy.special.stdtrit(fewer - 1, 1 - FALSE_ALARM / 2 / max(compared, 1))
    for name, (shift, error, wide, wide_error) in apart.items():
        moved = (np.abs(shift) > np.maximum(MOVED, most * error)) | (wide > np.maximum(MOVED, most * wide_error))
        if moved.any():
            size = np.where(moved, np.maximum(np.abs(shift), wide), -1.0)
            worst, where = worst_element(size)
            yield (
                f"latent {in_model(name)!r}: particles of a wider guide tell of another posterior: the mean{where} "
                f"moves by {shift[worst]:+.2f} +- {error[worst]:.2f} sds, and the sd is {1 + wide[worst]:.2f} times as "
                f"large: the guide misses a part of it. {ADVICE}"
            )
