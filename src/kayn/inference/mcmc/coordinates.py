"""In which coordinates a latent moves, and what volume its values have there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from numpyro.distributions.transforms import IdentityTransform, IndependentTransform, Transform

from kayn.errors import GuideError
from kayn.graph.types import Latent
from kayn.guides.factorised import FactorisedGuide
from kayn.guides.normal import Gaussian
from kayn.programs.sites import Site
from kayn.programs.supports import BOX
from kayn.support.arrays import Array, KeyArray


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates u of a latent x.

    Attributes:
        transform: from u to x; the identity for what is discrete.
        discrete: whether x are whole numbers. Then a step is a whole number too.
        lower, upper: ends of the whole numbers; infinite where there is none or it is not known.
        uniform: whether its values are few, so that particles are any of them, with equal probabilities.
    """

    transform: Transform
    discrete: bool = False
    lower: float = -math.inf
    upper: float = math.inf
    uniform: bool = False

    def values(self, u: Array) -> Array:
        """x of u, either with any leading dimensions."""
        return u if isinstance(self.transform, IdentityTransform) else self.transform(u)

    def of_values(self, x: Array) -> Array:
        """u of x."""
        return x if isinstance(self.transform, IdentityTransform) else self.transform.inv(x)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of u, for x of a shape."""
        return tuple(self.transform.inverse_shape(shape))

    def log_volume(self, u: Array, batch_ndim: int) -> Array:
        """log |dx/du|, -inf for whole numbers that are no values: [K, *batch] for u [K, *batch, *event]."""
        if self.discrete:
            out = jnp.where((u >= self.lower) & (u <= self.upper), 0.0, -jnp.inf).astype(jnp.result_type(float))
        elif isinstance(self.transform, IdentityTransform):
            return jnp.zeros(u.shape[: 1 + batch_ndim], u.dtype)
        else:
            out = self.transform.log_abs_det_jacobian(u, self.transform(u))
        return out.sum(tuple(range(1 + batch_ndim, out.ndim)))

    def any_value(self, key: KeyArray, shape: tuple[int, ...], dtype: str) -> Array:
        """Values with equal probabilities, where there are few."""
        return jax.random.randint(key, shape, int(self.lower), int(self.upper) + 1).astype(dtype)


def coordinates_of(guide: FactorisedGuide, sites: Mapping[str, Site], latents: Mapping[str, Latent]) -> dict:
    """Coordinates by latent, of those that are drawn or enumerated.

    Raises:
        GuideError: there are none for a latent.
    """
    families = {s.name: s.family for s in guide.sites}
    out = {}
    for name, latent in latents.items():
        family = families.get(name)
        if latent.discrete:
            out[name] = _whole(sites[name])
        elif isinstance(family, Gaussian):
            out[name] = Coordinates(_by_entry(family.transform))
        else:
            raise GuideError(
                f"latent {name!r} has no unconstrained coordinates to move in locally; give it proposals of a guide, "
                f"proposal={{{name!r}: guide, '': 'local'}}"
            )
    return out


def _by_entry(transform: Transform) -> Transform:
    """The same map, whose volume is told entry by entry where entries are mapped one by one: elements of an event may
    be apart in the model."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def _whole(site: Site) -> Coordinates:
    support = site.support
    lower, upper = (None, None) if support is None or support.kind != BOX else (support.lower, support.upper)
    lower, upper = -math.inf if lower is None else lower, math.inf if upper is None else upper
    few = site.num_values is not None and math.isfinite(lower) and upper - lower + 1 == site.num_values
    return Coordinates(IdentityTransform(), True, lower, upper, few)
