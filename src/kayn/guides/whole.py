"""Guides of discrete latents that are not summed out: few values have a probability each, whole numbers a Normal in
unconstrained space that is rounded down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from kayn.densities.special import LOG_ROOT_2PI
from kayn.densities.tails import log_normal_mass
from kayn.errors import GuideError
from kayn.guides.families import Bernoulli, Categorical, Family, Moments, Params, average
from kayn.guides.normal import Normal
from kayn.programs.sites import Site
from kayn.programs.supports import BOX
from kayn.support.arrays import Array, KeyArray

MOST_VALUES = 32
"""Values from zero on, up to which each has a probability of its own; more of them are whole numbers in an order."""
THIN = 1e-2
"""Length, in standard deviations, below which an interval has the mass of its middle's density; rounding of its ends
counts for little then."""
LARGEST = 2.0**30
"""Whole numbers are kept below, which 32 bits hold."""


@dataclass(frozen=True)
class Line:
    """How a box of whole numbers lies on the real line: number k is the interval from `start(k)` to `start(k + 1)`.

    Attributes:
        lower, upper: ends of the box, infinite ones among them. With both the map is the log odds of the place in
            between, with a lower one the logarithm of what is above it, else the identity.
    """

    lower: float
    upper: float

    def start(self, value: Array) -> Array:
        """Where the interval of a whole number begins."""
        if math.isinf(self.lower):
            return value
        above = jnp.log(value - self.lower)
        return above if math.isinf(self.upper) else above - jnp.log(self.upper + 1 - value)

    def width(self, value: Array) -> Array:
        """Length of its interval, which the ends of a short one do not tell."""
        if math.isinf(self.lower):
            return jnp.ones_like(value)
        above = jnp.log1p(1 / (value - self.lower))
        return above if math.isinf(self.upper) else above - jnp.log1p(-1 / (self.upper + 1 - value))

    def middle(self, value: Array) -> tuple[Array, Array]:
        """A point within its interval, and the interval's length were the map linear: finite at both ends."""
        half = value + 0.5
        if math.isinf(self.lower):
            return half, jnp.ones_like(half)
        above, below = half - self.lower, self.upper + 1 - half
        if math.isinf(self.upper):
            return jnp.log(above), 1 / above
        return jnp.log(above) - jnp.log(below), 1 / above + 1 / below

    def number(self, u: Array) -> Array:
        """The whole number in whose interval a point lies."""
        if math.isinf(self.lower):
            found = u
        elif math.isinf(self.upper):
            found = self.lower + jnp.exp(jnp.minimum(u, math.log(LARGEST)))
        else:
            found = self.lower + (self.upper + 1 - self.lower) * jax.nn.sigmoid(u)
        low, high = max(self.lower, -LARGEST), min(self.upper, LARGEST)
        return jnp.clip(jnp.floor(found), low, high).astype(int)


class RoundedNormal(dist.Distribution):
    """A whole number: a Normal on the line of its box, rounded down. Without bounds, a Normal rounded down."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    reparametrized_params: ClassVar = ["loc", "scale"]
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("line",)

    def __init__(self, loc: Array, scale: Array, line: Line, *, validate_args: bool | None = None):
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        self.line = line
        super().__init__(jnp.shape(self.loc), (), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The box."""
        return constraints.integer_interval(self.line.lower, self.line.upper)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws [*sample_shape, *batch]."""
        noise = jax.random.normal(key, (*sample_shape, *self.batch_shape), jnp.result_type(float))
        return self.line.number(self.loc + self.scale * noise)

    def log_prob(self, value: Array) -> Array:
        """Log probability of whole numbers within the box, nats: the mass of their intervals."""
        value = jnp.asarray(value, jnp.result_type(float))
        first, last = value <= self.line.lower, value >= self.line.upper
        # numbers within, so that derivatives at infinite ends are finite
        low = self.line.start(jnp.where(first, value + 1, value))
        high = self.line.start(jnp.where(last, value, value + 1))
        width = self.line.width(jnp.where(last, value - 1, jnp.where(first, value + 1, value))) / self.scale
        a, b, endless = (low - self.loc) / self.scale, (high - self.loc) / self.scale, first | last
        thin = (width < THIN) & ~endless
        wide = log_normal_mass(
            jnp.where(first, -jnp.inf, jnp.where(thin, -1.0, a)),
            jnp.where(last, jnp.inf, jnp.where(thin, 1.0, b)),
            jnp.where(endless, jnp.inf, jnp.where(thin, 2.0, width)),
        )
        return jnp.where(thin, jnp.log(width) - ((a + b) / 2) ** 2 / 2 - LOG_ROOT_2PI, wide)


@dataclass(frozen=True, eq=False)
class Whole(Normal):
    """Whole numbers on the line of their box, a Normal in unconstrained space rounded down.

    Its moments are those of u, which is spread over a number's interval: a latent that is known for certain keeps
    particles at the numbers next to it.
    """

    line: Line = field(default_factory=lambda: Line(0, math.inf))

    def distribution(self, params: Params) -> dist.Distribution:
        """The law of the numbers: batch shape B, event shape E."""
        return RoundedNormal(params["loc"], params["scale"], self.line, validate_args=False).to_event(self.event_dim)

    def place(self, noise: Array, params: Params) -> Array:
        """Particles from standard normal noise: [num, coordinates] to [num, *B, *E]."""
        return self.line.number(super().place(noise, params))

    @property
    def unit(self) -> float:
        """The size of a step in u that matters: one."""
        return 1.0

    def expect(self, values: Array, weights: Array) -> Moments:
        """Mean and variance of u by coordinate under weighted numbers, and their noise."""
        u, width = self.line.middle(values.astype(jnp.result_type(float)))
        found = self.unconstrained_moments(u, weights)
        return {**found, "variance": found["variance"] + average(weights, width**2 / 12)}

    def starts(self, values: Array) -> tuple[Params, Params | None]:
        """See `Gaussian.starts`, of draws as they are."""
        return super().starts(self.line.middle(jnp.asarray(values, jnp.result_type(float)))[0])


def discrete_family(site: Site) -> Family:
    """The family of a discrete latent that is drawn.

    Raises:
        GuideError: there is none.
    """
    box = site.support
    if box is None or box.kind != BOX:
        raise GuideError(
            f"latent {site.name!r} follows {site.family}, whose values depend on each other, so that kayn has neither "
            "a sum over them nor a guide for them; pass a guide with a discrete site for it, or split it into latents "
            "of one number each"
        )
    # ends that are computed may be anywhere beyond
    lower = -math.inf if box.lower is None else box.lower
    upper = math.inf if box.upper is None else box.upper
    if (lower, upper) == (0, 1):
        return Bernoulli(event_dim=site.event_dim)
    if lower == 0 and upper < MOST_VALUES:
        return Categorical(event_dim=site.event_dim, num_values=int(upper) + 1)
    return Whole(event_dim=site.event_dim, line=Line(lower, upper))


def discrete_start(family: Family, shape: tuple[int, ...]) -> Params:
    """Parameters to begin with, before there are draws of the prior; `shape` over all elements."""
    dtype = jnp.result_type(float)
    if isinstance(family, Whole):
        return family.standard(shape, dtype)
    if isinstance(family, Categorical):
        return {"probs": jnp.full((*shape, family.num_values), 1 / family.num_values, dtype)}
    return {"probs": jnp.full(shape, 0.5, dtype)}


def between(family: Family, start: Params, values: Array) -> Params:
    """Parameters half of those given, half of the shares of values among draws of the prior [S, *B, *E]."""
    values = jnp.asarray(values)
    weights = jnp.full(values.shape, 1 / len(values), jnp.result_type(float))
    return family.from_moments(family.blend(family.moments(start), family.expect(values, weights), jnp.asarray(0.5)))
