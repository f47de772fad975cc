"""Which plate elements a value reads along its dimensions, and how that moves when the dimensions do.

An annotation says, for every (latent, plate) that a value depends on, along which of the value's dimensions that plate
runs and through which index (`Aligned`, or `Grid` over several dimensions), or `MIXED`: the value at one position may
depend on several plate elements. MIXED is always right; an alignment must hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kayn.graph.expressions import Node, Nodes, take
from kayn.graph.types import MIXED

LARGEST_GRID = 2**22
"""Entries of an array up to which it is followed where a dimension is split into several."""


@dataclass(frozen=True)
class Aligned:
    """Element i along `dim` reads plate element `link[i]` (element i itself when `link` is None);
    the plate has `size` elements."""

    dim: int
    link: Node | None
    size: int


@dataclass(frozen=True)
class Grid:
    """The element at (i, j, ..) along `dims` reads what element `rows[i, j, ..]` of one dimension would read through
    `link`.

    Attributes:
        dims: at least two, ascending; the rows differ along each.
        rows: a constant [*sizes of dims].
        length: the number of elements of that one dimension.
    """

    dims: tuple[int, ...]
    rows: Node
    link: Node | None
    length: int
    size: int


Key = tuple[str, str]
"""(latent, plate); the plate is "" for the bare fact that the latent is read at all."""
Annotation = Mapping[Key, Any]
Mover = Callable[[Aligned], Any]


@dataclass(frozen=True)
class Operands:
    """An equation's operands: an annotation for latent-dependent ones, a node for the others;
    `output` numbers its results."""

    nodes: Nodes
    annotations: Sequence[Annotation]
    values: Sequence[Node | None]
    shapes: Sequence[tuple[int, ...]]
    out_shape: tuple[int, ...]
    output: int = 0


def move(nodes: Nodes, annotation: Annotation, mover: Mover) -> dict[Key, Any]:
    """The annotation after each dimension has gone where `mover` says; a grid follows dimension by dimension."""

    def moved(value: Any) -> Any:
        return mover(value) if isinstance(value, Aligned) else _moved_grid(nodes, value, mover)

    return {k: v if v is MIXED or v is None else moved(v) for k, v in annotation.items()}


def merge(annotations: Sequence[Annotation]) -> dict[Key, Any]:
    """The annotation of an elementwise combination."""
    out: dict[Key, Any] = {}
    for annotation in annotations:
        for key, value in annotation.items():
            out[key] = value if key not in out or out[key] == value else MIXED
    return out


def mixed(annotations: Sequence[Annotation]) -> dict[Key, Any]:
    """The annotation of a value that reads all elements of whatever its operands read."""
    return {k: (None if v is None else MIXED) for a in annotations for k, v in a.items()}


def in_one_dimension(annotation: Annotation) -> dict[Key, Any]:
    """The annotation with what runs along several dimensions at once as MIXED."""
    return {k: MIXED if isinstance(v, Grid) else v for k, v in annotation.items()}


def through(nodes: Nodes, a: Aligned, rows: np.ndarray, dim: int, length: int) -> Aligned:
    """Along `dim` now, where element i was element `rows[i]`, of `length` ones."""
    return _settled(nodes, (dim,), rows, a.link, length, a.size)


def reshape(operands: Operands, params: Mapping[str, Any]) -> dict[Key, Any]:
    """Dimensions that are merged are followed by index, and so are those that are split."""
    shape, out, nodes = operands.shapes[0], operands.out_shape, operands.nodes
    blocks = _blocks(shape, out)

    def moved(value: Any) -> Any:
        dims = (value.dim,) if isinstance(value, Aligned) else value.dims
        mine = [(b, o) for b, o in blocks if any(d in b for d in dims)]
        before, after = [d for b, _ in mine for d in b], [d for _, o in mine for d in o]
        wide, others = [d for d in after if out[d] > 1], [d for d in before if d not in dims and shape[d] > 1]
        if isinstance(value, Aligned) and not others and len(wide) <= 1:
            kept = wide or after
            return replace(value, dim=kept[0]) if kept else MIXED
        if params.get("dimensions") is not None or math.prod(shape[d] for d in before) > LARGEST_GRID:
            return MIXED
        rows, link, length = _rows(nodes, value, shape)
        lengths = [shape[d] if d in dims else 1 for d in before]
        spread = np.broadcast_to(rows.reshape(lengths), [shape[d] for d in before]).reshape([out[d] for d in after])
        return _settled(nodes, tuple(after), spread, link, length, value.size)

    return {k: v if v is MIXED or v is None else moved(v) for k, v in operands.annotations[0].items()}


def _rows(nodes: Nodes, value: Aligned | Grid, shape: Sequence[int]) -> tuple[np.ndarray, Node | None, int]:
    """Indices along the value's dimensions into one dimension of some length, and its link."""
    if isinstance(value, Grid):
        return np.asarray(value.rows.literal), value.link, value.length
    return np.arange(shape[value.dim]), value.link, shape[value.dim]


def _moved_grid(nodes: Nodes, grid: Grid, mover: Mover) -> Any:
    rows = np.asarray(grid.rows.literal)
    found = [mover(Aligned(d, None, n)) for d, n in zip(grid.dims, rows.shape, strict=True)]
    if not all(isinstance(f, Aligned) for f in found):
        return MIXED
    dims = sorted({f.dim for f in found})
    index = []
    for f, n in zip(found, rows.shape, strict=True):
        vector = np.arange(n) if f.link is None else nodes.concrete(f.link)
        if vector is None:
            return MIXED
        index.append(vector.reshape([-1 if d == f.dim else 1 for d in dims]))
    return _settled(nodes, tuple(dims), rows[tuple(index)], grid.link, grid.length, grid.size)


def _settled(nodes: Nodes, dims: Sequence[int], rows: np.ndarray, link: Node | None, length: int, size: int) -> Any:
    """In as few dimensions as the rows differ along, and through no more indices than are needed."""
    if link is not None and link in nodes.lengths and link.inputs[1].literal is not None:
        # an index that was put on another link before
        length, rows, link = nodes.lengths[link], np.asarray(link.inputs[1].literal)[rows], link.inputs[0]
    elif link is not None and link.literal is not None:
        length, rows, link = size, np.asarray(link.literal)[rows], None
    wide = [i for i in range(rows.ndim) if rows.shape[i] > 1 and (rows != rows.take([0], axis=i)).any()]
    if len(wide) > 1:
        kept = rows[tuple(slice(None) if i in wide else 0 for i in range(rows.ndim))]
        return Grid(tuple(dims[i] for i in wide), nodes.constant(kept.astype(np.int32)), link, length, size)
    place = wide[0] if wide else int(np.argmax(rows.shape))
    vector = rows[tuple(slice(None) if i == place else 0 for i in range(rows.ndim))]
    if np.array_equal(vector, np.arange(length)):
        return Aligned(dims[place], link, size)
    index = nodes.constant(vector.astype(np.int32))
    if link is None:
        return Aligned(dims[place], index, size)
    link = take(nodes, link, index)
    nodes.lengths[link] = length
    return Aligned(dims[place], link, size)


def _blocks(shape: Sequence[int], out: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Minimal runs of input and output dimensions with equal element counts."""
    blocks, i, j = [], 0, 0
    while i < len(shape) or j < len(out):
        before, after = ([i] if i < len(shape) else []), ([j] if j < len(out) else [])
        i, j = i + len(before), j + len(after)
        a, b = math.prod(shape[d] for d in before), math.prod(out[d] for d in after)
        while a != b:
            if a < b and i < len(shape):
                a, i = a * shape[i], i + 1
                before.append(i - 1)
            elif j < len(out):
                b, j = b * out[j], j + 1
                after.append(j - 1)
            else:
                break
        blocks.append((before, after))
    return blocks
