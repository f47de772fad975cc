"""What an exponential-family density is a function of: its value and its parameters, each as an output of its own.

The traced program already computes these; naming them lets `kayn.factors.forms` evaluate each on its own particle axes.
Dimensions are aligned: the *outer* ones are those of the log probability followed by the event dimensions that are a
sum of independent elements, the *core* ones belong to one element (D of a vector, D x D of its Cholesky factor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.util import clamp_probs

from kayn.support.arrays import Array
from kayn.support.names import RESERVED
from kayn.support.numpyro_internals import mask_of

ARGUMENT = f"{RESERVED}argument:"
"""Prefix of traced outputs that are arguments of a site's density: `<prefix><argument>:<site>`."""

CORE_NDIM: Mapping[str, Mapping[str, int]] = {
    "MultivariateNormal": {"value": 1, "loc": 1, "scale_tril": 2},
    "Categorical": {"log_probs": 1, "categories": 1},
    "Multinomial": {"value": 1, "log_probs": 1},
    "Dirichlet": {"value": 1, "concentration": 1},
}
"""Core dimensions of the arguments that have any, by family."""


def _bernoulli_probs(fn: dist.Distribution) -> dict[str, Array]:
    probs = clamp_probs(fn.probs)
    return {"log_success": jnp.log(probs), "log_failure": jnp.log1p(-probs)}


def _bernoulli_logits(fn: dist.Distribution) -> dict[str, Array]:
    return {"log_success": jax.nn.log_sigmoid(fn.logits), "log_failure": jax.nn.log_sigmoid(-fn.logits)}


def _attributes(*names: str) -> Callable[[dist.Distribution], dict[str, Array]]:
    return lambda fn: {name: getattr(fn, name) for name in names}


def _log_softmax(fn: dist.Distribution) -> dict[str, Array]:
    return {"log_probs": fn.logits - jax.nn.logsumexp(fn.logits, -1, keepdims=True)}


def _categories(fn: dist.Distribution) -> Array:
    return jnp.arange(jnp.shape(fn.logits)[-1])


FAMILIES: Mapping[type, tuple[str, Callable[[dist.Distribution], dict[str, Array]]]] = {
    dist.Normal: ("Normal", _attributes("loc", "scale")),
    dist.LogNormal: ("LogNormal", _attributes("loc", "scale")),
    dist.MultivariateNormal: ("MultivariateNormal", _attributes("loc", "scale_tril")),
    dist.HalfNormal: ("HalfNormal", _attributes("scale")),
    dist.Laplace: ("Laplace", _attributes("loc", "scale")),
    dist.Exponential: ("Exponential", _attributes("rate")),
    dist.Gamma: ("Gamma", _attributes("concentration", "rate")),
    dist.InverseGamma: ("InverseGamma", _attributes("concentration", "rate")),
    dist.Beta: ("Beta", _attributes("concentration1", "concentration0")),
    dist.Dirichlet: ("Dirichlet", _attributes("concentration")),
    dist.Poisson: ("Poisson", _attributes("rate")),
    dist.BernoulliProbs: ("Bernoulli", _bernoulli_probs),
    dist.BernoulliLogits: ("Bernoulli", _bernoulli_logits),
    dist.BinomialProbs: ("Binomial", lambda fn: {**_bernoulli_probs(fn), "total_count": fn.total_count}),
    dist.BinomialLogits: ("Binomial", lambda fn: {**_bernoulli_logits(fn), "total_count": fn.total_count}),
    dist.CategoricalProbs: ("Categorical", lambda fn: {"log_probs": fn.logits, "categories": _categories(fn)}),
    dist.CategoricalLogits: ("Categorical", lambda fn: {**_log_softmax(fn), "categories": _categories(fn)}),
    dist.MultinomialProbs: (
        "Multinomial",
        lambda fn: {"log_probs": jnp.log(fn.probs), "total_count": fn.total_count},
    ),
    dist.MultinomialLogits: ("Multinomial", lambda fn: {**_log_softmax(fn), "total_count": fn.total_count}),
}
"""NumPyro's class to the family's name and to its parameters in the form that the density needs."""


PREDICTORS: Mapping[str, str] = {"Normal": "loc", "LogNormal": "loc", "Poisson": "rate"}
"""The argument that is a regression's predictor, by family; for counts it is the logarithm of the argument."""


def family_of(base: dist.Distribution) -> str | None:
    """The exponential family of a distribution without wrappers, None if it is not supported."""
    found = FAMILIES.get(type(base))
    return None if found is None or getattr(base, "is_sparse", False) else found[0]


def core_ndim(family: str, argument: str) -> int:
    """How many trailing dimensions of an argument belong to one element of the distribution."""
    return CORE_NDIM.get(family, {}).get(argument, 0)


def density_arguments(fn: dist.Distribution, value: Array, scale: Array | None) -> dict[str, Array]:
    """The arguments of a log density that is an exponential family under masks, expansions and event dimensions.

    Args:
        fn: the site's distribution.
        scale: the factor of `handlers.scale` on its log probability, None for one.

    Returns:
        Arrays [*outer, *core], outer dimensions of size one where an argument does not vary: the value, the parameters,
        `inside` (whether the value lies in the support), and where there are any `mask` and `scale`. Empty where the
        family is not supported or the shapes do not fit the distribution's own.
    """
    masks, base = [], fn
    while isinstance(base, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        if isinstance(base, dist.MaskedDistribution) and mask_of(base) is not True:
            masks.append((mask_of(base), base.event_dim))
        base = base.base_dist
    element, family = base, family_of(base)
    if family is None or isinstance(value, list | tuple) or jnp.shape(value) != fn.shape():
        return {}
    event_ndim = fn.event_dim - element.event_dim
    outer = len(fn.batch_shape) + event_ndim

    def aligned(array: Array, core: int) -> Array:
        array = jnp.asarray(array)
        return array.reshape((1,) * (outer + core - array.ndim) + array.shape)

    parameters = FAMILIES[type(element)][1](element)
    value = jnp.asarray(value)
    out = {name: aligned(array, core_ndim(family, name)) for name, array in {"value": value, **parameters}.items()}
    out["inside"] = aligned(element.support(value), 0)
    if masks:
        out["mask"] = jnp.ones((1,) * outer, bool)
        for mask, ndim in masks:
            mask = jnp.asarray(mask)
            out["mask"] = out["mask"] & aligned(mask.reshape(mask.shape + (1,) * (ndim - element.event_dim)), 0)
    if scale is not None:
        out["scale_factor"] = aligned(jnp.asarray(scale).reshape(jnp.shape(scale) + (1,) * event_ndim), 0)
    return out
