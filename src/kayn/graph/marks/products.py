"""Marks through products, of which a zero that data give stops what it meets: elementwise, of matrices dense and
sparse, and of windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kayn.graph.expressions import Made, Node
from kayn.graph.marks.algebra import FAR, Mark, along, joined, nothing, without
from kayn.graph.marks.moves import padded
from kayn.graph.marks.walk import Equation, Rule
from kayn.programs.primitives import SAME

COMPARED = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "is_finite", "iota"))
"""What gives truth values and the like, where zeros are common."""
CARRIED = SAME | {"convert_element_type", "mul"}
"""What keeps zeros."""

ENTRIES = 2**23
"""How many entries of a constant matrix are looked at in one go."""


def product(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Elementwise."""

    def beside(own: int) -> Mark | None:
        looks = marks[own] is not None and may_be_zero(q.operands[1 - own].node)
        mark, other = marks[own], q.known(1 - own) if looks else None
        if mark is None or other is None or other.all():
            return mark
        return without(joined([mark], q.out_shape()), other == 0)

    return [joined([beside(0), beside(1)], q.out_shape())]


def may_be_zero(node: Node) -> bool:
    """Whether a factor is worth computing for its zeros: data, comparisons, and products of such; other numbers are
    hardly ever exactly zero."""
    seen, ahead = set[int](), [node]
    while ahead:
        node = ahead.pop()
        name = node.operation.name
        if node.compute is None or name is Made.CONSTANT or name in COMPARED:
            return True
        if name in CARRIED and id(node) not in seen:
            seen.add(id(node))
            ahead.extend(node.inputs)
    return False


def by_row(rows: np.ndarray, values: Mark, count: int) -> Mark:
    """What is read in each of some rows: of [2, F, entries] with the row of each, [2, F, count]."""
    out = np.full((2, values.shape[1], count), -FAR, np.int32)
    if not rows.size:
        return out
    if (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[..., order]
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
    out[..., rows[starts]] = np.maximum.reduceat(values, starts, axis=-1)
    return out


def dot_general(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Every entry reads those of its row and of its column that do not meet a zero."""
    (contract, batch) = q.params["dimension_numbers"]
    found = []
    for side, mark in enumerate(marks):
        if mark is None:
            continue
        own, other = ((contract[s], batch[s], q.shape(s)) for s in (side, 1 - side))
        value = q.known(1 - side)
        rest = _arranged(value != 0, *own_dims(*other)) if value is not None and not value.all() else None
        batches, free, contracted = own_dims(*own)
        lines = mark.transpose(0, *(d + 1 for d in (*batches, *free, *contracted)))
        sizes = [math.prod(own[2][d] for d in dims) for dims in (batches, free, contracted)]
        between = math.prod(other[2][d] for d in own_dims(*other)[1])
        reads = _lines(lines, sizes, between, rest, [len(batches), len(free), len(contracted)])
        found.append(reads if side == 0 else reads.swapaxes(2, 3))
    shapes = [f.reshape(2, *q.out_shape()) for f in found]
    return [joined(shapes, q.out_shape())]


def own_dims(contract: Sequence[int], batch: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any, Any]:
    """Dimensions of an operand: batched, free and contracted ones."""
    return tuple(batch), tuple(d for d in range(len(shape)) if d not in (*contract, *batch)), tuple(contract)


def _arranged(array: np.ndarray, batches: Sequence[int], free: Sequence[int], contracted: Sequence[int]) -> np.ndarray:
    sizes = [math.prod(array.shape[d] for d in dims) for dims in (batches, free, contracted)]
    return array.transpose(*batches, *free, *contracted).reshape(sizes)


def _lines(lines: Mark, sizes: Sequence[int], between: int, rest: np.ndarray | None, ranks: Sequence[int]) -> Mark:
    """[2, batch, free, others]: what lines of [2, *batch, *free, *contracted] give to each of the other side's.

    Args:
        sizes: of batch, free and contracted.
        between: how many lines the other side has.
        rest: where those are not zero, [batch, between, contracted]; None for everywhere.
    """
    batch, free, contracted = sizes
    if rest is None:
        found = along(lines, range(sum(ranks[:2]), sum(ranks))).reshape(2, batch, free, 1)
        return np.broadcast_to(found, (2, batch, free, between))
    strides = lines.strides[1 + ranks[0] : 1 + ranks[0] + ranks[1]]
    alike = all(s == 0 for s in strides) and free > 1  # one line seen from everywhere
    index = [slice(None)] * lines.ndim
    for d in range(1 + ranks[0], 1 + ranks[0] + ranks[1]):
        index[d] = slice(0, 1) if alike else slice(None)
    entries = lines[tuple(index)].reshape(2, batch, -1, contracted)
    kept = entries.shape[2]
    columns = entries.transpose(0, 2, 1, 3).reshape(2, kept, batch * contracted)
    out = np.empty((2, kept, batch * between), np.int32)
    flat, step = rest.reshape(batch * between, contracted), max(1, ENTRIES // max(contracted, 1))
    for first in range(0, len(flat), step):
        rows, places = np.nonzero(flat[first : first + step])
        where = (rows + first) // between * contracted + places
        for line in range(kept):
            part = out[:, line : line + 1, first : first + step]
            part[:] = by_row(rows, columns[:, line : line + 1, where], part.shape[-1])
    found = out.reshape(2, kept, batch, between).transpose(0, 2, 1, 3)
    return np.broadcast_to(found, (2, batch, free, between))


def bcoo_dot_general(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """A product with a sparse matrix whose places are known."""
    (contract, batch), index, shape = q.params["dimension_numbers"], q.known(1), q.params["lhs_spinfo"].shape
    if index is None or index.ndim != 2 or index.shape[1] != len(shape) or batch[0] or marks[1] is not None:
        return None
    inside: np.ndarray = np.all(index < np.asarray(shape), 1)
    free = [d for d in range(len(shape)) if d not in contract[0]]
    return _sparse(q, marks[0], marks[2], index[:, list(contract[0])], index[:, free], inside, contract[1])


def bcsr_dot_general(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """The same with compressed rows."""
    (contract, batch), columns, ends = q.params["dimension_numbers"], q.known(1), q.known(2)
    simple = not batch[0] and tuple(contract[0]) == (1,) and len(q.shape(1)) == 1 and len(q.shape(2)) == 1
    if columns is None or ends is None or not simple:
        return None
    counts = np.diff(ends)
    rows, inside = np.full(len(columns), -1), np.arange(len(columns)) < ends[-1]
    rows[inside] = np.repeat(np.arange(len(counts)), counts)
    return _sparse(q, marks[0], marks[3], columns[:, None], rows[:, None], inside, contract[1])


def _sparse(
    q: Equation, data: Mark | None, mark: Mark | None, places: np.ndarray, free: np.ndarray, inside: np.ndarray,
    contracted: Sequence[int],
) -> list[Mark]:  # fmt: skip
    """A sparse matrix, dimensions without entries among the results' first, with a dense array as the last operand.

    Args:
        data, mark: of the matrix's entries and of the array.
        places, free: where entries are along contracted and along free dimensions: [entries, dims].
        inside: entries that are no padding.
    """
    out, value, dense = q.out_shape(), q.known(0), q.shape(len(q.operands) - 1)
    rank = free.shape[1]
    if value is not None:
        inside = inside & (value != 0)
    places, free = places[inside], free[inside]
    rows = np.ravel_multi_index(tuple(free.T), out[:rank]) if rank else np.zeros(len(free), np.int64)
    others = [d for d in range(len(dense)) if d not in contracted]
    shape, found = (math.prod(out[:rank]), math.prod(dense[d] for d in others)), []
    if mark is not None:
        columns = mark.transpose(0, *(d + 1 for d in (*others, *contracted))).reshape(2, shape[1], -1)
        where = np.ravel_multi_index(tuple(places.T), [dense[d] for d in contracted])
        found.append(by_row(rows, columns[..., where], shape[0]).swapaxes(1, 2))
    if data is not None:
        found.append(by_row(rows, data[:, None][..., inside], shape[0]).swapaxes(1, 2))
    return [joined(found, shape).reshape(2, *out)]


Pair = tuple[int, int]


def windows(
    mark: Mark, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int], out: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Mark]]:
    """Every place in a window, with the entries that all windows have there: [2, .., *out], the last dimensions."""
    for place in np.ndindex(*sizes):
        cuts: list[Any] = [
            slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, dilation, out, strides, strict=True)
        ]
        yield place, mark[tuple([..., *cuts])]  # noqa: C409


def around(mark: Mark, padding: Sequence[Pair], dilation: Sequence[int]) -> Mark:
    """With nothing around the last dimensions, and between their entries."""
    before = mark.ndim - 1 - len(padding)
    config = [(0, 0, 0)] * before + [(*ends, gap - 1) for ends, gap in zip(padding, dilation, strict=True)]
    return padded(mark, config)


def reduce_window(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """All of its window is read by every entry."""
    p, mark, out = q.params, marks[0], q.out_shape()
    if mark is None or len(marks) > 1:
        return None
    found = nothing(out)
    wide = around(mark, p["padding"], p["base_dilation"])
    for _, part in windows(wide, p["window_dimensions"], p["window_strides"], p["window_dilation"], out):
        found = np.maximum(found, part)
    return [found]


def convolution(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Of its window, every entry reads what meets no zero of the kernel; of the kernel, all of its channel's."""
    p, numbers, groups = q.params, q.params["dimension_numbers"], q.params["feature_group_count"]
    if p["batch_group_count"] != 1:
        return None
    plain = [q.out_shape()[d] for d in numbers.out_spec]
    sizes = [q.shape(1)[d] for d in numbers.rhs_spec]
    (rows, channels, *out), (_, inner, *window) = plain, sizes
    found = np.full((2, rows, groups, channels // groups, *out), -FAR, np.int32)
    if marks[0] is not None:
        value = q.known(1)
        kernel = np.ones(sizes, bool) if value is None else value.transpose(numbers.rhs_spec) != 0
        kernel = kernel.reshape(groups, channels // groups, *sizes[1:])
        mark = around(marks[0].transpose(0, *(d + 1 for d in numbers.lhs_spec)), p["padding"], p["lhs_dilation"])
        for place, part in windows(mark, window, p["window_strides"], p["rhs_dilation"], out):
            taps = part.reshape(2, rows, groups, 1, inner, *out)
            for channel in range(inner):
                counts = kernel[:, :, channel].reshape(*kernel.shape[:2], -1)[..., np.ravel_multi_index(place, window)]
                own = taps[:, :, :, :, channel]
                np.maximum(found, own, out=found, where=counts.reshape(*counts.shape, *(1,) * len(out)))
    if marks[1] is not None:
        of_kernel = along(marks[1].transpose(0, *(d + 1 for d in numbers.rhs_spec)), range(1, len(sizes)))
        found = np.maximum(found, of_kernel.reshape(2, 1, groups, channels // groups, *(1,) * len(out)))
    back = np.argsort(numbers.out_spec)
    return [found.reshape(2, *plain).transpose(0, *(d + 1 for d in back))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mul", "mul_no_nan"), product),
    "dot_general": dot_general,
    "bcoo_dot_general": bcoo_dot_general,
    "bcsr_dot_general": bcsr_dot_general,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), reduce_window),
    "conv_general_dilated": convolution,
}
