"""A Normal in unconstrained space of which one tail may be as long as an exponential law's.

A positive latent whose density does not vanish at zero (a rate that may be nought, a scale) has an exponential tail in
log space, and so has a share near nought or one in logit space. A Normal is too light there: each of a thousand groups
lacks a little of its evidence, which no diagnostic by latent sees, and together they pull the population level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from kayn.guides.families import Moments, Params, average
from kayn.guides.normal import Normal
from kayn.support.arrays import Array, PyTree

LONGEST = 2.0
"""Largest length of a tail, with which it is an exponential law's of one standard deviation."""

OF_TAILS = frozenset(("skew", "third"))
"""The parameter and the mean parameter that a Normal does not have."""


@dataclass(frozen=True, eq=False)
class Skewed(Normal):
    """Independent coordinates `u = loc + scale * h(noise)`, see `lengthened` for h.

    Mean parameters are mean, variance and third central moment; `loc` and `scale` are those of the Normal that is left
    without `skew`, not mean and standard deviation.

    Attributes:
        may: which coordinates may have a longer tail.
    """

    may: Any = True

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "skew": constraints.interval(-LONGEST, LONGEST),
    }

    def base(self, params: Params) -> dist.Distribution:
        """Independent skewed Normals, those of one event of u together."""
        standard = dist.Normal(jnp.zeros_like(params["loc"]), 1.0, validate_args=False)
        steps = [Lengthened(params["skew"]), dist.transforms.AffineTransform(params["loc"], params["scale"])]
        return dist.TransformedDistribution(standard, steps).to_event(self.unconstrained_event_dim)

    def spread(self, noise: Array, params: Params) -> Array:
        """Noise [K, *B, *unconstrained event] with its tail, times the scales."""
        return params["scale"] * lengthened(noise, params["skew"])

    def moments(self, params: Params) -> Moments:
        """Mean, variance and third central moment by coordinate; a member that no particles have gone into has no
        noise."""
        scale = params["scale"]
        mean, variance, third = central(params["skew"])
        return {
            "mean": params["loc"] + scale * mean,
            "variance": scale**2 * variance,
            "third": scale**3 * third,
            "noise": 0 * scale,
        }

    def unconstrained_moments(self, u: Array, weights: Array) -> Moments:
        """Mean, variance and third central moment by coordinate, and the noise of them, one over the effective number
        of particles."""
        found = super().unconstrained_moments(u, weights)
        return {**found, "third": average(weights, (u - found["mean"]) ** 3)}

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """Moments of the mixture `(1 - rate) old + rate new`, with new variances corrected for few particles."""
        mixed = super().blend(old, new, rate)
        step = new["mean"] - old["mean"]

        def about(own: Moments, off: Array) -> Array:
            return own["third"] + 3 * off * own["variance"] + off**3

        third = (1 - rate) * about(old, -rate * step) + rate * about(new, (1 - rate) * step)
        return {**mixed, "third": third}

    def from_moments(self, moments: Moments, unit: Array | float | None = None) -> Params:
        """The member with these moments, as far as the skewness is more than noise and within reach.

        Skewness is shrunk by the share of its square that noise explains, six over the effective number of particles.
        """
        plain = super().from_moments(moments, unit)
        skewness = jnp.clip(moments["third"] / plain["scale"] ** 3, -10.0, 10.0)
        explained = 6 * moments["noise"] / jnp.maximum(skewness**2, jnp.finfo(skewness.dtype).tiny)
        skewness = skewness * (1 - jnp.minimum(explained, 1.0))
        table = jnp.asarray(SKEWNESS, skewness.dtype), jnp.asarray(LENGTHS, skewness.dtype)
        skew = jnp.where(self.may, jnp.sign(skewness) * jnp.interp(jnp.abs(skewness), *table), 0.0)
        mean, variance, _ = central(skew)
        scale = plain["scale"] / jnp.sqrt(variance)
        return {"loc": plain["loc"] - scale * mean, "scale": scale, "skew": skew}

    def scaled(self, loc: Array, scale: Array) -> Params:
        """Parameters with these locations and scales, without a longer tail."""
        return {"loc": loc, "scale": scale, "skew": 0 * scale}


def lengthened(x: Array, skew: Array) -> Array:
    """`x + skew x^2 / 2` where x and skew have one sign, x elsewhere.

    The quantiles of a Normal law grow as the root of those of an exponential one: their square gives a tail like its.
    """
    return x * (1 + _beyond(x, skew) / 2)


def _beyond(x: Array, skew: Array) -> Array:
    return jnp.maximum(skew * x, 0.0)


def central(skew: Array) -> tuple[Array, Array, Array]:
    """Mean, variance and third central moment of `lengthened` standard normal noise. Plain arithmetic.

    Those about zero are sums of the moments of half a Normal law.
    """
    length = abs(skew)
    mean = skew / 4
    second = 1 + ROOT * length + 3 / 8 * length**2
    third = skew * (9 / 4 + 3 * ROOT * length + 15 / 16 * length**2)
    return mean, second - mean**2, third - 3 * mean * second + 2 * mean**3


ROOT = math.sqrt(2 / math.pi)

LENGTHS = np.linspace(0.0, LONGEST, 65)
_, _VARIANCE, _THIRD = central(LENGTHS)
SKEWNESS = _THIRD / _VARIANCE**1.5
"""Skewness of the members with these lengths, which grows with them."""


class Lengthened(Transform):
    """The transform `lengthened` of the real line, for coordinates each with a skew of its own."""

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, skew: Array):
        self.skew = skew

    def __call__(self, x: Array) -> Array:
        """x with a longer tail: shapes broadcast."""
        return lengthened(x, self.skew)

    def _inverse(self, y: Array) -> Array:
        return 2 * y / (1 + jnp.sqrt(1 + 2 * _beyond(y, self.skew)))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """log of the slope at x, in nats: the shape of x."""
        return jnp.log1p(_beyond(x, self.skew))

    def tree_flatten(self) -> tuple[Any, Any]:
        """The skew, as a pytree."""
        return (self.skew,), (("skew",), {})

    def __eq__(self, other: object) -> bool:
        """Whether both have the same skew; not for traced ones."""
        return isinstance(other, Lengthened) and bool(jnp.array_equal(self.skew, other.skew))

    __hash__ = None  # type: ignore[assignment]
