"""In what latents are compared: in their values, or in a bounded function of these where no variance exists.

A scale of a horseshoe has a posterior whose tail falls as a power, without a variance and often without a mean. Sample
means and variances of such values are made by the few largest of them: they differ between any two samples, however
large, and say nothing of the guide that these are from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kayn.support.arrays import Array

LARGEST = 0.02
"""Share of a single particle in a variance from which on tails are looked at."""
BEYOND = (0.05, 0.01)
"""Parts of the posterior that count as tails."""
ENDLESS = 0.45
"""Tail index from which on a variance takes more particles than there are; from one half on there is none."""
MOST = 256
"""Elements whose tails are looked at, those with the largest shares first."""


@dataclass(frozen=True, eq=False)
class Measure:
    """What an element's values are measured in: themselves, or the arc tangent of their distance from the median,
    which is an eighth of a turn at the quartiles of a symmetric law.

    Attributes:
        heavy: elements in arc tangents, by number.
        centre, scale: of these, medians and half of the interquartile ranges, [H] both.
    """

    heavy: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def __call__(self, values: Array) -> np.ndarray:
        """Values in this measure, [R, K, *shape] as they are."""
        if not self.heavy.size:
            return np.asarray(values)
        flat = np.array(values).reshape((*np.shape(values)[:2], -1))
        flat[..., self.heavy] = np.arctan((flat[..., self.heavy] - self.centre) / self.scale)
        return flat.reshape(np.shape(values))


def measure_of(values: np.ndarray, weights: np.ndarray, squares: np.ndarray) -> Measure:
    """The measure for particles of a posterior.

    Args:
        values: [R, K, *shape].
        weights: [R, K, *shape] or with ones, of all particles of a latent together.
        squares: [R, K, *shape], what each particle has in the variance.
    """
    total, largest = squares.sum((0, 1)).ravel(), squares.max((0, 1), initial=0.0).ravel()
    share = np.divide(largest, total, out=np.zeros(total.shape), where=np.isfinite(total) & (total > 0))
    looked = np.flatnonzero(share > LARGEST)
    looked = np.sort(looked[np.argsort(-share[looked])[:MOST]])
    shape = np.shape(values)
    own = np.broadcast_to(weights, shape)
    found = []
    for number in looked:
        element: Any = (..., *np.unravel_index(number, shape[2:]))
        x, w = values[element].ravel(), own[element].ravel()
        low, centre, high = quantiles(x, w, (0.25, 0.5, 0.75))
        if high > low and all(tail_index(np.abs(x - centre), w, part) > ENDLESS for part in BEYOND):
            found.append((number, centre, (high - low) / 2))
    heavy, centre, scale = (np.array(x) for x in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3
    return Measure(heavy, centre, scale)


def quantiles(values: np.ndarray, weights: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """Quantiles of weighted values [N]."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    places = np.searchsorted(below, np.asarray(at) * below[-1])
    return values[order][np.minimum(places, len(values) - 1)]


def tail_index(distance: np.ndarray, weights: np.ndarray, part: float) -> float:
    """Hill's estimate of the index of a tail of weighted distances [N], those beyond all but a part: their mean log
    distance from where it begins. Moments of order 1 / index and above are infinite.

    Source: Hill, A simple general approach to inference about the tail of a distribution (1975).
    """
    (start,) = quantiles(distance, weights, (1 - part,))
    beyond = (distance > start) & (weights > 0)
    if not (start > 0 and beyond.any()):
        return 0.0
    return float(np.average(np.log(distance[beyond] / start), weights=weights[beyond]))
