"""Latents whose support depends on other latents, read in unconstrained space given these.

The set that such a latent `x` lies in differs from particle to particle of its parents. In its place stands a latent
`u`, under the same name with a prefix, that may be any real number or vector: its density is `p(T(u)) |dT/du|`, and `x`
is the deterministic value `T(u)`, where T maps the real numbers onto the set, given the parents. Every particle of u is
a possible value then for every particle of the parents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from kayn.densities.log_prob import dependable
from kayn.programs.supports import BOX, ends_of, support_of
from kayn.programs.wrappers import element_mask, innermost
from kayn.support.arrays import Array, KeyArray
from kayn.support.names import unbounded
from kayn.support.numpyro_internals import is_of_numpyro


class InPlaceOf(dist.Distribution):
    """A law of any real numbers or vectors in the place of another one, `law`."""

    law: dist.Distribution

    @property
    def has_rsample(self) -> bool:
        """Whether derivatives go through draws: where they do so in the law of the values."""
        return bool(self.law.has_rsample)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Everything."""
        return constraints.independent(constraints.real, self.event_dim) if self.event_dim else constraints.real


class Unbounded(InPlaceOf):
    """A law in unconstrained space.

    Args:
        law: that of the values.
        transform: from unconstrained space onto its support.
    """

    pytree_data_fields = ("law", "transform")
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, law: dist.Distribution, transform: Any, *, validate_args: bool | None = None):
        self.law, self.transform = law, transform
        shape = transform.inverse_shape(law.shape())
        events = law.event_dim - transform.codomain.event_dim + transform.domain.event_dim
        batch = len(shape) - events
        super().__init__(shape[:batch], shape[batch:], validate_args=validate_args)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws [*sample_shape, *batch, *event]; of an improper law, which has none, a feasible value."""
        if isinstance(innermost(self.law), dist.ImproperUniform):
            return jnp.zeros((*sample_shape, *self.shape()))
        return self.transform.inv(self.law.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        """Log density of u, nats: that of the value, and of the volume that the transform gives it."""
        x = self.transform(value)
        volume = self.transform.log_abs_det_jacobian(value, x)
        events = tuple(range(jnp.ndim(value) - self.event_dim, jnp.ndim(volume)))
        return dependable(self.law, x).log_prob(x) + jnp.sum(volume, events)


def law_of(fn: dist.Distribution) -> dist.Distribution:
    """The distribution that values follow, without wrappers."""
    base = innermost(fn)
    return law_of(base.law) if isinstance(base, Unbounded) else base


def is_users(fn: dist.Distribution) -> bool:
    """Whether values follow a distribution of a user's own, or one that is made of such."""
    base = innermost(fn)
    return is_users(base.law) if isinstance(base, InPlaceOf) else not is_of_numpyro(base)


def unconstrained(fn: dist.Distribution) -> Any:
    """The transform from unconstrained space onto a support. Where it is a box its ends are those that can be followed,
    as what transforms declare may be wider."""
    return biject_to(_set_of(fn))


def _set_of(fn: dist.Distribution) -> constraints.Constraint:
    support, ends = support_of(fn), ends_of(fn)
    if support is None or ends is None or support.kind != BOX or support.whole:
        return fn.support
    match support.lower == -math.inf, support.upper == math.inf:
        case True, True:
            box = constraints.real
        case False, True:
            box = constraints.greater_than(ends.lower)
        case True, False:
            box = constraints.less_than(ends.upper)
        case _:
            box = constraints.interval(ends.lower, ends.upper)
    return constraints.independent(box, fn.event_dim) if fn.event_dim else box


class ReadUnbounded(Messenger):
    """A program whose latents of some names are read in unconstrained space.

    Args:
        names: the latents. Those that a handler within the program has set, or masks, are left as they are.
    """

    def __init__(self, fn: Callable, names: Collection[str]):
        super().__init__(fn)
        self.names = frozenset(names)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put the unbounded latent, and the value that follows from it, in the place of one that is not."""
        if msg["type"] != "sample" or msg["name"] not in self.names or msg["is_observed"] or msg["value"] is not None:
            return
        if element_mask(msg["fn"]) is not None:
            return  # a mask would hide the transform's volume too
        transform = unconstrained(msg["fn"])
        u = numpyro.sample(unbounded(msg["name"]), Unbounded(msg["fn"], transform), infer=dict(msg["infer"]))
        msg["type"], msg["value"] = "deterministic", transform(u)
