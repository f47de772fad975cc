"""Which elements of a vector the entries of a value read that is linear in it: one, or a few at consecutive steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kayn.support.arrays import Array

CLOSE = 1e-4
"""Relative error of numbers up to which they count as equal."""


@dataclass(frozen=True, eq=False)
class Entries:
    """A value each entry of which reads one element of a vector, or that and elements at the steps before it.

    Attributes:
        index: the element at the last step that is read, all counted in one row: in the value's shape.
        weights: how often that is read, that one step before it, and so on: [lags, *shape].
    """

    index: np.ndarray
    weights: np.ndarray

    def read(self, values: Sequence[Array], axis: int) -> Array:
        """What the entries are.

        Args:
            values: the vector, itself one step earlier, two, and so on: as many as there are weights at least.
            axis: the dimension of steps, from the last.
        """
        r, index, weights = values[0], self.index, self.weights
        stride = math.prod(r.shape[r.ndim + axis + 1 :])
        moved = self._moved(r.size, len(values), stride)
        if moved is not None:
            index, weights = np.arange(r.size).reshape(index.shape), moved
        if np.allclose(weights, np.round(weights), atol=1e-5):
            weights = np.round(weights)
        parts = []
        for value, weight in zip(values, weights, strict=False):
            if np.any(weight):
                read = value.reshape(index.shape) if moved is not None else value.ravel()[index]
                parts.append(read if np.all(weight == 1) else read * weight.astype(r.dtype))
        return sum(parts[1:], parts[0]) if parts else np.zeros(index.shape, r.dtype)

    def _moved(self, size: int, count: int, stride: int) -> np.ndarray | None:
        """The weights for entries that read the element in their own place, and before; None where they do not."""
        row, some = self.index.ravel(), self.weights.any(0).ravel()
        if len(row) != size:
            return None
        for lag in range(count - len(self._read()) + 1):
            if np.all((row == np.arange(size) - lag * stride)[some]):
                return np.concatenate([np.zeros((lag, *self.index.shape)), self._read()])
        return None

    def _read(self) -> np.ndarray:
        """Weights up to the last that there are."""
        some = np.flatnonzero(self.weights.reshape(len(self.weights), -1).any(1))
        return self.weights[: some[-1] + 1 if some.size else 1]


def whole_numbers(shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    """Random vectors, sums of which are exact."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, 5, shape) * rng.choice([-1.0, 1.0], shape) for _ in range(count)]


def probes(shape: tuple[int, ...], axis: int = -1, width: int = 1) -> list[np.ndarray]:
    """Vectors what a linear map makes of which tells `entries_of` what it reads, of up to `width` consecutive steps.

    One to check with; then, of another, every `width`-th step, beginning with each, and that times one more than each
    index.
    """
    first, other = whole_numbers(shape, 2)
    indices = np.indices(shape)
    found = [other]
    for colour in range(width):
        own = np.where(indices[axis] % width == colour, first, 0.0) if width > 1 else first
        found += [own, *(own * (1.0 + index) for index in indices)]
    return found


def entries_of(numbers: Sequence[np.ndarray], shape: tuple[int, ...], axis: int = -1, width: int = 1) -> Entries | None:
    """What a linear map reads that makes these numbers of `probes`; None where an entry reads more than that."""
    of_check, *blocks = (n.astype(float) for n in numbers)
    check, *given = probes(shape, axis, width)
    each = 1 + len(shape)
    size = max(np.max(np.abs(n), initial=1e-30) for n in blocks[::each])
    if any(np.isnan(n).any() for n in blocks):
        return None
    parts = [
        _one_of(blocks[i : i + each], given[i : i + each], shape, CLOSE * size) for i in range(0, len(blocks), each)
    ]
    read = [part for part in parts if part is not None]
    if len(read) < width:
        return None
    index, own = (np.stack(x) for x in zip(*read, strict=True))  # [width, *]
    stride, some = math.prod(shape[len(shape) + axis + 1 :]), own != 0
    last = np.max(np.where(some, index, 0), 0)
    lags, steps = (last - index) // stride, shape[axis]
    apart = (
        (index + lags * stride != last) | (lags >= width) | (index // stride % steps + lags != last // stride % steps)
    )
    if np.any(some & apart):
        return None
    weights = np.stack([np.sum(own * (some & (lags == lag)), 0) for lag in range(width)])
    vector = check.ravel()
    made = sum(w * vector[np.maximum(last - lag * stride, 0)] for lag, w in enumerate(weights))
    scale = CLOSE * np.max(np.abs(weights), initial=1e-30) * np.max(np.abs(check)) * width
    return Entries(last, weights) if np.all(np.abs(made - of_check) <= scale) else None


def _one_of(
    numbers: Sequence[np.ndarray], given: Sequence[np.ndarray], shape: tuple[int, ...], least: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """The one element that each entry reads among some, and how often, both [*]; None where one reads more."""
    first, *by_index = numbers
    some = np.abs(first) > least
    places = [np.where(some, np.round(n / np.where(some, first, 1.0)) - 1, 0).astype(int) for n in by_index]
    if any(np.any((place < 0) | (place >= size)) for place, size in zip(places, shape, strict=True)):
        return None
    index = np.ravel_multi_index(places, shape)
    vectors = [p.ravel()[index] for p in given]
    some &= vectors[0] != 0
    weight = np.where(some, first / np.where(some, vectors[0], 1.0), 0.0)
    scale = CLOSE * np.max(np.abs(weight), initial=1e-30)
    fits = (
        np.abs(weight * v - n) <= np.maximum(scale * np.abs(v), least) for v, n in zip(vectors, numbers, strict=True)
    )
    return (index, weight) if all(map(np.all, fits)) else None
