"""Families of whole numbers: counts, trials and categories."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions.util import clamp_probs

from kayn.densities.exponential.contract import Family, Pieces, Predictor, attributes, natural_form, ones, scalars
from kayn.support.arrays import Array


def _bernoulli_probs(fn: dist.Distribution) -> dict[str, Array]:
    probs = clamp_probs(fn.probs)
    return {"log_success": jnp.log(probs), "log_failure": jnp.log1p(-probs)}


def _bernoulli_logits(fn: dist.Distribution) -> dict[str, Array]:
    return {"log_success": jax.nn.log_sigmoid(fn.logits), "log_failure": jax.nn.log_sigmoid(-fn.logits)}


def _log_softmax(fn: dist.Distribution) -> dict[str, Array]:
    return {"log_probs": fn.logits - jax.nn.logsumexp(fn.logits, -1, keepdims=True)}


def _categories(fn: dist.Distribution) -> Array:
    return jnp.arange(jnp.shape(fn.logits)[-1])


def _counts(successes: Array, trials: Array) -> Pieces:
    combinations = gammaln(trials + 1.0) - gammaln(successes + 1.0) - gammaln(trials - successes + 1.0)
    return scalars(successes, trials - successes, combinations)


def _indicators(category: Array, categories: Array) -> Pieces:
    category = category[..., None]
    return [jnp.where(jnp.isnan(category), jnp.nan, (category == categories).astype(category.dtype))]


POISSON = Family(
    "Poisson",
    {dist.Poisson: attributes("rate")},
    natural_form(
        ["rate"],
        lambda v: scalars(v, ones(v), -gammaln(v + 1.0)),
        lambda rate: scalars(jnp.log(rate), -rate, ones(rate)),
    ),
    predictor=Predictor("rate", exponential=True),
    has_factorials=True,
)
BERNOULLI = Family(
    "Bernoulli",
    {dist.BernoulliProbs: _bernoulli_probs, dist.BernoulliLogits: _bernoulli_logits},
    natural_form(["log_success", "log_failure"], lambda v: scalars(v, 1.0 - v), lambda yes, no: scalars(yes, no)),
)
BINOMIAL = Family(
    "Binomial",
    {
        dist.BinomialProbs: lambda fn: {**_bernoulli_probs(fn), "total_count": fn.total_count},
        dist.BinomialLogits: lambda fn: {**_bernoulli_logits(fn), "total_count": fn.total_count},
    },
    natural_form(["log_success", "log_failure"], _counts, lambda yes, no: scalars(yes, no, ones(yes)), "total_count"),
    has_factorials=True,
)
CATEGORICAL = Family(
    "Categorical",
    {
        dist.CategoricalProbs: lambda fn: {"log_probs": fn.logits, "categories": _categories(fn)},
        dist.CategoricalLogits: lambda fn: {**_log_softmax(fn), "categories": _categories(fn)},
    },
    natural_form(["log_probs"], _indicators, lambda log_p: [log_p], "categories"),
    core_ndim={"log_probs": 1, "categories": 1},
)
MULTINOMIAL = Family(
    "Multinomial",
    {
        dist.MultinomialProbs: lambda fn: {"log_probs": jnp.log(fn.probs), "total_count": fn.total_count},
        dist.MultinomialLogits: lambda fn: {**_log_softmax(fn), "total_count": fn.total_count},
    },
    natural_form(
        ["log_probs"],
        lambda v, n: [v, *scalars(gammaln(n + 1.0) - jnp.sum(gammaln(v + 1.0), -1))],
        lambda log_p: [log_p, ones(log_p[..., :1])],
        "total_count",
    ),
    core_ndim={"value": 1, "log_probs": 1},
    has_factorials=True,
)
