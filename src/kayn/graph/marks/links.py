"""From marks to links: along which dimension of an output the elements lie that its entries read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kayn.graph.aligned import Aligned, Key
from kayn.graph.expressions import Nodes
from kayn.graph.marks.algebra import Mark, along, elements, several
from kayn.graph.types import MIXED

Found = tuple[int, np.ndarray]
"""A dimension, and the element that is read at each place along it; negative where none is."""


def index_along(mark: Mark, size: int) -> Found | None:
    """The dimension that alone says which element is read; of several the one that runs in step with the plate."""
    rank, best = mark.ndim - 1, None
    for dim in (d for d in range(rank) if mark.shape[d + 1] > 1):
        line = along(mark, [d for d in range(rank) if d != dim])
        if several(line).any():
            continue
        index = elements(line)
        in_step = len(index) == size and bool((index == np.arange(size))[index >= 0].all())
        if in_step:
            return dim, index
        best = best or (dim, index)
    return best


def filled(found: Mapping[Key, Found], sizes: Mapping[Key, int], others: Mapping[Key, Found]) -> dict[Key, Found]:
    """The same with elements for places that read none: those that keep indices equal or nested, where any do.

    Args:
        others: what is known of the output's other reads.
    """
    out: dict[Key, Found] = {}
    for key, (dim, index) in found.items():
        open_ = index < 0
        if open_.any():
            beside = [i for k, (d, i) in {**others, **out}.items() if d == dim and k != key]
            alike = [i for k, (d, i) in {**others, **out}.items() if d == dim and k[1] == key[1]]
            if len(index) == sizes[key]:
                alike.append(np.arange(sizes[key]))
            index = _filled(index, open_, alike, beside)
        out[key] = dim, index
    return out


def _filled(index: np.ndarray, open_: np.ndarray, alike: Collection, beside: Collection) -> np.ndarray:
    for whole in alike:
        if (whole >= 0).all() and np.array_equal(whole[~open_], index[~open_]):
            return whole
    index = index.copy()
    for other in beside:
        table = np.full(int(other.max()) + 1, -1)
        table[other[~open_]] = index[~open_]
        index[open_] = table[other[open_]]
        open_ = index < 0
    index[open_] = 0
    return index


def as_annotation(nodes: Nodes, found: Mapping[Key, Found], sizes: Mapping[Key, int]) -> dict[Key, Any]:
    """Indices as the annotations of `kayn.graph.aligned`."""
    out: dict[Key, Any] = {}
    for key, (dim, index) in found.items():
        size = sizes[key]
        same = len(index) == size and np.array_equal(index, np.arange(size))
        out[key] = Aligned(dim, None if same else nodes.canonical(nodes.constant(index.astype(np.int32))), size)
    return out


def known_reads(nodes: Nodes, annotation: Mapping[Key, Any], shape: Sequence[int]) -> dict[Key, Found]:
    """The reads of an output that are resolved and whose numbers are known."""
    out: dict[Key, Found] = {}
    for key, value in annotation.items():
        if value is MIXED or not isinstance(value, Aligned):
            continue
        index = np.arange(shape[value.dim]) if value.link is None else nodes.concrete(value.link)
        if index is not None and len(index) == shape[value.dim]:
            out[key] = value.dim, index
    return out
