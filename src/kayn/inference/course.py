"""How far a training run has come, and when held-out data say that it is far enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kayn.support.arrays import PyTree

HELD_OUT = "held-out log evidence"
Looks = dict[str, list[tuple[int, Any]]]


@dataclass(frozen=True)
class Course:
    """How far a training run has come.

    Attributes:
        state: "params", as the optimisers see them, and "optimizers", their own states.
        best: parameters at the best look at held-out data; those of the start where there are none.
        losses: one a step, so that their number is the step.
        looks: by name, [(step, value), ...].
    """

    state: PyTree
    best: PyTree
    losses: list[float] = field(default_factory=list)
    looks: Looks = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return len(self.losses)

    @property
    def scores(self) -> np.ndarray:
        """The held-out log evidence at every look, minus infinity where it is NaN."""
        values = [value for _, value in self.looks.get(HELD_OUT, ())]
        return np.nan_to_num(np.array(values), nan=-np.inf, neginf=-np.inf)

    def surpassed_by(self, score: float) -> bool:
        """Whether a held-out log evidence is better than all so far."""
        return bool(score > np.max(self.scores, initial=-np.inf))

    def stale(self, patience: int | None) -> bool:
        """Whether so many looks have brought no better held-out log evidence; never, if patience is None."""
        return patience is not None and bool(len(self.scores) - 1 - np.argmax(self.scores) >= patience)

    def further(self, state: PyTree, losses: list[float]) -> Course:
        """After more steps."""
        return replace(self, state=state, losses=self.losses + losses)

    def looked(self, found: Mapping[str, Any], better: bool) -> Course:
        """With the figures of a look; the present parameters are the best ones if they are better."""
        new = {name: [*self.looks.get(name, ()), (self.step, value)] for name, value in found.items()}
        return replace(self, best=self.state["params"] if better else self.best, looks={**self.looks, **new})
