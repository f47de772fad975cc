"""Normal families in unconstrained space, with independent coordinates or a full covariance,
and even draws from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ComposeTransform, IdentityTransform, Transform

from kayn.guides.cholesky import lower_cholesky
from kayn.guides.families import TINY, Family, Moments, Params, average
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced


@dataclass(frozen=True, eq=False)
class Gaussian(Family):
    """What the Normal families share: `z = transform(u)`, particles placed from standard normal noise.

    Their mean parameters come with `noise`, one over the effective number of particles that have gone into them.
    `moments` is plain arithmetic, so that NumPy parameters give NumPy moments, with nothing to compile.
    """

    transform: Transform = field(default_factory=IdentityTransform)

    @property
    def unconstrained_event_dim(self) -> int:
        """Event dimensions of u, which may be fewer than those of z: a Cholesky factor comes from a vector."""
        return self.event_dim - self.transform.codomain.event_dim + self.transform.domain.event_dim

    def base(self, params: Params) -> dist.Distribution:
        """The law of u."""
        raise NotImplementedError

    def distribution(self, params: Params) -> dist.Distribution:
        """The law of z: that of u, transformed; batch shape B, event shape E."""
        if isinstance(self.transform, IdentityTransform):
            return self.base(params)
        parts = list(self.transform.parts) if isinstance(self.transform, ComposeTransform) else [self.transform]
        return dist.TransformedDistribution(self.base(params), parts)

    def place(self, noise: Array, params: Params) -> Array:
        """Particles from standard normal noise: [num, coordinates] to [num, *B, *E]."""
        u = params["loc"] + self.spread(noise.reshape((-1, *jnp.shape(params["loc"]))), params)
        return u if isinstance(self.transform, IdentityTransform) else self.transform(u)

    def spread(self, noise: Array, params: Params) -> Array:
        """Noise with the covariance of u, mean zero: [K, *B, *unconstrained event]."""
        raise NotImplementedError

    def unconstrained(self, values: Array) -> Array:
        """u of particles: [K, *B, *E] to [K, *B, *unconstrained event], kept finite."""
        if isinstance(self.transform, IdentityTransform):
            # squares stay finite
            far = float(jnp.finfo(jnp.result_type(values, float)).max) ** 0.5 / 10
            return jnp.clip(values, -far, far)
        # a particle at the edge of a constrained support may map to infinity
        return jnp.clip(self.transform.inv(values), -1e6, 1e6)

    @property
    def unit(self) -> float:
        """The size of a step in u that matters wherever u is: none on the real line, whose units are the user's,
        one elsewhere."""
        return 0.0 if isinstance(self.transform, IdentityTransform) else 1.0

    def expect(self, values: Array, weights: Array) -> Moments:
        """Mean parameters of u under weighted particles z: values [K, *B, *E], weights [K, *B, ones] summing to one
        over K."""
        u = self.unconstrained(values)
        rank = u.ndim - self.unconstrained_event_dim
        return self.unconstrained_moments(
            u, weights.reshape((*weights.shape[:rank], *(1,) * self.unconstrained_event_dim))
        )

    def unconstrained_moments(self, u: Array, weights: Array) -> Moments:
        """Mean parameters under weighted u [K, *B, *unconstrained event]; weights have ones in the event's places."""
        raise NotImplementedError

    def standard(self, shape: tuple[int, ...], dtype: Any) -> Params:
        """The parameters of standard Normals, u being of that shape."""
        return self.scaled(np.zeros(shape, dtype), np.ones(shape, dtype))

    def starts(self, u: Array) -> tuple[Params, Params | None]:
        """Parameters to start from: median and scale by the interquartile range of a few draws of the prior,
        [S, *B, *unconstrained event].

        Where the prior is so wide that it says little, and does not exclude zero, users rarely mean its extent: there
        the start is near zero with a scale of 3, in their units. The second start, if that differs, is the prior's
        extent there too; the data say which of the two is better.
        """
        # plain NumPy for plain arrays: nothing to compile
        xp: Any = jnp if is_traced(u) else np
        u = xp.asarray(u)
        u = xp.where(xp.isfinite(u), u, 0.0)
        low, middle, high = xp.quantile(u, xp.array([0.25, 0.5, 0.75]), axis=0).astype(u.dtype)
        spread = (high - low) / 1.35
        # a latent on the whole real line has units of its own, in which its prior may be narrow
        least = 0.1 if self.unit else xp.where(spread > 0, 0.0, 0.1)
        spread = xp.maximum(spread, least).astype(u.dtype)
        vague = (spread > WIDE) & (xp.abs(middle) < 3 * spread)
        wide = self.scaled(middle, spread)
        if not is_traced(vague) and not vague.any():
            return wide, None
        return self.scaled(
            xp.where(vague, xp.clip(middle, -FAR, FAR), middle), xp.where(vague, WIDE, spread).astype(u.dtype)
        ), wide

    def scaled(self, loc: Array, scale: Array) -> Params:
        """Parameters of independent coordinates."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Normal(Gaussian):
    """Independent coordinates of u.

    Mean parameters are kept as mean and variance; their blend equals that of E u and E u^2 without the cancellation.
    """

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def base(self, params: Params) -> dist.Distribution:
        """Independent Normals, those of one event of u together."""
        return dist.Normal(params["loc"], params["scale"], validate_args=False).to_event(self.unconstrained_event_dim)

    def spread(self, noise: Array, params: Params) -> Array:
        """Noise [K, *B, *unconstrained event] times the scales."""
        return params["scale"] * noise

    def widened(self, params: Params, factor: Array) -> Params:
        """Scales times the root of `factor`, which may differ by coordinate."""
        return {**params, "scale": params["scale"] * np.sqrt(factor)}

    def moments(self, params: Params) -> Moments:
        """Mean and variance by coordinate; a member that no particles have gone into has no noise."""
        return {"mean": params["loc"], "variance": params["scale"] ** 2, "noise": 0 * params["scale"]}

    def unconstrained_moments(self, u: Array, weights: Array) -> Moments:
        """Mean and variance by coordinate, and the noise of both, one over the effective number of particles."""
        mean = average(weights, u)
        return {"mean": mean, "variance": average(weights, (u - mean) ** 2), "noise": _noise(weights, mean)}

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """Moments of the mixture `(1 - rate) old + rate new`, with new variances corrected for few particles
        (`_correction`)."""
        step = new["mean"] - old["mean"]
        within = new["variance"] * _correction(new["noise"], rate)
        return {
            "mean": old["mean"] + rate * step,
            "variance": (1 - rate) * old["variance"] + rate * within + rate * (1 - rate) * step**2,
            "noise": _blend_noise(old["noise"], new["noise"], rate),
        }

    def from_moments(self, moments: Moments, unit: Array | float | None = None) -> Params:
        """See `Family.from_moments`; `unit` is that of every coordinate, by default the family's own."""
        floor = _least_variance(moments["mean"], self.unit if unit is None else unit)
        return {"loc": moments["mean"], "scale": jnp.sqrt(jnp.maximum(moments["variance"], floor))}

    def scaled(self, loc: Array, scale: Array) -> Params:
        """Parameters with these locations and scales."""
        return {"loc": loc, "scale": scale}


@dataclass(frozen=True, eq=False)
class MultivariateNormal(Gaussian):
    """A full covariance of u, which has one event dimension.

    Correlations estimated from few particles are shrunk by what their own noise explains (Schaefer & Strimmer, A
    shrinkage approach to large-scale covariance matrix estimation, 2005), so that this family falls back to independent
    coordinates where it cannot do better.
    """

    event_dim: int = 1

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale_tril": lower_cholesky,
    }
    laws: ClassVar[tuple[type, ...]] = (dist.MultivariateNormal,)

    def base(self, params: Params) -> dist.Distribution:
        """The multivariate Normal of u, with one event dimension."""
        return dist.MultivariateNormal(params["loc"], scale_tril=params["scale_tril"], validate_args=False)

    def spread(self, noise: Array, params: Params) -> Array:
        """Noise [K, *B, E] times the Cholesky factors [*B, E, E]."""
        return jnp.einsum("...ij,k...j->k...i", params["scale_tril"], noise)

    def widened(self, params: Params, factor: float) -> Params:
        """Cholesky factors times the root of `factor`."""
        return {**params, "scale_tril": params["scale_tril"] * math.sqrt(factor)}

    def moments(self, params: Params) -> Moments:
        """Mean [*B, E] and covariance [*B, E, E]; a member that no particles have gone into has no noise."""
        tril = params["scale_tril"]
        return {"mean": params["loc"], "covariance": tril @ tril.swapaxes(-1, -2), "noise": 0 * params["loc"][..., 0]}

    def unconstrained_moments(self, u: Array, weights: Array) -> Moments:
        """Mean [*B, E] and covariance [*B, E, E] of weighted u, and their noise [*B], one over the effective number."""
        mean = average(weights, u)
        # square roots on both sides: no [K, *B, E, E], and a result that is symmetric to the last bit
        scaled = jnp.where(weights > 0, jnp.sqrt(weights) * (u - mean), 0.0)
        covariance = jnp.einsum("k...i,k...j->...ij", scaled, scaled)
        return {"mean": mean, "covariance": covariance, "noise": _noise(weights[..., 0], mean[..., 0])}

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """Moments of the mixture `(1 - rate) old + rate new`, with new covariances corrected for few particles
        (`_correction`)."""
        step = new["mean"] - old["mean"]
        outer = step[..., :, None] * step[..., None, :]
        within = new["covariance"] * _correction(new["noise"], rate)[..., None, None]
        return {
            "mean": old["mean"] + rate * step,
            "covariance": (1 - rate) * old["covariance"] + rate * within + rate * (1 - rate) * outer,
            "noise": _blend_noise(old["noise"], new["noise"], rate),
        }

    def from_moments(self, moments: Moments, unit: Array | float | None = None) -> Params:
        """Location and Cholesky factor; correlations are shrunk by the share of their squares that noise explains.

        `unit` is that of every coordinate, by default the family's own.

        Schaefer & Strimmer (2005): the share is the sum of the correlations' sampling variances over that of their
        squares, between `GUARD` and one (`kept`).
        """
        covariance = moments["covariance"]
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        floor = _least_variance(moments["mean"], self.unit if unit is None else unit)
        scale = jnp.sqrt(jnp.maximum(variance, floor))
        eye = jnp.eye(scale.shape[-1], dtype=scale.dtype)
        correlation = (covariance / (scale[..., :, None] * scale[..., None, :])) * (1 - eye)
        return {
            "loc": moments["mean"],
            "scale_tril": scale[..., :, None] * jnp.linalg.cholesky(self.shrunk(correlation, moments["noise"]) + eye),
        }

    def shrunk(self, correlation: Array, noise: Array) -> Array:
        """Correlations [*B, E, E] off the diagonal without the part that noise [*B] explains."""
        return kept(correlation, noise, 1 - jnp.eye(correlation.shape[-1], dtype=correlation.dtype)) * correlation

    def scaled(self, loc: Array, scale: Array) -> Params:
        """Parameters with these locations [*B, E] and scales, without correlations."""
        return {"loc": loc, "scale_tril": scale[..., None] * np.eye(scale.shape[-1], dtype=scale.dtype)}


def kept(correlation: Array, noise: Array, variances: Array, target: Array | float = 0.0) -> Array:
    """The share of correlations' distance from a target that is not noise, [*B, 1, 1].

    Args:
        correlation: [*B, E, E], zero on the diagonal; `target` likewise.
        noise: [*B], one over the effective number of particles.
        variances: sampling variances of the correlations in units of those of single ones, zero on the diagonal.
    """
    squares = jnp.sum((correlation - target) ** 2, (-2, -1))
    spurious = noise * jnp.sum((1 - jnp.minimum(correlation**2, 1.0)) ** 2 * variances, (-2, -1))
    tiny = jnp.finfo(correlation.dtype).tiny
    return (1 - jnp.clip(spurious / jnp.maximum(squares, tiny), GUARD, 1.0))[..., None, None]


GUARD = 1e-4
"""Least shrinkage of correlations: keeps the covariance of few particles, which span few directions,
positive definite."""


WIDE, FAR = 3.0, 10.0
"""Scale and distance from zero at which a guide starts where the prior is vague, see `Gaussian.starts`."""


def _least_variance(mean: Array, unit: Array | float) -> Array:
    """What a guide's variance is kept above: particles closer than that are the same floating-point number,
    or nearly."""
    return (TINY * (unit + jnp.abs(mean))) ** 2 + jnp.finfo(jnp.result_type(mean)).tiny


def _noise(weights: Array, mean: Array) -> Array:
    return jnp.broadcast_to(jnp.sum(weights**2, 0), mean.shape)


def _blend_noise(old: Array, new: Array, rate: Array) -> Array:
    return (1 - rate) ** 2 * old + rate**2 * new


def _correction(noise: Array, rate: Array) -> Array:
    """Factor on the variance within E = 1 / noise effective particles,
    so that blending does not shrink it step by step.

    Particles from a guide of variance v, weighed without regard to their values, have on average a variance of v (1 -
    1/E) within and a squared step of v / E. Their blend at rate r, v (1 - r^2 / E), becomes v with this factor.
    """
    noise = jnp.minimum(noise, 0.5)
    return (1 - (1 - rate) * noise) / (1 - noise)
