"""Guides that a user wrote, read as members of families that QEM fits."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.transforms import ComposeTransform

from kayn.errors import GuideError
from kayn.guides.families import FAMILIES, Family
from kayn.guides.normal import MultivariateNormal, Normal
from kayn.programs.sites import Site
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array

KNOWN: tuple[type[Family], ...] = (MultivariateNormal, *FAMILIES)
"""Families of guides that are read by the classes of their laws, beside the Normal and what is transformed from it."""


def site_start(name: str, fn: dist.Distribution, model_sites: Mapping[str, Site]) -> tuple[Family, dict[str, Array]]:
    """The family of a guide's site, and its parameters [*batch shape of the model's site, ...]."""
    if name not in model_sites:
        raise GuideError(f"guide site {name!r} is no latent of the model; QEM needs exactly one site for each latent")
    site, law = model_sites[name], innermost(fn)
    batch = site.batch_shape
    family, start = _family_of(name, fn, len(batch), site)
    # dimensions of a site's event that are a batch of its law: parameters that they share count for each of them
    elements = site.shape[len(batch) : len(site.shape) - law.event_dim]

    def whole(parameter: str, value: Array) -> Array:
        # written without a point, Normal(0, 1), a parameter would be a whole number and never move
        dtype = jnp.promote_types(jnp.result_type(value), jnp.result_type(float))
        own = family.parameters[parameter].event_dim or law.event_dim
        event = jnp.shape(value)[jnp.ndim(value) - own :]
        if own == law.event_dim:
            # one number for all entries, which NumPyro leaves as it is (see `densities.triangular`)
            event = jnp.broadcast_shapes(event, law.event_shape)
        return jnp.broadcast_to(value, (*batch, *elements, *event)).astype(dtype)

    return family, {p: whole(p, v) for p, v in start.items()}


def _family_of(name: str, fn: dist.Distribution, batch_ndim: int, site: Site) -> tuple[Family, Mapping[str, Array]]:
    event_dim = len(site.shape) - batch_ndim
    base = innermost(fn)
    if base.event_dim > event_dim:
        raise GuideError(
            f"guide site {name!r} is one {type(base).__name__} over elements that are independent or successive in "
            f"the model, whose latent has batch shape {site.batch_shape}; QEM fits one distribution for each of "
            "them: use e.g. Normal there, or fit this guide with kayn.RWS or kayn.VI and numpyro.infer.SVI"
        )
    if isinstance(base, dist.Normal):
        return Normal(event_dim=event_dim), {"loc": base.loc, "scale": base.scale}
    if isinstance(base, dist.TransformedDistribution) and isinstance(innermost(base.base_dist), dist.Normal):
        normal = innermost(base.base_dist)
        loc, scale = jnp.broadcast_arrays(normal.loc, normal.scale)
        return Normal(event_dim=event_dim, transform=ComposeTransform(list(base.transforms))), {
            "loc": loc,
            "scale": scale,
        }
    for kind in KNOWN:
        if type(base) in kind.laws:
            return kind.of(base, event_dim)
    names = ("Normal", "transformed Normal", *(kind.__name__ for kind in KNOWN))
    raise GuideError(
        f"QEM cannot fit guide site {name!r}: {type(base).__name__} is in none of its families "
        f"({', '.join(names)}). Use one of these, or fit this guide with kayn.RWS or kayn.VI and "
        "numpyro.infer.SVI"
    )
