"""Which recursion a running value of innovations is, told from numbers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kayn.graph.entries import CLOSE, whole_numbers
from kayn.programs.running import Coordinates

LONGEST = 2
"""Steps before its own that a recursion reads at most: of K particles a step, all K to the power of one more are
weighed together."""
FEW = LONGEST + 6
PROBES = LONGEST + 3
"""Vectors that a recursion is told from: two more than it has coefficients."""


def vectors(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Innovations, what is made of which tells `recursions_of` the recursion."""
    return whole_numbers(shape, PROBES)


def recursions_of(numbers: Sequence[np.ndarray], shape: tuple[int, ...]) -> Iterator[Coordinates]:
    """The recursions that a value is, but for a factor, which is made of `vectors`: along each axis one at most, for
    each order in which its dimensions may be those of the innovations.

    Args:
        numbers: the value for every vector; it has to have as many elements as innovations there are.
    """
    if numbers[0].size != math.prod(shape):
        return
    if numbers[0].ndim != len(shape):
        numbers = [n.reshape(shape) for n in numbers]
    given = np.stack(vectors(shape))
    for order in itertools.permutations(range(len(shape))):
        if numbers[0].transpose(order).shape == shape:
            yield from _along_axes(np.stack([n.transpose(order) for n in numbers]), given)


def _along_axes(numbers: np.ndarray, given: np.ndarray) -> Iterator[Coordinates]:
    made = numbers.astype(float)
    for axis in range(1 - given.ndim, 0):
        for turned, backward in ((False, False), (False, True), (True, True)):
            r, z = (np.flip(x, axis) if flip else x for x, flip in ((made, turned), (given, backward)))
            r, z = (np.moveaxis(x, axis, 1) for x in (r, z))
            if not r[:, 0].any():  # from the first step on, to which nothing is added then
                r = np.concatenate([z[:, :1], r[:, 1:]], 1)
            # most values are none, which the first few steps tell
            able = (n for n in range(1, LONGEST + 1) if _recursion(r[:, :FEW], z[:, :FEW], n))
            one = next((f for n in able if (f := _recursion(r, z, n)) is not None), None)
            if one is not None:
                decays, weight = ([_brief(x, axis, numbers.dtype) for x in part] for part in one)
                yield Coordinates(tuple(decays), weight[0], axis=axis, backward=backward, span=len(decays))
                break


def _recursion(
    r: np.ndarray, z: np.ndarray, order: int
) -> tuple[list[tuple[np.ndarray, int]], list[tuple[np.ndarray, int]]] | None:
    """Decays of every lag and the weight of `r_t = sum_j d_tj r_{t-j} + w_t z_t`, [T, ...] each with the step from
    which they count, for vectors of z and the r of each: [vectors, T, ...]; None where they are no such recursion."""
    steps = r.shape[1]
    if steps <= order:
        return None
    before = [np.concatenate([np.zeros_like(r[:, :lag]), r[:, :-lag]], 1) for lag in range(1, order + 1)]
    columns = np.moveaxis(np.stack([*before, z], -1), 0, -2)  # [T, ..., vectors, order + 1]
    with np.errstate(all="ignore"):
        found = (np.linalg.pinv(columns) @ np.moveaxis(r, 0, -1)[..., None])[..., 0]
    found = [np.where(np.abs(x) > CLOSE * 1e-3, x, 0.0) for x in np.moveaxis(found, -1, 0)]
    decays, weight = found[:-1], found[-1]
    parts = [d * b for d, b in zip(decays, before, strict=True)]
    size = np.abs(r) + sum(map(np.abs, parts)) + np.abs(weight)
    fits = np.abs(r - sum(parts) - weight * z) <= CLOSE * size
    if not np.all(fits) or not np.all(np.abs(weight) > CLOSE * np.max(np.abs(weight))) or not decays[-1].any():
        return None
    weight = weight / weight.ravel()[-1]
    return [(d, lag) for lag, d in enumerate(decays, 1)], [(weight, 0)]


def _brief(part: tuple[np.ndarray, int], axis: int, dtype: Any) -> Any:
    """One number for all elements from a step on where it is the same, None where it is one."""
    numbers, first = part
    counted = numbers[first:]
    if np.allclose(counted, 1.0, atol=1e-5):
        return None
    one = np.median(counted)
    same = np.allclose(counted, one, rtol=1e-5, atol=1e-5)
    return dtype.type(one) if same else np.moveaxis(numbers, 0, axis).astype(dtype)
