"""Export to ArviZ: an `xarray.DataTree` in its schema, with plates as dimensions.

Draws are exact joint draws, not a chain; they are stored as one chain so that ArviZ's functions work with their
defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from kayn.errors import QueryError
from kayn.posterior.labels import dims_of, labels_of
from kayn.posterior.pool import Pool
from kayn.posterior.replay import scored_data
from kayn.programs.sites import Site
from kayn.support.arrays import KeyArray
from kayn.support.keys import as_key
from kayn.support.names import fresh

SAMPLES = ("chain", "draw")
"""The dimensions that ArviZ's schema has for samples."""


def to_datatree(posterior: Pool, rng_key: KeyArray, num_samples: int, coords: Mapping[str, Any] | None) -> xr.DataTree:
    """Groups `posterior`, `log_likelihood` (of the same draws) and `observed_data`.

    ArviZ counts every entry of the last two as a datum. What a mask hides, and values among the data that are latents
    (imputation), are therefore left out there; the rows that are left run along one dimension `<site>_seen`, whose
    labels say which they are.

    A tree takes "/" in a name for a path, so it becomes "."; a dimension called like a variable gets the ending `_2`.

    Args:
        coords: labels for plates (and for `<site>_dim_<i>` dimensions).

    Raises:
        QueryError: coords name an unknown dimension, or have the wrong length; a site is called like a dimension of
            samples; or replicates hold different elements of a subsampled plate.
    """
    key = as_key(rng_key)
    draws = posterior._joint(key, num_samples)
    for name in draws.values:
        posterior._refuse_mixed_rows(name)
    scores, seen, data, known = jax.tree.map(np.asarray, scored_data(posterior, key, draws))
    given = {d: np.asarray(v) for d, v in (coords or {}).items()}
    names = _Names(posterior, [*draws.values, *scores], labels_of(posterior), given)
    groups: dict[str, list[xr.DataArray]] = {"posterior": [], "log_likelihood": [], "observed_data": []}
    for name, values in draws.values.items():
        rank = len(posterior.problem.model.sites[name].batch_shape)
        groups["posterior"].append(names.array(name, np.asarray(values)[None], rank, 2))
    for name, score in scores.items():
        rows = score.shape[1:]
        event = _event_dim(data[name].shape, _whole_batch(posterior.problem.model.sites[name], rows), rows)
        values = np.broadcast_to(data[name], (*rows, *data[name].shape[data[name].ndim - event :]))
        fixed = known[name].reshape((*known[name].shape[: known[name].ndim - event], -1)).all(-1)
        kept = seen[name].any(0) & fixed
        if kept.any():
            groups["log_likelihood"].append(names.rows(name, score[None], kept, 2))
            groups["observed_data"].append(names.rows(name, values, kept, 0))
    names.check_labels()
    tree = xr.DataTree.from_dict({g: xr.Dataset({v.name: v for v in found}) for g, found in groups.items()})
    tree["posterior"].attrs |= {
        "inference_library": "kayn",
        "log_evidence": float(posterior.log_evidence),
        "log_evidence_error": float(posterior.log_evidence_error),
    }
    return tree


def _whole_batch(site: Site, rows: tuple[int, ...]) -> tuple[int, ...]:
    """A site's batch shape where subsampled plates are taken whole, as `rows` are."""
    batch = list(site.batch_shape)
    for _, dim, size in site.frames:
        if batch[dim] == size:
            batch[dim] = rows[dim]
    return tuple(batch)


def _event_dim(shape: tuple[int, ...], batch_shape: tuple[int, ...], rows: tuple[int, ...]) -> int:
    """How many of the last dimensions of data are events, given their distribution's batch shape and the shape of their
    log densities."""

    def gives_rows(event: int) -> bool:
        try:
            return np.broadcast_shapes(shape[: len(shape) - event], batch_shape) == rows
        except ValueError:
            return False

    return next(e for e in range(len(shape) + 1) if gives_rows(e))


class _Names:
    """Makes arrays whose names and dimensions a tree can hold, and their labels.

    Args:
        sites: all that are to be exported.
        known: labels that arguments of the model had, by dimension.
        given: those that the user gave.

    Raises:
        QueryError: a site is called like a dimension of samples.
    """

    def __init__(
        self, posterior: Pool, sites: Sequence[str], known: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
    ):
        self.posterior, self.labels, self.given = posterior, {**known, **given}, given
        self.variables: dict[str, str] = {}
        for site in sites:
            if site in SAMPLES:
                raise QueryError(
                    f"site {site!r} is called like a dimension of samples in ArviZ's schema, "
                    f"{' and '.join(SAMPLES)}; rename it to export it"
                )
            self.variables[site] = fresh(site.replace("/", "."), {*sites, *self.variables.values()} - {site})
        self.sizes: dict[str, int] = {}

    def array(self, site: str, values: np.ndarray, rank: int, lead: int) -> xr.DataArray:
        """All of a site's values: [*samples, *rows, *event], with `lead` dimensions of samples and `rank` of rows."""
        shape = values.shape[lead:]
        dims = dims_of(self.posterior, site, shape, rank)
        self.sizes |= dict(zip(dims, shape, strict=True))
        coords = {self._dim(d): self._labels(d, n) for d, n in zip(dims, shape, strict=True)}
        return self._array(site, values, [self._dim(d) for d in dims], coords, lead)

    def rows(self, site: str, values: np.ndarray, kept: np.ndarray, lead: int) -> xr.DataArray:
        """Those rows of a site that are `kept`: bool [*rows]."""
        whole = self.array(site, values, kept.ndim, lead)
        if kept.all():
            return whole
        dims = whole.dims[lead : lead + kept.ndim]
        where = [whole.coords[d].values[i] for d, i in zip(dims, np.nonzero(kept), strict=True)]
        labels = where[0] if len(where) == 1 else np.array([", ".join(map(str, w)) for w in zip(*where, strict=True)])
        event = whole.dims[lead + kept.ndim :]
        values = values.reshape((*values.shape[:lead], -1, *values.shape[lead + kept.ndim :]))
        dim = fresh(f"{self.variables[site]}_seen", {*self.variables.values(), *event})
        coords = {dim: labels, **{d: whole.coords[d].values for d in event}}
        return self._array(site, np.compress(kept.ravel(), values, lead), [dim, *event], coords, lead)

    def check_labels(self) -> None:
        """Refuse labels of no dimension, once all arrays are made."""
        unknown = [d for d in self.given if d not in self.sizes]
        if unknown:
            raise QueryError(
                f"coords= names dimension {unknown[0]!r}, which no variable has; dimensions: "
                f"{sorted(map(str, self.sizes))}"
            )

    def _labels(self, dim: str, size: int) -> np.ndarray:
        labels = self.labels.get(dim, np.arange(size))
        if dim not in self.given and labels.shape != (size,):
            return np.arange(size)
        if labels.shape != (size,):
            raise QueryError(f"coords= has labels of shape {labels.shape} for {dim!r}, which has {size} elements")
        return labels

    def _array(
        self, site: str, values: np.ndarray, dims: Sequence[str], coords: Mapping[str, Any], lead: int
    ) -> xr.DataArray:
        samples = {d: np.arange(n) for d, n in zip(SAMPLES, values.shape[:lead], strict=False)}
        return xr.DataArray(values, {**samples, **coords}, (*samples, *dims), self.variables[site])

    def _dim(self, dim: str) -> str:
        return fresh(dim.replace("/", "."), {*self.variables.values(), *SAMPLES})
