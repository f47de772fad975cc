"""How many replicates a posterior takes where nobody says: as many as its errors ask for, of those that cost little.

What replicates disagree about is known to no better. A few more of them need nothing compiled; and a tail that no
particle of a few replicates has seen is met by many, whose weights then tell (`kayn.posterior.poor_fit`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import numpy as np

from kayn.posterior.measured import Measure, measure_of
from kayn.posterior.pool import Pool
from kayn.support.arrays import Array, KeyArray, concatenated
from kayn.xla.compilation import is_traced

PoolT = TypeVar("PoolT", bound=Pool)
Draw = Callable[[KeyArray, int], PoolT]
"""A posterior by a key and its number of replicates."""
Take = Callable[[Draw[PoolT]], PoolT]
"""As many replicates of a guide as a posterior is to have."""

FIRST, MOST = 32, 256
"""Replicates that are taken at any rate, and at most."""
KNOWN = 0.025
"""Standard error, in posterior standard deviations, up to which a mean is known; relative, to which a standard
deviation is."""
ALMOST_ALL = 0.95
"""Share of a latent's elements that are to be known: of thousands some are always the worst."""
COUNTED = 0.25
"""Least standard deviation against which errors of discrete latents are held."""
OPERATIONS = 2**33
"""More replicates are taken as long as all of them take so many operations: a few seconds on two cores."""
LONGEST = 8.0
"""And none are begun after so many seconds, which is for what operations do not tell: what is found for a key would
depend on the machine."""
KEPT_BYTES = 2**28
"""And as long as their particles and weights are no larger."""
PATIENCE = 8
"""Times as many operations and seconds where chains, which take a minute, would be asked otherwise."""


@dataclass(frozen=True, eq=False)
class Replicates:
    """As many replicates of a guide as a posterior is to have: `count`, or what `enough_replicates` finds."""

    key: KeyArray
    count: int | None = None

    def __call__(self, draw: Draw[PoolT]) -> PoolT:
        """So many of a guide."""
        return enough_replicates(draw, self.key) if self.count is None else draw(self.key, self.count)

    def more(self, draw: Draw[PoolT], found: PoolT) -> PoolT:
        """So many in addition to those of a call as its errors ask for, with `PATIENCE`."""
        return enough_replicates(draw, self.key, found, PATIENCE) if self.count is None else found


def affordable(pool: Pool, patience: float = 1.0) -> float:
    """How many replicates like these take no more memory than a posterior may, and `patience` times the operations."""
    each = sum(np.size(x) for x in jax.tree.leaves((pool.draws.values, pool.axis_weights))) * 4 / pool.num_replicates
    return min(patience * OPERATIONS / max(pool.problem.layout.operations, 1), KEPT_BYTES / max(each, 1))


def replicates_wanted(pool: Pool, patience: float = 1.0) -> int:
    """How many replicates there should be, given some: so many as there are, or these doubled a few times, so that what
    is compiled for a posterior serves others."""
    have = pool.num_replicates
    if is_traced(pool.log_evidences) or pool.draws.subsample:
        return have
    most = min(MOST, affordable(pool, patience))
    if 2 * have > most:
        return have  # without a look at particles, which may be very many
    worst = worst_error(pool, pool.drawn_names)
    # where replicates do not count alike, they are worth less than their number
    needed = have**2 * float(np.sum(np.asarray(pool._shares, np.float64) ** 2)) * (worst / KNOWN) ** 2
    count = have
    while count < needed and 2 * count <= most:
        count *= 2
    return count


def enough_replicates(draw: Draw[PoolT], key: KeyArray, found: PoolT | None = None, patience: float = 1.0) -> PoolT:
    """Replicates from independent keys, pooled: so many as `replicates_wanted` says of the first of them.

    Args:
        found: these, where they have been drawn.
        patience: how many times the operations and seconds of other posteriors they may take.
    """
    begun = time.perf_counter()
    found = draw(key, FIRST) if found is None else found
    wanted = replicates_wanted(found, patience)
    while found.num_replicates < wanted and time.perf_counter() - begun < patience * LONGEST:
        found = twice_as_many(draw, key, found)
    return found


def twice_as_many(draw: Draw[PoolT], key: KeyArray, found: PoolT) -> PoolT:
    """A posterior and as many replicates more, if not a few more, drawn `FIRST` at a time with keys of their own."""
    have = found.num_replicates
    parts = [found, *(draw(jax.random.fold_in(key, n), FIRST) for n in range(have, 2 * have, FIRST))]
    pieces = [(p.draws, p.log_evidences, p.axis_weights) for p in parts]
    draws, log_evidences, weights = concatenated(pieces)
    return replace(found, draws=draws, log_evidences=log_evidences, axis_weights=weights)


def possible(pool: Pool) -> np.ndarray:
    """Which replicates hold a possible combination: bool [R]."""
    return np.isfinite(np.asarray(pool.log_evidences))


def by_replicate(pool: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every replicate that holds a possible combination, a latent's mean and its variance about the mean of all:
    [R, *shape] both."""
    return measured_by_replicate(pool, name)[:2]


def measured_by_replicate(
    pool: Pool, name: str, measure: Measure | None = None
) -> tuple[np.ndarray, np.ndarray, Measure]:
    """What `by_replicate` gives, and what it is measured in, since a variance may not exist.

    Args:
        measure: that of another posterior; by default what these particles say.
    """
    values, weights = _particles(pool, name)
    own, squares = _about(values, weights)
    measure = measure or measure_of(values, _together(pool, weights), squares)
    if measure.heavy.size:
        own, squares = _about(measure(values), weights)
    return own, squares.sum(1), measure


def _particles(pool: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [R, K, *shape] of the replicates that count, and their weights with ones for the event."""
    which = possible(pool)
    values = np.asarray(pool.draws.values[name], np.float64)[which]
    weights = np.asarray(pool._weights(name), np.float64)[which]
    return values, weights.reshape((*weights.shape, *(1,) * (values.ndim - weights.ndim)))


def _together(pool: Pool, weights: np.ndarray) -> np.ndarray:
    """Weights of the particles of all replicates."""
    shares = np.asarray(pool._shares, np.float64)[possible(pool)]
    return weights * shares.reshape((-1, *(1,) * (weights.ndim - 1)))


def _about(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of replicates [R, *shape], and squares about the mean of all [R, K, *shape], weighted."""
    means = np.where(weights > 0, weights * values, 0).sum(1)
    return means, np.where(weights > 0, weights * (values - means.mean(0)) ** 2, 0)


def deviations(means: Array, variances: Array) -> np.ndarray:
    """The standard deviations [*shape] of what `by_replicate` gives; zero where there is no more than rounding."""
    sd = np.sqrt(variances.mean(0))
    return np.where(sd > 1e-5 * np.abs(means).max(0), sd, 0.0)


def relative_error(means: Array, variances: Array) -> float:
    """The larger of the relative errors of means and standard deviations, of almost all elements.

    Args:
        means, variances: of replicates, as `by_replicate` gives them, [R, *shape].
    """
    count = len(means)
    if count < 2:
        return 0.0
    sd = deviations(means, variances)
    moves = (sd > 0) & np.isfinite(sd)
    if not moves.any():
        return 0.0
    of_mean = np.std(means, axis=0, ddof=1)[moves] / sd[moves]
    of_sd = np.std(variances, axis=0, ddof=1)[moves] / sd[moves] ** 2 / 2
    errors = np.maximum(of_mean, of_sd) / math.sqrt(count)
    return float(np.quantile(errors, ALMOST_ALL, method="higher"))


def worst_error(pool: Pool, names: Iterable[str]) -> float:
    """The largest error of some latents, relative to their standard deviations; zero of none."""
    discrete = {z.name for z in pool.problem.graph.latents if z.discrete}
    errors = ((error_of_counts if n in discrete else relative_error)(*by_replicate(pool, n)) for n in names)
    return max(errors, default=0.0)


def error_of_counts(means: Array, variances: Array) -> float:
    """As `relative_error`, of discrete latents: that of their means alone, against standard deviations of `COUNTED` at
    least. Nobody asks how much an allocation varies that is the same in all but a thousandth of the posterior."""
    return relative_error(means, np.maximum(variances.mean(0), COUNTED**2)[None].repeat(len(means), 0))
