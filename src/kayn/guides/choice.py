"""Which Normal family a continuous latent gets."""

from __future__ import annotations

from typing import Any

from numpyro.distributions.transforms import IdentityTransform, IndependentTransform, biject_to

from kayn.guides.normal import Gaussian, MultivariateNormal, Normal
from kayn.guides.skewed import Skewed
from kayn.programs.sites import Site

LONGEST_VECTOR = 32
"""Vectors of up to this length get a full covariance."""


def continuous_family(site: Site, support: Any) -> tuple[Gaussian, tuple[int, ...]]:
    """The family of a latent, and its shape in unconstrained space."""
    transform = biject_to(support)
    while site.freed and isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    transform = IdentityTransform() if _identity(transform) else transform
    shape = transform.inverse_shape(site.shape)
    return _normal(site.event_dim, transform, shape), shape


def _normal(event_dim: int, transform: Any, shape: tuple[int, ...]) -> Gaussian:
    """A full covariance for vectors of moderate length, independent coordinates for the rest, which may have longer
    tails where a support has an end; `shape` in unconstrained space."""
    whole = isinstance(transform, IdentityTransform)
    independent = Normal(event_dim) if whole else Skewed(event_dim=event_dim, transform=transform)
    if independent.unconstrained_event_dim == 1 and 1 < shape[-1] <= LONGEST_VECTOR:
        return MultivariateNormal(event_dim=event_dim, transform=transform)
    return independent


def _identity(transform: Any) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, IdentityTransform)
