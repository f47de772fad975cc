"""Which rows of the data each step of a training run takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Epochs:
    """Which rows make the minibatch of a step."""

    total: int
    batch: int
    seed: int

    def rows(self, step: int, count: int) -> np.ndarray:
        """Rows of `count` steps from this one on: [count, batch]."""
        length = self.total // self.batch
        epochs = range(step // length, (step + count - 1) // length + 1)
        orders = [np.random.default_rng([self.seed, e]).permutation(self.total)[: length * self.batch] for e in epochs]
        start = step - epochs.start * length
        return np.concatenate(orders).reshape(-1, self.batch)[start : start + count]
