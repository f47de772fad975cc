"""Exceptions and warnings. Every message names the site, plate or argument, what was expected, and the remedy."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

UNBOUNDED = "kayn:unbounded:"
"""Begins names of latents that stand for others of a model's, which messages name: see
`kayn.programs.dependent_supports`."""
NOT_THE_USERS = ("kayn", "jax", "numpyro", "contextlib", "functools")
"""Packages whose lines no warning is of."""


class KaynError(ValueError):
    """Base class of everything kayn raises on purpose."""

    def __init__(self, message: str = ""):
        super().__init__(str(message).replace(UNBOUNDED, ""))


class ModelError(KaynError):
    """The model cannot be used as it is written."""


class GuideError(KaynError):
    """The guide does not match the model, or cannot be weighted."""


class DataError(KaynError):
    """Observed values are NaN, infinite, outside the support, or index out of range."""


class IndexRangeError(DataError):
    """An index array reads elements that a latent does not have.

    Args:
        values: the index array, NumPy.
    """

    def __init__(self, text: str, values: Any):
        super().__init__(text)
        self.values = values


class StructureError(KaynError):
    """The factor graph cannot be contracted under the requested particle axes.

    Attributes:
        enumerated, why: a latent that cannot be enumerated under them, and why; "" where there is none.
    """

    def __init__(self, message: str, enumerated: str = "", why: str = ""):
        super().__init__(message)
        self.enumerated, self.why = enumerated, why


class QueryError(KaynError):
    """A posterior was asked for something it does not hold."""


class KaynWarning(UserWarning):
    """Base class of kayn's warnings."""

    def __init__(self, message: str = ""):
        super().__init__(str(message).replace(UNBOUNDED, ""))


class PoorFitWarning(KaynWarning):
    """Effective sample size or Pareto k-hat says that an estimate should not be trusted."""


class NumericsWarning(KaynWarning):
    """A log density was none, in the floats that it was computed in; what it would have counted for is left out."""


class StructureWarning(KaynWarning):
    """A valid but slower or less accurate route was taken."""


class DataWarning(KaynWarning):
    """Data that were probably not meant: none observed, missing codes as indices, a checkpoint of another run."""


def warn(message: str, category: type[KaynWarning]) -> None:
    """Warn at the line of the user's that called kayn, whatever kayn and the libraries below it did in between."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
