"""Exponential families for factorised guides: mean parameters, and the way back from them.

QEM fits a guide by matching moments (Heap, Bowyer & Aitchison, Massively parallel expectation maximization for
approximate posteriors, 2025): the family member whose mean parameters equal the posterior's estimated ones. Every
family offers the same functions. Shapes: B the site's batch shape, E its event shape, K particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, polygamma
from numpyro.distributions import constraints

from kayn.support.arrays import Array

Moments = Mapping[str, Array]
Params = Mapping[str, Array]

TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Family:
    """Base of all families. `event_dim` is the site's number of event dimensions."""

    event_dim: int = 0

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {}
    """Constraint of every parameter, by name."""
    laws: ClassVar[tuple[type, ...]] = ()
    """NumPyro's classes of its members, which have the parameters as attributes."""

    @classmethod
    def of(cls, law: dist.Distribution, event_dim: int) -> tuple[Family, Params]:
        """The family and parameters of a distribution without wrappers, one of `laws`."""
        return cls(event_dim=event_dim), {name: getattr(law, name) for name in cls.parameters}

    def distribution(self, params: Params) -> dist.Distribution:
        """The guide's distribution: batch shape B, event shape E."""
        raise NotImplementedError

    def moments(self, params: Params) -> Moments:
        """Mean parameters of the member with these parameters."""
        raise NotImplementedError

    def expect(self, values: Array, weights: Array) -> Moments:
        """Mean parameters under weighted particles: values [K, *B, *E], weights [K, *B, ones] summing to one over K."""
        raise NotImplementedError

    def blend(self, old: Moments, new: Moments, rate: Array) -> Moments:
        """`(1 - rate) old + rate new`."""
        return jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, dict(old), dict(new))

    def from_moments(self, moments: Moments) -> Params:
        """Parameters of the member with these mean parameters; guarded, so that any finite moments give a valid one."""
        raise NotImplementedError

    def widened(self, params: Params, factor: Array) -> Params:
        """Parameters of a proposal with `factor` times the variance; unchanged where a family has no such member."""
        return params


def average(weights: Array, values: Array) -> Array:
    """The weighted sum over particles: [K, ...] and [K, ...] to [...]; a value without weight may be anything, NaN
    included."""
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0), 0)


@dataclass(frozen=True, eq=False)
class _Elementwise(Family):
    """Families over one real or whole number per coordinate."""

    def member(self, params: Params) -> dist.Distribution:
        raise NotImplementedError

    def distribution(self, params: Params) -> dist.Distribution:
        return self.member(params).to_event(self.event_dim)


@dataclass(frozen=True, eq=False)
class Gamma(_Elementwise):
    """Mean parameters E z and E log z; the concentration solves `log a - digamma(a) = log E z - E log z`."""

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    laws: ClassVar[tuple[type, ...]] = (dist.Gamma,)

    def member(self, params: Params) -> dist.Distribution:
        """The gamma law of these parameters, without event dimensions."""
        return dist.Gamma(params["concentration"], params["rate"])

    def moments(self, params: Params) -> Moments:
        """`E z = a / b` and `E log z = digamma(a) - log b`, each [*B, *E]."""
        a, b = params["concentration"], params["rate"]
        return {"mean": a / b, "log": digamma(a) - jnp.log(b)}

    def expect(self, values: Array, weights: Array) -> Moments:
        """Weighted means of z and log z over particles, each [*B, *E]; values are kept finite and above zero."""
        safe = jnp.clip(values, jnp.finfo(values.dtype).tiny, jnp.finfo(values.dtype).max / 1e8)
        return {"mean": average(weights, safe), "log": average(weights, jnp.log(safe))}

    def from_moments(self, moments: Moments) -> Params:
        """The concentration by six Newton steps in its reciprocal (Minka, 2002), the rate from the mean."""
        mean = jnp.maximum(moments["mean"], 1e-30)
        gap = jnp.clip(jnp.log(mean) - moments["log"], 1e-6, 1e3)
        a = (3 - gap + jnp.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)

        def newton(_: int, a: Array) -> Array:
            # a step in 1/a (Minka, Estimating a gamma distribution, 2002)
            slope = a**2 * (1 / a - polygamma(1, a))
            return 1 / jnp.maximum(1 / a + (jnp.log(a) - digamma(a) - gap) / slope, 1e-8)

        a = jax.lax.fori_loop(0, 6, newton, a)
        return {"concentration": a, "rate": a / mean}


def inverse_digamma(y: Array) -> Array:
    """The x with `digamma(x) = y`, by Newton steps from Minka's starting point
    (Estimating a Dirichlet distribution, 2000)."""
    x = jnp.where(y >= -2.22, jnp.exp(jnp.minimum(y, 50.0)) + 0.5, -1 / (y - digamma(1.0)))
    return jax.lax.fori_loop(0, 5, lambda _, x: jnp.maximum(x - (digamma(x) - y) / polygamma(1, x), TINY), x)


def dirichlet_from_log_moments(log_mean: Array) -> Array:
    """The concentration with `digamma(a_i) - digamma(sum a) = log_mean_i`: [..., C]."""

    def fixed_point(_: int, a: Array) -> Array:
        return inverse_digamma(log_mean + digamma(jnp.sum(a, -1, keepdims=True)))

    def newton(_: int, a: Array) -> Array:
        # the Hessian's diagonal plus constant inverted in closed form; in log space to stay positive
        total = jnp.sum(a, -1, keepdims=True)
        gradient = digamma(total) - digamma(a) + log_mean
        diagonal, constant = -polygamma(1, a), polygamma(1, total)
        shift = jnp.sum(gradient / diagonal, -1, keepdims=True) / (
            1 / constant + jnp.sum(1 / diagonal, -1, keepdims=True)
        )
        step = (gradient - shift) / diagonal
        return a * jnp.exp(jnp.clip(-step / a, -1.0, 1.0))

    a = jax.lax.fori_loop(0, 5, fixed_point, jnp.ones_like(log_mean))
    return jnp.clip(jax.lax.fori_loop(0, 10, newton, a), 1e-4, 1e7)


@dataclass(frozen=True, eq=False)
class Dirichlet(Family):
    """Mean parameters E log z."""

    event_dim: int = 1

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "concentration": constraints.independent(constraints.positive, 1)
    }
    laws: ClassVar[tuple[type, ...]] = (dist.Dirichlet,)

    def distribution(self, params: Params) -> dist.Distribution:
        """The Dirichlet law of these parameters: batch shape B, event shape E."""
        return dist.Dirichlet(params["concentration"])

    def moments(self, params: Params) -> Moments:
        """`E log z_i = digamma(a_i) - digamma(sum a)`: [*B, E]."""
        a = params["concentration"]
        return {"log": digamma(a) - digamma(jnp.sum(a, -1, keepdims=True))}

    def expect(self, values: Array, weights: Array) -> Moments:
        """Weighted means of log z over particles: [*B, E]; a share of zero counts as the least positive float."""
        return {"log": average(weights, jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny)))}

    def from_moments(self, moments: Moments) -> Params:
        """The concentration with these means of log z (`dirichlet_from_log_moments`)."""
        return {"concentration": dirichlet_from_log_moments(moments["log"])}


@dataclass(frozen=True, eq=False)
class Beta(_Elementwise):
    """Mean parameters E log z and E log (1 - z)."""

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    laws: ClassVar[tuple[type, ...]] = (dist.Beta,)

    def member(self, params: Params) -> dist.Distribution:
        """The beta law of these parameters, without event dimensions."""
        return dist.Beta(params["concentration1"], params["concentration0"])

    def moments(self, params: Params) -> Moments:
        """`E log z = digamma(a) - digamma(a + b)`, and the same for 1 - z with b: each [*B, *E]."""
        a, b = params["concentration1"], params["concentration0"]
        return {"log": digamma(a) - digamma(a + b), "log1m": digamma(b) - digamma(a + b)}

    def expect(self, values: Array, weights: Array) -> Moments:
        """Weighted means of log z and log (1 - z) over particles, each [*B, *E]; values are kept off the ends by
        `TINY`."""
        safe = jnp.clip(values, TINY, 1 - TINY)
        return {"log": average(weights, jnp.log(safe)), "log1m": average(weights, jnp.log1p(-safe))}

    def from_moments(self, moments: Moments) -> Params:
        """Both concentrations, as a Dirichlet law of two shares."""
        both = dirichlet_from_log_moments(jnp.stack([moments["log"], moments["log1m"]], -1))
        return {"concentration1": both[..., 0], "concentration0": both[..., 1]}


@dataclass(frozen=True, eq=False)
class _Mean(_Elementwise):
    """Families whose only mean parameter is E z."""

    def expect(self, values: Array, weights: Array) -> Moments:
        return {"mean": average(weights, values * 1.0)}


@dataclass(frozen=True, eq=False)
class Bernoulli(_Mean):
    """Mean parameter: the probability of one."""

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {"probs": constraints.unit_interval}
    laws: ClassVar[tuple[type, ...]] = (dist.BernoulliProbs, dist.BernoulliLogits)

    def member(self, params: Params) -> dist.Distribution:
        """The Bernoulli law of these parameters, without event dimensions."""
        return dist.Bernoulli(probs=params["probs"])

    def moments(self, params: Params) -> Moments:
        """The probability of one: [*B, *E]."""
        return {"mean": params["probs"]}

    def from_moments(self, moments: Moments) -> Params:
        """The probability, kept a thousandth off zero and one so that no value is given up for good."""
        return {"probs": jnp.clip(moments["mean"], 1e-3, 1 - 1e-3)}


@dataclass(frozen=True, eq=False)
class Poisson(_Mean):
    """Mean parameter: the rate."""

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {"rate": constraints.positive}
    laws: ClassVar[tuple[type, ...]] = (dist.Poisson,)

    def member(self, params: Params) -> dist.Distribution:
        """The Poisson law of these parameters, without event dimensions."""
        return dist.Poisson(params["rate"])

    def moments(self, params: Params) -> Moments:
        """The rate: [*B, *E]."""
        return {"mean": params["rate"]}

    def from_moments(self, moments: Moments) -> Params:
        """The rate, at least a thousandth."""
        return {"rate": jnp.maximum(moments["mean"], 1e-3)}


@dataclass(frozen=True, eq=False)
class Exponential(_Mean):
    """Mean parameter: one over the rate."""

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {"rate": constraints.positive}
    laws: ClassVar[tuple[type, ...]] = (dist.Exponential,)

    def member(self, params: Params) -> dist.Distribution:
        """The exponential law of these parameters, without event dimensions."""
        return dist.Exponential(params["rate"])

    def moments(self, params: Params) -> Moments:
        """One over the rate: [*B, *E]."""
        return {"mean": 1 / params["rate"]}

    def from_moments(self, moments: Moments) -> Params:
        """One over the mean."""
        return {"rate": 1 / jnp.maximum(moments["mean"], 1e-30)}


@dataclass(frozen=True, eq=False)
class Categorical(Family):
    """Mean parameters: the probability of every one of `num_values` values."""

    num_values: int = 2

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {"probs": constraints.simplex}
    laws: ClassVar[tuple[type, ...]] = (dist.CategoricalProbs, dist.CategoricalLogits)

    @classmethod
    def of(cls, law: dist.Distribution, event_dim: int) -> tuple[Family, Params]:
        """The family of as many values as the distribution has, and their probabilities."""
        return cls(event_dim=event_dim, num_values=law.probs.shape[-1]), {"probs": law.probs}

    def distribution(self, params: Params) -> dist.Distribution:
        """The categorical law of these parameters: batch shape B, event shape E."""
        return dist.Categorical(probs=params["probs"]).to_event(self.event_dim)

    def moments(self, params: Params) -> Moments:
        """The probabilities: [*B, *E, num_values]."""
        return {"probs": params["probs"]}

    def expect(self, values: Array, weights: Array) -> Moments:
        """Weighted shares of the values over particles: [*B, *E, num_values]."""
        return {"probs": average(weights[..., None], jax.nn.one_hot(values, self.num_values))}

    def from_moments(self, moments: Moments) -> Params:
        """The probabilities, each at least a thousandth of an even share so that no value is given up for good."""
        guarded = jnp.maximum(moments["probs"], 1e-3 / self.num_values)
        return {"probs": guarded / jnp.sum(guarded, -1, keepdims=True)}


FAMILIES: tuple[type[Family], ...] = (Gamma, Beta, Dirichlet, Bernoulli, Categorical, Poisson, Exponential)
"""Families that are known by the classes of their laws."""
