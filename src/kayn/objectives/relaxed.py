"""Continuous relaxations of discrete latents: Concrete (Gumbel-softmax) bounds with pathwise gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, discrete
from numpyro.distributions.util import validate_sample

from kayn.errors import KaynError
from kayn.objectives.base import Call
from kayn.objectives.vi import VI
from kayn.programs.inside import Inside
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.options import Particles, Strategy
from kayn.support.validate import Positive, checked, fitted, shown


def _temperature(value: Any) -> Array | float:
    return value if isinstance(value, jax.core.Tracer) else fitted("temperature", value, Positive)


Temperature = Annotated[Any, _temperature]
"""A positive number, which may be traced."""


def lookup(table: Array, z: Array) -> Array:
    """`table[z]` for an integer z; for a relaxed z, a vector of shares,
    the mixture of the table's rows with those shares.

    With it one model serves exact, score-function and relaxed estimators.

    Args:
        table: [C, ...].
        z: integers [...], or floats [..., C].

    Raises:
        KaynError: either is no array of numbers, z holds truth values, or C differs.
    """
    table, z = _numbers("table", table), _numbers("z", z)
    count = table.shape[0] if table.ndim else 0
    if not count:
        raise KaynError(f"lookup: table has shape {table.shape}; it must be [C, ...], one row for each of C values")
    if z.dtype == bool:
        raise KaynError("lookup: z holds truth values; it must be integers, or floats [..., C] of shares")
    if not jnp.issubdtype(z.dtype, jnp.integer):
        if not z.ndim or z.shape[-1] != count:
            raise KaynError(
                f"lookup: z has shape {z.shape}; shares must be [..., {count}], one for each row of the table"
            )
    elif not isinstance(z, jax.core.Tracer) and (np.asarray(z) >= count).any() | (np.asarray(z) < -count).any():
        raise KaynError(f"lookup: z holds {int(np.abs(z).max())}; it must lie in 0..{count - 1}, the rows of the table")
    return table[z] if jnp.issubdtype(z.dtype, jnp.integer) else jnp.tensordot(z, table, 1)


def _numbers(name: str, value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise KaynError(f"lookup: {name} is {shown(value)}; it must be an array of numbers") from error


class RelaxedOneHot(dist.Distribution):
    """The Concrete distribution on the simplex (Maddison, Mnih & Teh; Jang, Gu & Poole, ICLR 2017).

    Args:
        temperature: lambda > 0.
        logits: [..., C].
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.simplex
    reparametrized_params = ["temperature", "logits"]  # noqa: RUF012

    def __init__(self, temperature: Array, logits: Array, *, validate_args: bool | None = None):
        self.temperature, self.logits = jnp.asarray(temperature), jnp.asarray(logits)
        shape = self.logits.shape
        super().__init__(batch_shape=shape[:-1], event_shape=shape[-1:], validate_args=validate_args)

    # within, classes are the first dimension: sums over a short last one are several times slower on CPUs

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Shares [*sample_shape, *batch, C]: the softmax of logits plus Gumbel noise, over the temperature."""
        shape = (*sample_shape, *self.logits.shape)
        noise = jax.random.gumbel(key, (shape[-1], *shape[:-1]), self.logits.dtype)
        noisy = (_classes_first(self.logits, len(shape)) + noise) / self.temperature
        return jnp.moveaxis(jax.nn.softmax(noisy, 0), 0, -1)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """Log density at shares [..., C], nats (Maddison, Mnih & Teh, 2017, definition 1); a share of zero counts as
        the least float."""
        count, rank = self.logits.shape[-1], max(jnp.ndim(value), self.logits.ndim)
        value, logits = _classes_first(value, rank), _classes_first(self.logits, rank)
        # a share of zero has the least positive number for its own; everything here is finite,
        # so logsumexp's own care would be in vain
        logs = jnp.log(value + float(jnp.finfo(value.dtype).tiny))
        tilted = logits - self.temperature * logs
        top = jax.lax.stop_gradient(jnp.max(tilted, 0))
        total = jnp.log(jnp.sum(jnp.exp(tilted - top), 0)) + top
        constant = jax.scipy.special.gammaln(float(count)) + (count - 1) * jnp.log(self.temperature)
        # the sum of logs is the same for the guide's and the prior's density, and the compiler forms it once
        return constant + jnp.sum(logits, 0) - (self.temperature + 1) * jnp.sum(logs, 0) - count * total


def _classes_first(x: Array, rank: int) -> Array:
    """[..., C] as [C, 1, ..., 1, ...], of a given rank."""
    return jnp.expand_dims(jnp.moveaxis(x, -1, 0), tuple(range(1, 1 + rank - jnp.ndim(x))))


class SharesOfOneHot(dist.Distribution):
    """The log density of a Categorical, taken linearly at relaxed values: no distribution,
    as it does not integrate to one."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.simplex

    def __init__(self, logits: Array, *, validate_args: bool | None = None):
        self.logits = jax.nn.log_softmax(jnp.asarray(logits), -1)
        shape = self.logits.shape
        super().__init__(batch_shape=shape[:-1], event_shape=shape[-1:], validate_args=validate_args)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """One-hot vectors [*sample_shape, *batch, C] of categorical draws."""
        return jax.nn.one_hot(
            jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape), self.logits.shape[-1]
        )

    def log_prob(self, value: Array) -> Array:
        """The shares' mean of the log probabilities, nats: value [..., C] to [...]."""
        return jnp.sum(value * self.logits, -1)


class SharesOfBernoulli(dist.Distribution):
    """The same for a Bernoulli."""

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self, logits: Array, *, validate_args: bool | None = None):
        self.logits = jnp.asarray(logits)
        super().__init__(batch_shape=self.logits.shape, validate_args=validate_args)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Zeros and ones [*sample_shape, *batch], as floats."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits), sample_shape + self.batch_shape).astype(float)

    def log_prob(self, value: Array) -> Array:
        """The log probabilities of one and zero, nats, weighted by the share and the rest."""
        return value * jax.nn.log_sigmoid(self.logits) + (1 - value) * jax.nn.log_sigmoid(-self.logits)


class Concrete(VI):
    """Minus log Z of the *relaxed* model, with pathwise gradients:
    Bernoulli and categorical latents become continuous in model and guide.

    E log Z is a lower bound on the relaxed model's log evidence, because the prior is relaxed too (Maddison, Mnih &
    Teh, ICLR 2017). It is not a bound on the discrete model's, and its gradient is biased for that by an amount that
    grows with the temperature.

    Categorical latents become vectors of shares; write `kayn.lookup(table, z)` in the model instead of `table[z]`.

    Args:
        temperature: of the guide, and of the prior unless `prior_temperature` is given. May be traced, for schedules.
    """

    hard_prior = False

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        temperature: Temperature = 0.5,
        prior_temperature: Temperature | None = None,
        **options: Any,
    ):
        super().__init__(num_particles, strategy, **options)
        self.temperature = temperature
        self.prior_temperature = temperature if prior_temperature is None else prior_temperature

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z of the relaxed model under the relaxed guide, in nats."""
        relaxed = replace(
            call,
            model=Relaxed(call.model, self.prior_temperature, self.hard_prior),
            guide=Relaxed(call.guide, self.temperature, False),
        )
        return super().objective(relaxed, rng_key, params)


class ConcreteHardPrior(Concrete):
    """As `kayn.Concrete`, but the prior's discrete density is taken at relaxed values, as in much published code.

    This is not a bound on anything: the two densities belong to different spaces.
    """

    hard_prior = True


class Relaxed(Inside):
    """Discrete latents of a program as relaxed ones."""

    def __init__(self, fn: Callable, temperature: Array, hard: bool):
        super().__init__(fn)
        self.temperature, self.hard = temperature, hard

    def change(self, msg: dict[str, Any]) -> None:
        """Put the relaxed distribution in the place of a discrete one that is not enumerated."""
        if msg["infer"].get("enumerate") != "parallel":
            relaxed = self._relaxed(msg["fn"])
            if relaxed is not None:
                msg["fn"] = relaxed

    def _relaxed(self, fn: dist.Distribution) -> dist.Distribution | None:
        if isinstance(fn, dist.Independent):
            inner = self._relaxed(fn.base_dist)
            return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, dist.ExpandedDistribution):
            inner = self._relaxed(fn.base_dist)
            return None if inner is None else inner.expand(fn.batch_shape)
        logits = discrete_logits(fn)
        if logits is None:
            return None
        if isinstance(fn, discrete.BernoulliProbs | discrete.BernoulliLogits):
            return SharesOfBernoulli(logits) if self.hard else dist.RelaxedBernoulliLogits(self.temperature, logits)
        return SharesOfOneHot(logits) if self.hard else RelaxedOneHot(self.temperature, logits)


RELAXABLE = (discrete.BernoulliProbs, discrete.BernoulliLogits, discrete.CategoricalProbs, discrete.CategoricalLogits)
"""Laws that have logits."""


def discrete_logits(fn: dist.Distribution) -> Array | None:
    """Logits of a Bernoulli [...] or Categorical [..., C]; None for what is none of `RELAXABLE`."""
    if isinstance(fn, discrete.BernoulliLogits | discrete.CategoricalLogits):
        return fn.logits
    if isinstance(fn, discrete.BernoulliProbs):
        return jnp.log(fn.probs) - jnp.log1p(-fn.probs)
    return jnp.log(fn.probs) if isinstance(fn, discrete.CategoricalProbs) else None
