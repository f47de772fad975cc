"""Leave-one-out cross-validation by Pareto-smoothed importance sampling (Vehtari, Gelman & Gabry, Practical Bayesian
model evaluation using leave-one-out cross-validation and WAIC, 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kayn.posterior.data_rows import DataRows, data_rows
from kayn.posterior.diagnostics import POOR_KHAT
from kayn.posterior.khat import pareto_khat
from kayn.posterior.pool import Pool
from kayn.support.arrays import KeyArray
from kayn.support.keys import as_key
from kayn.support.prints import Printed


@dataclass(frozen=True, eq=False, repr=False)
class Loo(Printed):
    """Expected log predictive density of data that are left out one at a time, in nats.

    Attributes:
        pointwise: [N], for every datum that no mask hides.
        khat: [N], Pareto k-hat of the weights that leave the datum out; above 0.7 its density is unreliable. NaN where
            draws repeat so much that their weights have no tail.
        p_loo: the effective number of parameters.
        data: [N, ...] or [N], the data, by site.
    """

    pointwise: np.ndarray
    khat: np.ndarray
    p_loo: float
    data: dict[str, np.ndarray]

    @property
    def elpd(self) -> float:
        """The sum over data."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """Its standard error, as the data are a sample."""
        return math.sqrt(self.pointwise.size * float(self.pointwise.var()))

    @property
    def poor(self) -> int:
        """How many data have a k-hat above 0.7."""
        return int((self.khat > POOR_KHAT).sum())

    def __str__(self) -> str:
        """The sum, its error, and how many data it is unreliable for."""
        return (
            f"elpd_loo {self.elpd:.2f} +- {self.se:.2f} nats, p_loo {self.p_loo:.2f}; "
            f"{self.poor} of {self.pointwise.size} data with k-hat above {POOR_KHAT}"
        )


def loo(posterior: Pool, rng_key: KeyArray, num_samples: int) -> Loo:
    """Leave-one-out cross-validation from joint draws of a posterior."""
    key = as_key(rng_key)
    return loo_of([*data_rows(posterior, key, posterior._joint(key, num_samples))])


def loo_of(rows: list[DataRows]) -> Loo:
    """The same of data that are scored already."""
    from arviz_stats.base import array_stats  # takes long to import

    scores = np.concatenate([r.scores.reshape(len(r.scores), -1)[:, r.kept.ravel()] for r in rows], 1)
    scores = np.asarray(scores.T, np.float64)
    log_weights = -scores - np.logaddexp.reduce(-scores, axis=1, keepdims=True)
    khat = pareto_khat(np.exp(log_weights.T))
    # the weights of draws that repeat have no tail, and stay as they are
    smooth = ~np.isnan(khat)
    if smooth.any():
        log_weights[smooth] = array_stats.psislw(scores[smooth], axis=-1)[0]
    pointwise = np.logaddexp.reduce(log_weights + scores, axis=1)
    whole = np.logaddexp.reduce(scores, axis=1) - math.log(scores.shape[1])
    return Loo(pointwise, khat, float((whole - pointwise).sum()), {r.name: r.values[r.kept] for r in rows})
