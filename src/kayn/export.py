"""Export to ArviZ: an `xarray.DataTree` in its schema, with plates as dimensions.

Draws are exact joint draws, not a chain; they are stored as one chain so that ArviZ's functions work with their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from kayn.errors import QueryError
from kayn.evidence import observed_values
from kayn.graph.trace import Site

if TYPE_CHECKING:
    from kayn.posterior import Posterior


def to_datatree(posterior: Posterior, rng_key: Any, num_samples: int, coords: Mapping[str, Any] | None) -> xr.DataTree:
    """Groups `posterior`, `log_likelihood`, `observed_data` and `sample_stats`.

    Args:
        coords: labels for plates (and for `<site>_dim_<i>` dimensions).

    Raises:
        QueryError: coords name an unknown dimension, or have the wrong length.
    """
    key = rng_key
    draws = {n: np.asarray(v) for n, v in posterior.sample(key, num_samples).items()}
    log_likelihood = {n: np.asarray(v) for n, v in posterior.log_likelihood(key, num_samples).items()}
    sites = posterior.problem.model.sites
    found = observed_values(posterior.problem, posterior.numbers, posterior.params)
    observed = {n: np.asarray(v) for n, v in found.items()}
    coords = {d: np.asarray(labels) for d, labels in (coords or {}).items()}
    groups = {
        "posterior": {
            n: _variable(sites[n], v[None], draws=True, dims=_value_dims(posterior, n)) for n, v in draws.items()
        },
        "log_likelihood": {
            n: _variable(sites[n], v[None], draws=True, batch_only=True) for n, v in log_likelihood.items()
        },
        "observed_data": {n: _variable(sites[n], v, draws=False) for n, v in observed.items()},
    }
    sizes = {d: s for g in groups.values() for v in g.values() for d, s in zip(v.dims, v.shape, strict=True)}
    for dim, labels in coords.items():
        if dim not in sizes:
            raise QueryError(
                f"coords= names dimension {dim!r}, which no variable has; dimensions: {sorted(map(str, sizes))}"
            )
        if labels.shape != (sizes[dim],):
            raise QueryError(f"coords= has labels of shape {labels.shape} for {dim!r}, which has {sizes[dim]} elements")
    trees = {}
    for name, variables in groups.items():
        used = {d for v in variables.values() for d in v.dims}
        own = {d: coords[d] if d in coords else np.arange(sizes[d]) for d in used}
        trees[name] = xr.Dataset(variables, coords=own)
    trees["posterior"].attrs |= {
        "inference_library": "kayn",
        "log_evidence": float(posterior.log_evidence),
        "log_evidence_error": float(posterior.log_evidence_error),
    }
    return xr.DataTree.from_dict(trees)


def _value_dims(posterior: Posterior, name: str) -> list[str] | None:
    """Dimensions of a deterministic site, found from the latents it reads."""
    return list(posterior.problem.graph.output(name).dims) if name in posterior.deterministic_names else None


def _variable(
    site: Site, values: np.ndarray, draws: bool, batch_only: bool = False, dims: list[str] | None = None
) -> xr.Variable:
    shape = site.batch_shape if batch_only else site.shape
    declared = {
        len(site.batch_shape) + dim: name
        for name, dim, size in site.frames
        if shape[len(site.batch_shape) + dim] == size
    }
    dims = dims or [declared.get(d, f"{site.name}_dim_{d}") for d in range(len(shape))]
    lead = values.ndim - len(dims)
    return xr.Variable([*(("chain", "draw")[:lead] if draws else ()), *dims], values)
