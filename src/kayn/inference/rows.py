"""The rows of data that a training run is given, and how many data they stand for, so that figures can be given per
datum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.errors import DataError
from kayn.programs.data import is_column, why_unusable
from kayn.programs.sites import Site, inspect_sites
from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True)
class Rows:
    """Data to train on and to look at, as arrays with the same leading dimension.

    Attributes:
        data: [N, ...] each.
        held_out: [M, ...] each; None where there are none.
        batch_size: rows of a minibatch.
    """

    data: tuple[Array, ...]
    held_out: tuple[Array, ...] | None
    batch_size: int

    @classmethod
    def of(cls, data: Any, held_out: Any, batch_size: int) -> Rows:
        """Rows of what a user gives: an array, or a tuple of them.

        Raises:
            DataError: it is neither, or leading dimensions differ; it is named.
        """
        return cls(_arrays("data", data), None if held_out is None else _arrays("held_out", held_out), batch_size)

    @property
    def total(self) -> int:
        """N, of the data to train on."""
        return self.data[0].shape[0]

    @property
    def first(self) -> tuple[Array, ...]:
        """As many rows as a minibatch has, for their form."""
        return tuple(a[: self.batch_size] for a in self.data)


def data_behind(model: Callable, args: tuple, params: Mapping[str, PyTree], rows: int) -> int:
    """How many data a loss or a log evidence is the sum of, if the model is given `rows` rows of data.

    A subsampled plate over the rows scales their log densities to as many data as it has elements. Rows are the leading
    dimension of arrays of data, hence the leftmost plate of that size that an observed site stands in; where several
    plates are, each with data of its own, the largest counts.
    """
    sites = inspect_sites(model, args, {}, params)
    found = {_leftmost(s, rows) for s in sites.values() if s.kind == "sample" and s.observed}
    return max((sites[p].batch_shape[0] for p in found if p in sites), default=rows)


def _leftmost(site: Site, rows: int) -> str | None:
    frames = [(dim, name) for name, dim, size in site.frames if size == rows]
    return min(frames)[1] if frames else None


def _arrays(name: str, data: Any) -> tuple[Array, ...]:
    given = data if isinstance(data, tuple) else (data,)
    for i, value in enumerate(given):
        which = f"{name}[{i}]" if isinstance(data, tuple) else name
        why = "None" if value is None else why_unusable(value)
        if why and not (is_column(value) and why_unusable(np.asarray(value)) is None):
            raise DataError(f"{which} is {why}")
    arrays = tuple(jnp.asarray(np.asarray(a) if is_column(a) else a) for a in given)
    sizes = {a.shape[0] if a.ndim else None for a in arrays}
    if len(sizes) != 1 or sizes & {None, 0}:
        raise DataError(
            f"{name} has shapes {', '.join(str(a.shape) for a in arrays)}; pass an array, or a tuple of arrays with "
            "the same leading dimension"
        )
    return arrays
