"""Marks through operations that pick entries by index, or put them somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from kayn.graph.marks.algebra import FAR, Mark, along, joined, nothing
from kayn.graph.marks.walk import Equation, Rule

OUTSIDE = -1


def positions(
    shape: Sequence[int], sizes: Sequence[int], index: np.ndarray, windows: Sequence[int], starts: Sequence[int],
    batches: Sequence[int], index_batches: Sequence[int], clip: bool,
) -> np.ndarray:  # fmt: skip
    """Where windows of an array lie: flat positions [*index batch, *window], `OUTSIDE` for windows that stick out.

    Args:
        shape: of the array.
        sizes: of the windows, by dimension of the array.
        index: [*index batch, len(starts)]: where windows start.
        windows: dimensions of the array that remain in the window.
        starts: the dimension that each column of the index belongs to.
        batches, index_batches: dimensions of array and index that run together.
        clip: windows that stick out are moved inside.
    """
    grid = index.shape[:-1]
    rank, flat = len(grid) + len(windows), np.zeros((), np.int64)
    strides = np.append(np.cumprod(np.asarray(shape[::-1], np.int64))[::-1][1:], 1) if shape else np.zeros(0, np.int64)
    inside: Any = np.ones((), bool)
    for column, dim in enumerate(starts):
        start, last = index[..., column].astype(np.int64), shape[dim] - sizes[dim]
        if clip:
            start = np.clip(start, 0, last)
        else:
            inside = inside & ((start >= 0) & (start <= last)).reshape((*grid, *(1,) * len(windows)))
        flat = flat + (start * strides[dim]).reshape((*grid, *(1,) * len(windows)))
    for dim, place in zip(batches, index_batches, strict=True):
        flat = flat + (np.arange(shape[dim]) * strides[dim]).reshape([-1 if d == place else 1 for d in range(rank)])
    for place, dim in enumerate(windows, len(grid)):
        flat = flat + (np.arange(sizes[dim]) * strides[dim]).reshape([-1 if d == place else 1 for d in range(rank)])
    full = (*grid, *(sizes[d] for d in windows))
    return np.where(np.broadcast_to(inside, full), np.broadcast_to(flat, full), OUTSIDE)


def gather(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Entries at known places; at places that are not known any along the dimensions that are picked from."""
    numbers, sizes, shape = q.params["dimension_numbers"], q.params["slice_sizes"], q.shape(0)
    out, index, source = q.out_shape(), q.known(1), marks[0]
    batch = [d for d in range(len(out)) if d not in numbers.offset_dims]
    windows = [d for d in range(len(shape)) if d not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
    found = None
    if source is not None:
        clip = q.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP
        if index is None:
            source = _anywhere(source, [d for d in numbers.start_index_map if sizes[d] < shape[d] or d not in windows])
            index, clip = np.zeros(q.shape(1), np.int32), True
        flat = positions(
            shape, sizes, index, windows, numbers.start_index_map, numbers.operand_batching_dims,
            numbers.start_indices_batching_dims, clip,
        )  # fmt: skip
        found = np.moveaxis(_taken(source, flat), [d + 1 for d in range(flat.ndim)],
                            [d + 1 for d in (*batch, *numbers.offset_dims)])  # fmt: skip
    picks = None
    if marks[1] is not None:
        picked = along(marks[1], (len(q.shape(1)) - 1,))
        ones = [1] * len(out)
        for d, n in zip(batch, picked.shape[1:], strict=True):
            ones[d] = n
        picks = picked.reshape(2, *ones)
    return [joined([found, picks], out)]


def dynamic_slice(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """A window that starts at a known place, or anywhere."""
    shape, sizes, found = q.shape(0), q.params["slice_sizes"], marks[0]
    starts = [q.known(i) for i in range(1, len(marks))]
    if found is not None:
        found = _anywhere(found, [d for d, s in enumerate(starts) if s is None and sizes[d] < shape[d]])
        found = found[(slice(None), *_window(starts, shape, sizes))]
    return [joined([found, *marks[1:]], sizes)]


def dynamic_update_slice(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """A window is replaced at a known place."""
    starts = [q.known(i) for i in range(2, len(marks))]
    if any(s is None for s in starts):
        return None
    out = np.array(joined([marks[0]], q.shape(0)))
    out[(slice(None), *_window(starts, q.shape(0), q.shape(1)))] = joined([marks[1]], q.shape(1))
    return [out]


def scatter(adds: bool) -> Rule:
    """Entries come to lie at known places, beside what is there or in its place."""

    def rule(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
        index, numbers, shape = q.known(1), q.params["dimension_numbers"], q.shape(0)
        if index is None:
            return None
        batched, window = numbers.operand_batching_dims, numbers.update_window_dims
        inner = [d for d in range(len(shape)) if d not in (*numbers.inserted_window_dims, *batched)]
        sizes = [1] * len(shape)
        for d, place in zip(inner, window, strict=True):
            sizes[d] = q.shape(2)[place]
        clip = q.params["mode"] == lax.GatherScatterMode.CLIP
        flat = positions(
            shape, sizes, index, inner, numbers.scatter_dims_to_operand_dims, batched,
            numbers.scatter_indices_batching_dims, clip,
        )  # fmt: skip
        outer = [d for d in range(len(q.shape(2))) if d not in window]
        updates = joined([marks[2]], q.shape(2)).transpose(0, *(d + 1 for d in (*outer, *window)))
        out = np.array(joined([marks[0]], shape)).reshape(2, -1)
        flat, updates = flat.ravel(), updates.reshape(2, -1)
        updates, flat = updates[:, flat != OUTSIDE], flat[flat != OUTSIDE]
        if not adds:
            out[:, flat] = -FAR
        for side in (0, 1):
            np.maximum.at(out[side], flat, updates[side])
        return [out.reshape(2, *shape)]

    return rule


def _anywhere(mark: Mark, dims: Sequence[int]) -> Mark:
    return np.broadcast_to(along(mark, dims, keep=True), mark.shape) if dims else mark


def _taken(mark: Mark, flat: np.ndarray) -> Mark:
    found = np.take(mark.reshape(2, -1), flat, axis=1, mode="wrap") if mark[0].size else nothing(flat.shape)
    return np.where(flat == OUTSIDE, np.int32(-FAR), found) if (flat == OUTSIDE).any() else found


def _window(starts: Sequence[Any], shape: Sequence[int], sizes: Sequence[int]) -> list[slice]:
    firsts = [0 if s is None else int(np.clip(s, 0, n - m)) for s, n, m in zip(starts, shape, sizes, strict=True)]
    return [slice(f, f + m) for f, m in zip(firsts, sizes, strict=True)]


RULES: dict[str, Rule] = {
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter(adds=False),
    **dict.fromkeys(("scatter-add", "scatter_add", "scatter-sub", "scatter_sub"), scatter(adds=True)),
    **dict.fromkeys(("scatter-mul", "scatter_mul", "scatter-min", "scatter_min"), scatter(adds=True)),
    **dict.fromkeys(("scatter-max", "scatter_max"), scatter(adds=True)),
}
