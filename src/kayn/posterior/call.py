"""What a posterior is of: a model and its arguments, and how its problem comes about from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kayn.programs.tables import Labels
from kayn.support.prints import Outlined


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
