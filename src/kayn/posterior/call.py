"""What a posterior is of: a model and its arguments, and how its problem comes about from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kayn.programs.missing_outcomes import filled, with_gaps
from kayn.programs.tables import Labels, as_arguments
from kayn.support.prepared import Prepared
from kayn.support.prints import Outlined

MISSING = "missing"
"""In the settings of an origin: what was done about missing outcomes."""


@dataclass(frozen=True, eq=False, repr=False)
class Origin(Outlined):
    """What has to be done again to build the same problem.

    Attributes:
        entry: who built it: "fit" or "importance".
        guide: the user's guide; None for one of kayn's own.
        settings: its options, as numbers, texts and arrays.
    """

    entry: str
    guide: Callable | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Call(Outlined):
    """The model and the arguments it was conditioned on.

    Attributes:
        origin: None where nothing says how to build its problem again.
        labels: what elements of the arguments are called.
    """

    model: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    origin: Origin | None = None
    labels: Labels = field(default_factory=Labels)

    @property
    def name(self) -> str:
        """What the model is called."""
        return getattr(self.model, "__name__", type(self.model).__name__)


def conditioned(
    model: Callable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    origin: Origin,
    coords: Mapping[str, Any],
    missing: str | None,
) -> Call:
    """A model under a user's arguments, as arrays.

    Args:
        origin: `params` among its settings are values of the model's own parameters.
        coords: labels of plates.
        missing: what is done about missing outcomes; None for what the model says, or to refuse them.
    """
    own, kwargs, labels = as_arguments(model, tuple(args), dict(kwargs))
    labels.given.update({d: np.asarray(v) for d, v in coords.items()})
    how = missing or (model.missing if isinstance(model, Prepared) else "error")
    if how != "error":
        own, kwargs = filled(own), filled(kwargs)
        model = with_gaps(model, own, kwargs, origin.settings["params"], how)
        origin = replace(origin, settings={**origin.settings, MISSING: how})
    return Call(model, own, kwargs, origin, labels)
