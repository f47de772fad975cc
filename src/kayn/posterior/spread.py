"""Where a posterior's mass lies, element by element: quantiles and shortest intervals of weighted particles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kayn.posterior.pool import Pool
from kayn.support.arrays import Array


def columns(posterior: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A site's values and their weights, a column for each of its E elements: [P, E] both.

    They are those of particles where these make the site (`Pool._own_values`), and else of joint draws.
    """
    own = posterior._own_values(name)
    values = np.asarray(posterior._fallback_draws()[name] if own is None else own[0])
    weights = np.full((1,) * values.ndim, 1 / len(values), np.float32) if own is None else np.asarray(own[1])
    weights = np.broadcast_to(weights, values.shape)
    return values.reshape(len(values), -1), weights.reshape(len(values), -1)


def weighted_quantiles(values: Array, weights: Array, levels: Array) -> np.ndarray:
    """The least of some values that at least a share of their weight is not above: [Q] for `levels` [Q]."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    found = np.minimum(np.searchsorted(cumulative, levels * cumulative[-1]), len(values) - 1)
    return values[order][found]


def shortest_interval(values: Array, weights: Array, prob: float) -> np.ndarray:
    """The ends [2] of the shortest interval between two values that holds a share of their weight (the highest density
    interval, where the density has one peak)."""
    order = np.argsort(values)
    values, cumulative = values[order], np.cumsum(weights[order], dtype=np.float64)
    before = np.concatenate([[0.0], cumulative[:-1]])
    # rounding may not cost the last value of an interval
    last = np.searchsorted(cumulative, before + prob * cumulative[-1] * (1 - 1e-6))
    first = np.nonzero(last < len(values))[0]
    best = first[np.argmin(values[last[first]] - values[first])]
    return np.array([values[best], values[last[best]]])


def quantile(posterior: Pool, name: str, levels: np.ndarray) -> np.ndarray:
    """Quantiles of every element of a site: [*levels.shape, *shape]."""
    flat = levels.ravel()
    found = by_element(posterior, name, lambda values, weights: weighted_quantiles(values, weights, flat))
    return np.moveaxis(found, -1, 0).reshape((*levels.shape, *found.shape[:-1]))


def hdi(posterior: Pool, name: str, prob: float) -> np.ndarray:
    """The shortest interval of every element of a site: [*shape, 2]."""
    return by_element(posterior, name, lambda values, weights: shortest_interval(values, weights, prob))


def by_element(posterior: Pool, name: str, answer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """What `answer` [A] says of values [P] and their weights [P], for every element of a site: [*shape, A].

    Raises:
        QueryError: the site is unknown, or its elements differ between replicates.
    """
    posterior._known(name)
    posterior._refuse_mixed_rows(name)
    values, weights = columns(posterior, name)
    found = np.stack([answer(v, w) for v, w in zip(values.T, weights.T, strict=True)])
    return found.reshape((*posterior.problem.model.sites[name].shape, -1))
