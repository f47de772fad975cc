"""How each JAX primitive moves plate dimensions: one rule a primitive, and a default that is always right.

A rule may always answer MIXED; it must never claim an alignment that does not hold (`kayn.graph.aligned`).
Primitives without a rule are MIXED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kayn.errors import IndexRangeError
from kayn.graph.aligned import Aligned, Key, Operands, merge, mixed, move, reshape, through
from kayn.graph.expressions import Node, Nodes, Wrapped, one_column, take
from kayn.graph.types import MIXED
from kayn.programs.data import listed
from kayn.programs.primitives import ELEMENTWISE, IDENTITY


def elementwise(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions stay where they are; where an operand, no scalar, has another rank than the result, all are mixed."""
    rank = len(operands.out_shape)
    if any(len(s) not in (0, rank) for s in operands.shapes):
        return mixed(operands.annotations)
    return merge(operands.annotations)


def broadcast_in_dim(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions go where `broadcast_dimensions` says; one that is repeated, of size one, is mixed."""
    dims, shape, out = params["broadcast_dimensions"], operands.shapes[0], operands.out_shape

    def mover(a: Aligned) -> Any:
        return replace(a, dim=dims[a.dim]) if shape[a.dim] == out[dims[a.dim]] else MIXED

    return move(operands.nodes, operands.annotations[0], mover)


def transpose(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions go where `permutation` takes them."""
    order = list(params["permutation"])
    return move(operands.nodes, operands.annotations[0], lambda a: replace(a, dim=order.index(a.dim)))


def squeeze(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions of size one go; those behind move up."""
    gone = {d % len(operands.shapes[0]) for d in params["dimensions"]}
    return move(operands.nodes, operands.annotations[0], lambda a: _without(a, gone))


def reduction(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """What is reduced over is mixed; other dimensions move up."""
    return merge([move(operands.nodes, x, lambda a: _without(a, set(params["axes"]))) for x in operands.annotations])


def barrier(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Every result is the operand in the same place."""
    return dict(operands.annotations[operands.output])


def along_axis(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Cumulative operations, sorts and the like: only `axis` is mixed."""
    axis = params.get("axis", params.get("dimension", 0)) % max(len(operands.shapes[0]), 1)
    return merge([move(operands.nodes, x, lambda a: MIXED if a.dim == axis else a) for x in operands.annotations])


def last_axes(count: int) -> Callable[[Operands, Mapping[str, Any]], dict[Key, Any]]:
    """Batched linear algebra: the last `count` dimensions of every operand are mixed."""

    def rule(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
        batches = {s[: len(s) - count] for s in operands.shapes if len(s) >= count}
        if len(batches) != 1 or operands.out_shape[: len(next(iter(batches)))] != next(iter(batches)):
            return mixed(operands.annotations)
        batch = len(next(iter(batches)))
        return merge([move(operands.nodes, x, lambda a: a if a.dim < batch else MIXED) for x in operands.annotations])

    return rule


def reverse(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """A reversed dimension is read through the reversed index."""
    shape = operands.shapes[0]

    def mover(a: Aligned) -> Any:
        if a.dim not in params["dimensions"]:
            return a
        return through(operands.nodes, a, np.arange(shape[a.dim])[::-1], a.dim, shape[a.dim])

    return move(operands.nodes, operands.annotations[0], mover)


def slice_(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """A dimension that is cut is read through the index of what is left."""
    shape = operands.shapes[0]
    strides = params["strides"] or (1,) * len(shape)

    def mover(a: Aligned) -> Any:
        rows = np.arange(shape[a.dim])[params["start_indices"][a.dim] : params["limit_indices"][a.dim] : strides[a.dim]]
        return a if len(rows) == shape[a.dim] else through(operands.nodes, a, rows, a.dim, shape[a.dim])

    return move(operands.nodes, operands.annotations[0], mover)


def tile(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """A repeated dimension is read through an index that starts anew with every repetition."""
    shape, out = operands.shapes[0], operands.out_shape

    def mover(a: Aligned) -> Any:
        n, m = shape[a.dim], out[a.dim]
        return a if m == n else through(operands.nodes, a, np.arange(m) % n, a.dim, n)

    return move(operands.nodes, operands.annotations[0], mover)


def whole_dimensions(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dynamic slices and pads: dimensions kept whole stay aligned, others are mixed (and so is a latent index)."""
    shape, out = operands.shapes[0], operands.out_shape
    first = move(operands.nodes, operands.annotations[0], lambda a: a if shape[a.dim] == out[a.dim] else MIXED)
    return merge([first, mixed(operands.annotations[1:])])


def pad(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions without padding stay; others, and what the padding is made of, are mixed."""
    untouched = [d for d, c in enumerate(params["padding_config"]) if tuple(c) == (0, 0, 0)]
    first = move(operands.nodes, operands.annotations[0], lambda a: a if a.dim in untouched else MIXED)
    return merge([first, mixed(operands.annotations[1:])])


def concatenate(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions stay, but for the one along which arrays are joined."""
    axis = params["dimension"]
    return merge([move(operands.nodes, x, lambda a: MIXED if a.dim == axis else a) for x in operands.annotations])


def stack(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions from the new one on move back."""
    axis = params["axis"] % len(operands.out_shape)
    return merge(
        [move(operands.nodes, x, lambda a: replace(a, dim=a.dim + (a.dim >= axis))) for x in operands.annotations]
    )


def unstack(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """As `squeeze`, for every result: rows along `axis` become arrays of their own."""
    return squeeze(operands, {"dimensions": (params["axis"],)})


def triangular_solve(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Solves for the columns (or rows) of the right-hand side one by one, so these stay aligned."""
    batch = len(operands.out_shape) - 2
    free = batch + 1 if params["left_side"] else batch
    matrix = move(operands.nodes, operands.annotations[0], lambda a: a if a.dim < batch else MIXED)
    return merge(
        [
            matrix,
            move(operands.nodes, operands.annotations[1], lambda a: a if a.dim < batch or a.dim == free else MIXED),
        ]
    )


def dot_general(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Batch dimensions come first, then the free ones of the left and of the right; contracted ones are mixed."""
    (contract_l, contract_r), (batch_l, batch_r) = params["dimension_numbers"]
    free_l = [d for d in range(len(operands.shapes[0])) if d not in contract_l and d not in batch_l]
    sides = []
    for side, contract, batch, offset in (
        (0, contract_l, batch_l, len(batch_l)),
        (1, contract_r, batch_r, len(batch_l) + len(free_l)),
    ):
        free = [d for d in range(len(operands.shapes[side])) if d not in contract and d not in batch]
        place = {d: list(batch).index(d) for d in batch} | {d: offset + i for i, d in enumerate(free)}
        sides.append(move(operands.nodes, operands.annotations[side], partial(_place, place)))
    return merge(sides)


def gather(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """A dimension that is indexed by one vector is read through that vector; whole slices and batches stay aligned.

    Latents in the index itself (the component of a mixture) are read along the index's own dimensions.

    Raises:
        DataError: a known index lies outside of a latent's plate.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape, index_shape, rank = operands.shapes[0], operands.shapes[1], len(operands.out_shape)
    batch = [d for d in range(rank) if d not in numbers.offset_dims]
    kept = [d for d in range(len(shape)) if d not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
    index = operands.values[1]

    def read(key: Key, a: Aligned) -> Any:
        if a.dim in kept and sizes[a.dim] == shape[a.dim]:
            return replace(a, dim=numbers.offset_dims[kept.index(a.dim)])
        if a.dim in numbers.operand_batching_dims:
            where = numbers.start_indices_batching_dims[list(numbers.operand_batching_dims).index(a.dim)]
            return replace(a, dim=batch[where])
        if index is None or sizes[a.dim] != 1 or a.dim not in numbers.start_index_map:
            return MIXED
        column = list(numbers.start_index_map).index(a.dim)
        _check_range(operands.nodes, index, column, shape[a.dim], key)
        found = _index_vector(operands.nodes, index, index_shape, column)
        if found is None:
            return MIXED
        vector, dim = found
        link = vector if a.link is None else operands.nodes.canonical(take(operands.nodes, a.link, vector))
        return replace(a, dim=batch[dim], link=link)

    source = merge([move(operands.nodes, {k: v}, partial(read, k)) for k, v in operands.annotations[0].items()])
    # the index itself may be a latent (the component of a mixture): its batch dimensions become the output's
    chosen = move(
        operands.nodes,
        operands.annotations[1],
        lambda a: replace(a, dim=batch[a.dim]) if a.dim < len(index_shape) - 1 else MIXED,
    )
    return merge([source, chosen])


def split(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions stay, but for the one that is cut."""
    return concatenate(operands, {"dimension": params["axis"]})


def _place(place: Mapping[int, int], a: Aligned) -> Any:
    return replace(a, dim=place[a.dim]) if a.dim in place else MIXED


def _without(a: Aligned, gone: set[int]) -> Any:
    return MIXED if a.dim in gone else replace(a, dim=a.dim - sum(d < a.dim for d in gone))


def _index_vector(nodes: Nodes, index: Node, shape: tuple[int, ...], column: int) -> tuple[Node, int] | None:
    """The index along the one dimension it varies over, as (vector, dimension); None if it varies over several."""
    wide = [d for d in range(len(shape) - 1) if shape[d] > 1]
    if len(wide) > 1:
        value = nodes.concrete(index)
        if value is None:
            return None
        grid = value[..., column]
        wide = [d for d in wide if not (grid == grid.take([0], axis=d)).all()]
    if len(wide) > 1 or len(shape) == 1:
        return None
    dim = wide[0] if wide else (0 if len(shape) == 2 else None)
    if dim is None:
        return None
    index, column = _joined_column(index, column, len(shape) - 1, shape[-1])
    select = (*tuple(slice(None) if d == dim else 0 for d in range(len(shape) - 1)), column)
    return nodes.canonical(one_column(nodes, index, select)), dim


def _joined_column(index: Node, column: int, axis: int, width: int) -> tuple[Node, int]:
    """`x[i, j]` joins one index vector for each dimension; look through the join to the vector itself."""
    joined = index.operation.name == "concatenate" and index.operation.params["dimension"] == axis
    return (index.inputs[column], 0) if joined and len(index.inputs) == width else (index, column)


def _check_range(nodes: Nodes, index: Node, column: int, size: int, key: Key) -> None:
    value = nodes.concrete(index)
    if value is None or not value.size:
        return
    low, high = int(value[..., column].min()), int(value[..., column].max())
    if low < 0 or high >= size:
        latent, plate = key
        bad = high if high >= size else low - size
        read = value[..., column]
        rows = np.argwhere((read < 0) | (read >= size))
        raw = _before_wrapping(index, column)
        raise IndexRangeError(
            f"latent {latent!r} has {size} elements along plate {plate!r} but is read at index {bad}; "
            f"indices must lie in 0..{size - 1}. Check the index array ({len(rows)} of {read.size} rows, "
            f"{listed(rows)}), or make the plate larger",
            read if raw is None else nodes.concrete(raw),
        )
    raw = _before_wrapping(index, column)
    negative = None if raw is None else nodes.concrete(raw)
    if negative is not None and (negative < 0).any() and not any(w.values is negative for w in nodes.wrapped):
        nodes.wrapped.append(Wrapped(*key, size, negative))


def _before_wrapping(index: Node, column: int) -> Node | None:
    """The array that an index was made of, if nothing was done to it but what indexing does: `i < 0 ? i + size : i`,
    and changes of form."""
    node = index
    if node.operation.name == "concatenate" and len(node.inputs) > column:
        node = node.inputs[column]
    while node.leaf is None and node.literal is None:
        if node.operation.name == "select_n":
            node = node.inputs[1]
        elif node.operation.name in FORM:
            node = node.inputs[0]
        else:
            return None
    return node


FORM = ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy")
"""Operations that leave the entries of an index as they are."""

RULES: dict[str, Callable[[Operands, Mapping[str, Any]], dict[Key, Any]]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(
        [
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
            "argmax",
            "argmin",
        ],
        reduction,
    ),
    **dict.fromkeys(["cumsum", "cumlogsumexp", "cumprod", "cummax", "cummin", "sort", "top_k"], along_axis),
    **dict.fromkeys(["cholesky", "lu", "eigh", "qr", "svd", "householder_product", "symmetric_product"], last_axes(2)),
    "triangular_solve": triangular_solve,
    "stack": stack,
    "unstack": unstack,
    **dict.fromkeys(IDENTITY, barrier),
    "broadcast_in_dim": broadcast_in_dim,
    "transpose": transpose,
    "squeeze": squeeze,
    "rev": reverse,
    "slice": slice_,
    "tile": tile,
    "dynamic_slice": whole_dimensions,
    "pad": pad,
    "concatenate": concatenate,
    "reshape": reshape,
    "dot_general": dot_general,
    "gather": gather,
    "split": split,
}
