"""Models that benchmarks and experiments share, a function each that makes a NumPyro model and its arguments.

Published models with their data are in `models.published`, those on simulated data in `models.simulated`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from models.case import Case
from models.published import bus, chimpanzees, movielens, occupancy, radon_counties, radon_states
from models.simulated import counts, growth, ratings, three_level, two_level, volatility

MODELS: dict[str, Callable[[], Case]] = {
    "bus": bus,
    "radon, 4 states": radon_states,
    "chimpanzees": chimpanzees,
    "movielens, 300 x 5": partial(movielens, 300, 5),
    "occupancy": occupancy,
    "radon, 386 counties": radon_counties,
    "two-level": two_level,
    "three-level": three_level,
}
"""Models of the papers, ragged ones on whole data sets, and Gaussian hierarchies."""

HELD_BACK: dict[str, Callable[[], Case]] = {
    "item response": ratings,
    "ragged counts": counts,
    "growth curves": growth,
    "volatility": volatility,
}
"""Models that nothing was tuned on."""
