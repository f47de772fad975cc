"""How many data the rows of a minibatch stand for, so that figures can be given per datum."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kayn.programs.sites import Site, inspect_sites
from kayn.support.arrays import PyTree


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
