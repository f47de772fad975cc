"""How primitives move the marks of entries, and join them: those whose results have entries in places that are known
from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kayn.graph.marks.algebra import Mark, along, joined, nothing, several
from kayn.graph.marks.walk import Equation, Rule
from kayn.programs.primitives import ELEMENTWISE, IDENTITY, REDUCTIONS


def elementwise(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Every entry reads what the operands' entries at its place do."""
    return [joined(marks, q.out_shape(i)) for i in range(len(q.eqn.outvars))]


def select(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """The case that is chosen, where the predicate is known.

    One that is far from data, as in the guards of a density, is computed only where cases read different elements.
    """
    shape, either = q.out_shape(), joined(marks, q.out_shape())
    if not q.walk.values.is_near(q.operands[0].node):
        mixed = [several(m).all() for m in marks[1:] if m is not None]
        if all(mixed) or not several(either).any():
            return [either]
    which = q.known(0)
    if which is None:
        return elementwise(q, marks)
    chosen, out = np.broadcast_to(which, shape).astype(np.int32), nothing(shape)
    for case, mark in enumerate(marks[1:]):
        if mark is not None:
            out = np.where(chosen == case, joined([mark], shape), out)
    return [out]


def identity(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Every result is the operand in its place."""
    return [nothing(q.out_shape(i)) if m is None else m for i, m in enumerate(marks)]


def moved(move: Callable[[Equation, Any], np.ndarray]) -> Rule:
    """What takes entries of one operand to other places; `move` gets [2, *shape] and leaves the first dimension."""

    def rule(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
        return None if marks[0] is None else [move(q, marks[0])]

    return rule


def _broadcast(q: Equation, mark: Mark) -> Mark:
    shape, dims = q.out_shape(), q.params["broadcast_dimensions"]
    ones = [1] * len(shape)
    for d, n in zip(dims, mark.shape[1:], strict=True):
        ones[d] = n
    return np.broadcast_to(mark.reshape(2, *ones), (2, *shape))


def _in_order(q: Equation, mark: Mark) -> Mark:
    return mark.reshape(2, *q.out_shape())


def _reshape(q: Equation, mark: Mark) -> Mark:
    order = q.params.get("dimensions")
    return (mark if order is None else mark.transpose(0, *(d + 1 for d in order))).reshape(2, *q.out_shape())


def _transpose(q: Equation, mark: Mark) -> Mark:
    return mark.transpose(0, *(d + 1 for d in q.params["permutation"]))


def _reverse(q: Equation, mark: Mark) -> Mark:
    return np.flip(mark, tuple(d + 1 for d in q.params["dimensions"]))


def _slice(q: Equation, mark: Mark) -> Mark:
    p = q.params
    strides = p["strides"] or (1,) * (mark.ndim - 1)
    cuts = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return mark[(slice(None), *(slice(*cut) for cut in cuts))]


def _tile(q: Equation, mark: Mark) -> Mark:
    shape, out = mark.shape[1:], q.out_shape()
    return np.tile(mark, (1, *(m // n if n else 1 for n, m in zip(shape, out, strict=True))))


def padded(mark: Mark, config: Sequence[tuple[int, int, int]], filling: Mark | None = None) -> Mark:
    """Marks with others around and between them: (low, high, interior) by dimension, negative ones cut."""
    shape = [lo + hi + n + max(n - 1, 0) * gap for n, (lo, hi, gap) in zip(mark.shape[1:], config, strict=True)]
    out = np.array(joined([filling], shape))
    to, of = [slice(None)], [slice(None)]
    for n, size, (low, _, gap) in zip(mark.shape[1:], shape, config, strict=True):
        step = gap + 1
        first = max(0, -(low // step))  # the first entry that is not cut
        count = max(0, min(n, -(-(size - low) // step)) - first)
        of.append(slice(first, first + count))
        to.append(slice(low + first * step, low + first * step + max(count - 1, 0) * step + min(count, 1), step))
    out[tuple(to)] = mark[tuple(of)]
    return out


def pad(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Entries go where the padding leaves room; the rest reads what the filling does."""
    inner = nothing(q.shape(0)) if marks[0] is None else marks[0]
    return [padded(inner, q.params["padding_config"], marks[1])]


def _all_there(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    return [nothing(q.shape(i)) if m is None else m for i, m in enumerate(marks)]


def concatenate(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """One operand behind the other."""
    return [np.concatenate(_all_there(q, marks), q.params["dimension"] + 1)]


def stack(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Operands along a new dimension."""
    return [np.stack(_all_there(q, marks), q.params["axis"] % len(q.out_shape()) + 1)]


def unstack(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Rows along a dimension become arrays of their own."""
    if marks[0] is None:
        return None
    rows = np.moveaxis(marks[0], q.params["axis"] % len(q.shape(0)) + 1, 0)
    return [row.reshape(2, *q.out_shape(i)) for i, row in enumerate(rows)]


def split(q: Equation, marks: Sequence[Mark | None]) -> Sequence[Mark] | None:
    """Parts along a dimension."""
    if marks[0] is None:
        return None
    return [*np.split(marks[0], np.cumsum(q.params["sizes"])[:-1], q.params["axis"] + 1)]


def reduction(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Every entry reads what any of those does that it is made of. Operands are reduced together."""
    dims = q.params.get("axes", q.params.get("dimensions"))
    found = [along(m, dims) for m in marks if m is not None and m.shape[1:] == q.shape(0)]
    others = [m for m in marks if m is not None and m.shape[1:] != q.shape(0)]
    if any(m.ndim > 1 for m in others):
        return None
    return [joined([*found, *others], q.out_shape(i)) for i in range(len(q.eqn.outvars))]


def cumulative(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Every entry reads what those up to it do."""
    if marks[0] is None:
        return None
    axis, back = q.params["axis"] + 1, q.params["reverse"]
    mark = np.flip(marks[0], axis) if back else marks[0]
    found = np.maximum.accumulate(mark, axis)
    return [np.flip(found, axis) if back else found]


def along_one(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Sorts, transforms and the like: all of a line along one dimension is read by each entry on it."""
    p, rank = q.params, len(q.shape(0))
    axis = p.get("dimension", p.get("axis", -1)) % max(rank, 1)
    found = [along(m, [axis], keep=True) for m in marks if m is not None and m.ndim - 1 == rank]
    return _spread(q, found)


def last_dims(count: int) -> Rule:
    """Batched linear algebra: the last dimensions of all operands are read as a whole."""

    def rule(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
        batch = q.shape(0)[: max(len(q.shape(0)) - count, 0)]
        shapes = [q.out_shape(i) for i in range(len(q.eqn.outvars))]
        if any(s[: len(batch)] != batch for s in (*(q.shape(i) for i in range(len(marks))), *shapes)):
            return None
        pairs = [along(m, range(len(batch), m.ndim - 1)) for m in marks if m is not None]
        pair = joined(pairs, batch)
        return [np.broadcast_to(pair.reshape(2, *batch, *(1,) * (len(s) - len(batch))), (2, *s)) for s in shapes]

    return rule


def transform(q: Equation, marks: Sequence[Mark | None]) -> Sequence[Mark] | None:
    """A Fourier transform over the last dimensions."""
    return last_dims(len(q.params["fft_lengths"]))(q, marks)


def triangular_solve(q: Equation, marks: Sequence[Mark | None]) -> list[Mark]:
    """Right-hand sides are solved for one by one, each with the matrix of its batch: with one that data give, each
    entry reads those before it that this joins to it."""
    rank, value = len(q.out_shape()), q.known(0)
    mixes = rank - 2 if q.params["left_side"] else rank - 1
    if value is not None and value.ndim == 2 and marks[1] is not None:
        return [_substituted(marks[1], value, mixes, q.params)]
    matrix = None if marks[0] is None else along(marks[0], (rank - 2, rank - 1), keep=True)
    side = None if marks[1] is None else along(marks[1], (mixes,), keep=True)
    return [joined([matrix, side], q.out_shape())]


def _substituted(mark: Mark, matrix: np.ndarray, dim: int, params: Mapping[str, Any]) -> Mark:
    """Entry by entry, in the order in which a triangular system is solved; what is zero joins nothing.

    Args:
        dim: that of the right-hand side along which it is.
    """
    turned = params["transpose_a"] == (dim == 0)
    joins = (matrix.T if turned else matrix) != 0
    upward = params["lower"] != turned
    out = np.moveaxis(np.array(mark), dim + 1, 0)
    count = len(out)
    for i in range(count) if upward else range(count - 1, -1, -1):
        before = np.flatnonzero(joins[i, :i]) if upward else i + 1 + np.flatnonzero(joins[i, i + 1 :])
        if before.size:
            out[i] = np.maximum(out[i], out[before].max(0))
    return np.moveaxis(out, 0, dim + 1)


def _spread(q: Equation, found: Sequence[Mark]) -> list[Mark] | None:
    outs = [q.out_shape(i) for i in range(len(q.eqn.outvars))]

    def fits(own: Sequence[int], out: Sequence[int]) -> bool:
        return len(own) == len(out) and all(a in (1, b) for a, b in zip(own, out, strict=True))

    if not found or not all(fits(m.shape[1:], s) for m in found for s in outs):
        return None
    return [joined(found, s) for s in outs]


def dtype_only(q: Equation, marks: Sequence[Mark | None]) -> list[Mark] | None:
    """Bits read as another type of the same width."""
    same = marks[0] is not None and q.shape(0) == q.out_shape()
    return [marks[0]] if same else None  # type: ignore[list-item]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(IDENTITY, identity),
    "select_n": select,
    "broadcast_in_dim": moved(_broadcast),
    "reshape": moved(_reshape),
    **dict.fromkeys(("squeeze", "expand_dims"), moved(_in_order)),
    "transpose": moved(_transpose),
    "rev": moved(_reverse),
    "slice": moved(_slice),
    "tile": moved(_tile),
    "pad": pad,
    "concatenate": concatenate,
    "stack": stack,
    "unstack": unstack,
    "split": split,
    **dict.fromkeys((*REDUCTIONS, "reduce_sum", "reduce"), reduction),
    **dict.fromkeys(("cumsum", "cumlogsumexp", "cumprod", "cummax", "cummin"), cumulative),
    **dict.fromkeys(("sort", "top_k", "lu_pivots_to_permutation"), along_one),
    **dict.fromkeys(("cholesky", "lu", "eigh", "eig", "qr", "svd", "schur", "hessenberg", "tridiagonal"), last_dims(2)),
    "symmetric_product": last_dims(2),
    "triangular_solve": triangular_solve,
    "fft": transform,
    "bitcast_convert_type": dtype_only,
}
"""Those of `kayn.graph.marks.places` and `kayn.graph.marks.products` come beside them."""
