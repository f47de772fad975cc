"""Export to ArviZ: an `xarray.DataTree` in its schema, with plates as dimensions.

Draws are exact joint draws from sets of particles, the replicates, which are independent of each other. A set has no
more to say than its particles, however many draws are taken of it, and ArviZ's effective sample sizes and R-hat can see
that only in the order of draws. So every chain has replicates of its own, one after the other, and in each of these
equal values of the latent that repeats most stand together; where more draws are asked for than there are particles,
each stays for several steps, as in a chain of Markov that does not move. Draws of chains stay in their chains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from kayn.errors import PoorFitWarning, QueryError, warn
from kayn.posterior.data_rows import DataRows, data_rows
from kayn.posterior.joint import JointDraws
from kayn.posterior.labels import dims_of, labels_of
from kayn.posterior.pool import Pool
from kayn.posterior.predict import predicted
from kayn.posterior.prior import prior_draws
from kayn.posterior.replay import own_data
from kayn.support.arrays import KeyArray
from kayn.support.keys import as_key
from kayn.support.names import fresh, in_model

CHAINS = (4, 2)
"""Chains, if there are enough draws and twice as many replicates."""
ENOUGH = 400
"""Draws from which on there are several chains; R-hat of chains of less than a hundred says little."""
WORTH = 4
"""Draws for each that they are worth, above which a warning says so."""
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
    draws, chains, different = _in_chains(posterior, key, num_samples)
    shown = {n: v for n, v in draws.values.items() if in_model(n) == n}
    for name in shown:
        posterior._refuse_mixed_rows(name)
    rows = [*data_rows(posterior, key, draws)]
    given = {d: np.asarray(v) for d, v in (coords or {}).items()}
    names = _Names(posterior, [*shown, *(r.name for r in rows)], labels_of(posterior), given, chains)
    groups = {
        "posterior": names.sites(shown, shown),
        "log_likelihood": [names.rows(r.name, names.chained(r.scores), r.kept, 2) for r in rows],
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
    _tell_worth(posterior, tree["posterior"], names.variables, num_samples, different)
    return tree


def _in_chains(posterior: Pool, key: KeyArray, num_samples: int) -> tuple[JointDraws, int, int]:
    """Joint draws ordered by replicate, chain after chain; how many chains they are, and how many different draws.

    Of a replicate there are no more different draws than it has particles of every latent.
    """
    replicates, enough = posterior.num_replicates, num_samples >= ENOUGH
    if posterior.chained:
        per = -(-num_samples // replicates)
        return posterior._joint(key, per * replicates), replicates, per * replicates
    fitting = [c for c in CHAINS if num_samples % c == 0 and replicates % c == 0 and replicates > c]
    chains = fitting[0] if enough and fitting else 1
    particles = min((a.size for a in posterior.problem.layout.axes if not a.enumerated), default=num_samples)
    length, different = num_samples // chains, min(num_samples, particles * replicates) // chains
    draws = posterior._joint(key, different * chains, chains, _worst(posterior))
    if different == length:
        return draws, chains, different * chains
    kept = np.arange(chains)[:, None] * different + np.arange(length) * different // length
    return jax.tree.map(lambda v: v[kept.ravel()], draws), chains, different * chains


def _worst(posterior: Pool) -> tuple[str, int] | None:
    """The latent that has the least effective sample size, and the number of that element: what repeats most often."""
    sizes = {n: np.ravel(posterior.ess(in_model(n))) for n in _continuous(posterior)}
    found = {n: size for n, size in sizes.items() if size.size}
    if not found:
        return None
    name = min(found, key=lambda n: found[n].min())
    events = math.prod(posterior.problem.model.sites[name].shape) // found[name].size
    return name, int(found[name].argmin()) * events


def _continuous(posterior: Pool) -> list[str]:
    """Latents that have particles, not all values that there are."""
    return [n for n in posterior.drawn_names if not posterior.problem.layout.axis_of(n).enumerated]


def _tell_worth(posterior: Pool, group: xr.DataTree, variables: Mapping[str, str], asked: int, count: int) -> None:
    """Note the effective sample size of every latent; warn where many more draws were asked for.

    They are spread evenly over the particles, and so worth these or their own number, whichever is less.

    Args:
        count: of different draws.
    """
    if posterior.chained:
        return
    names = [n for n in map(in_model, _continuous(posterior)) if n in variables]
    found = {n: float(np.min(posterior.ess(n))) for n in names}
    worth = {n: min(count, e) for n, e in found.items()}
    for name, value in worth.items():
        group[variables[name]].attrs["effective_sample_size"] = value
    if worth and asked > WORTH * (least := min(worth.values())):
        name = min(worth, key=lambda n: worth[n])
        warn(
            f"{asked} draws are worth {least:.0f} independent ones (of latent {name!r}), as that is what the "
            "particles hold; take more of them, fit.posterior(num_replicates=...), or fewer draws",
            PoorFitWarning,
        )


class _Names:
    """Makes arrays whose names and dimensions a tree can hold, and their labels.

    Args:
        sites: all that are to be exported.
        known: labels that arguments of the model had, by dimension.
        given: those that the user gave.
        chains: how many the draws are.

    Raises:
        QueryError: a site is called like a dimension of samples.
    """

    def __init__(
        self,
        posterior: Pool,
        sites: Sequence[str],
        known: Mapping[str, np.ndarray],
        given: Mapping[str, np.ndarray],
        chains: int,
    ):
        self.chains = chains
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

    def chained(self, values: Any) -> np.ndarray:
        """Draws [S, ...] as [chains, S / chains, ...]."""
        return np.reshape(values, (self.chains, -1, *np.shape(values)[1:]))

    def sites(self, which: Iterable[str], found: Mapping[str, Any]) -> list[xr.DataArray]:
        """Draws [S, *shape] of some sites."""
        ranks = {n: len(self.posterior.problem.model.sites[n].batch_shape) for n in which}
        return [self.array(n, self.chained(found[n]), rank, 2) for n, rank in ranks.items()]

    def data(self, rows: Sequence[DataRows], found: Mapping[str, Any]) -> list[xr.DataArray]:
        """Draws [S, *rows, *event] in the place of data."""
        whole = {r.name: np.broadcast_to(found[r.name], (len(r.scores), *r.values.shape)) for r in rows}
        return [self.rows(r.name, self.chained(whole[r.name]), r.kept, 2) for r in rows]

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
