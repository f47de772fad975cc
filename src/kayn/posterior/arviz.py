"""Export to ArviZ: an `xarray.DataTree` in its schema, with plates as dimensions.

Draws are exact joint draws, not a chain; they are stored as one chain so that ArviZ's functions work with their
defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from kayn.errors import QueryError
from kayn.posterior.data_rows import DataRows, data_rows
from kayn.posterior.labels import dims_of, labels_of
from kayn.posterior.pool import Pool
from kayn.posterior.predict import predicted
from kayn.posterior.prior import prior_draws
from kayn.posterior.replay import own_data
from kayn.support.arrays import KeyArray
from kayn.support.keys import as_key
from kayn.support.names import fresh, in_model

SAMPLES = ("chain", "draw")
"""The dimensions that ArviZ's schema has for samples."""


def to_datatree(
    posterior: Pool,
    rng_key: KeyArray,
    num_samples: int,
    coords: Mapping[str, Any] | None,
    predictive: bool = False,
    prior: bool = False,
) -> xr.DataTree:
    """Groups `posterior`, `log_likelihood` (of the same draws) and `observed_data`.

    ArviZ counts every entry of the last two as a datum. What a mask hides, and values among the data that are latents
    (imputation), are therefore left out there; the rows that are left run along one dimension `<site>_seen`, whose
    labels say which they are.

    A tree takes "/" in a name for a path, so it becomes "."; a dimension called like a variable gets the ending `_2`.

    Args:
        coords: labels for plates (and for `<site>_dim_<i>` dimensions).
        predictive: add the group `posterior_predictive`: data drawn given the same draws.
        prior: add the groups `prior` and `prior_predictive`.

    Raises:
        QueryError: coords name an unknown dimension, or have the wrong length; a site is called like a dimension of
            samples; or replicates hold different elements of a subsampled plate.
    """
    key = as_key(rng_key)
    draws = posterior._joint(key, num_samples)
    shown = {n: v for n, v in draws.values.items() if in_model(n) == n}
    for name in shown:
        posterior._refuse_mixed_rows(name)
    rows = [*data_rows(posterior, key, draws)]
    given = {d: np.asarray(v) for d, v in (coords or {}).items()}
    names = _Names(posterior, [*shown, *(r.name for r in rows)], labels_of(posterior), given)
    groups = {
        "posterior": names.sites(shown, shown),
        "log_likelihood": [names.rows(r.name, r.scores[None], r.kept, 2) for r in rows],
        "observed_data": [names.rows(r.name, r.values, r.kept, 0) for r in rows],
    }
    if predictive:
        found = predicted(posterior, key, draws, own_data(posterior, observe=False))
        groups["posterior_predictive"] = names.data(rows, found)
    if prior:
        call = posterior.call
        found = prior_draws(call.model, call.args, call.kwargs, key, num_samples, dict(posterior.params))
        groups |= {"prior": names.sites(shown, found), "prior_predictive": names.data(rows, found)}
    names.check_labels()
    tree = xr.DataTree.from_dict({g: xr.Dataset({v.name: v for v in found}) for g, found in groups.items()})
    tree["posterior"].attrs |= {
        "inference_library": "kayn",
        "log_evidence": float(posterior.log_evidence),
        "log_evidence_error": float(posterior.log_evidence_error),
    }
    return tree


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

    def sites(self, which: Iterable[str], found: Mapping[str, Any]) -> list[xr.DataArray]:
        """Draws [S, *shape] of some sites."""
        ranks = {n: len(self.posterior.problem.model.sites[n].batch_shape) for n in which}
        return [self.array(n, np.asarray(found[n])[None], rank, 2) for n, rank in ranks.items()]

    def data(self, rows: Sequence[DataRows], found: Mapping[str, Any]) -> list[xr.DataArray]:
        """Draws [S, *rows, *event] in the place of data."""
        whole = {r.name: np.broadcast_to(found[r.name], (len(r.scores), *r.values.shape)) for r in rows}
        return [self.rows(r.name, whole[r.name][None], r.kept, 2) for r in rows]

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
