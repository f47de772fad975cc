"""Marks: the first and the last element of a plate that each entry of an array reads.

A mark is a pair (-first, last) of int32 in front of the array's own dimensions, [2, *shape], so that whatever joins
entries takes the largest of both. What reads nothing is (-FAR, -FAR), what may read anything (FAR, FAR). The sum of a
pair is zero for a single element, above for several, below for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kayn.graph.aligned import Key

FAR = 2**29
Mark = np.ndarray
Marks = Mapping[Key, Mark]
"""Marks by latent and plate; entries read nothing of those that are not there."""


def nothing(shape: Sequence[int]) -> Mark:
    """No entry reads anything."""
    return np.broadcast_to(np.int32(-FAR), (2, *shape))


def anything(shape: Sequence[int]) -> Mark:
    """Every entry may read everything."""
    return np.broadcast_to(np.int32(FAR), (2, *shape))


def own(shape: Sequence[int], dim: int) -> Mark:
    """The marks of a latent itself: position i along `dim` is element i of the plate."""
    ids = np.arange(shape[dim], dtype=np.int32)
    pair = np.stack([-ids, ids]).reshape(2, *(n if d == dim else 1 for d, n in enumerate(shape)))
    return np.broadcast_to(pair, (2, *shape))


def single(ids: np.ndarray) -> Mark:
    """Marks of one element each; none where it is negative."""
    ids = np.asarray(ids, np.int32)
    return np.stack([np.where(ids < 0, -FAR, -ids), np.where(ids < 0, -FAR, ids)])


def several(mark: Mark) -> np.ndarray:
    """Whether entries may read more than one element: bool [*shape]."""
    return mark[0] + mark[1] > 0


def elements(mark: Mark) -> np.ndarray:
    """The element that each entry reads, where it reads one: int [*shape], negative for none."""
    return mark[1]


def is_uniform(mark: Mark) -> bool:
    """Whether an array is one entry seen from everywhere."""
    return all(s == 0 or n == 1 for s, n in zip(mark.strides[1:], mark.shape[1:], strict=True))


def joined(marks: Sequence[Mark | None], shape: Sequence[int]) -> Mark:
    """What is read by an elementwise combination, broadcast to a shape; scalars and ones are repeated."""
    found: Any = None
    for mark in marks:
        if mark is None:
            continue
        own_shape = mark.shape[1:]
        rank = len(own_shape)
        if rank < len(shape):
            mark = mark.reshape(2, *(1,) * (len(shape) - rank), *own_shape) if rank == 0 else whole([mark], shape)
        found = mark if found is None or found is mark else np.maximum(found, mark)
    return nothing(shape) if found is None else np.broadcast_to(found, (2, *shape))


def along(mark: Mark, dims: Sequence[int], keep: bool = False) -> Mark:
    """What is read along some dimensions together."""
    axes = tuple(d + 1 for d in dims)
    if not axes:
        return mark
    if any(mark.shape[a] == 0 for a in axes):
        return nothing([n if a not in axes else 1 for a, n in enumerate(mark.shape) if a and (keep or a not in axes)])
    # what is repeated has to be looked at once
    index = tuple(slice(0, 1) if a in axes and s == 0 else slice(None) for a, s in enumerate(mark.strides))
    return mark[index].max(axes, keepdims=keep)


def whole(marks: Sequence[Mark | None], shape: Sequence[int]) -> Mark:
    """Every entry reads what any entry of the operands does."""
    found = [along(m, range(m.ndim - 1)) for m in marks if m is not None and math.prod(m.shape[1:])]
    pair = np.max(found, 0) if found else nothing(())
    return np.broadcast_to(pair.reshape(2, *(1,) * len(shape)), (2, *shape))


def without(mark: Mark, where: np.ndarray) -> Mark:
    """Entries at some places read nothing: bool that broadcasts to the shape."""
    return np.where(where, np.int32(-FAR), mark) if where.any() else mark
