"""NumPyro programs drawn with kayn's generator, but for what JAX draws with its own default generator only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import discrete
from numpyro.primitives import Messenger

from kayn.graph.randomness import Unseeded
from kayn.keys import default_key

SIMPLE = (
    discrete.BernoulliLogits,
    discrete.BernoulliProbs,
    discrete.CategoricalLogits,
    discrete.CategoricalProbs,
    dist.MultivariateNormal,
    dist.Normal,
    dist.Uniform,
)
"""Distributions that every generator draws, known without a look."""


def seeded(program: Callable, key: Any) -> Callable:
    """As `numpyro.handlers.seed`, whatever seeds handlers within have set; Poisson counts and what rests on them get keys of JAX's default generator."""
    return _Keys(handlers.seed(Unseeded(program), key))


def draw(fn: dist.Distribution, key: Any, sample_shape: tuple[int, ...]) -> Any:
    """`fn.sample`, with a key that its sampler takes."""
    return fn.sample(_suited(fn, key), sample_shape)


class _Keys(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        key = msg.get("kwargs", {}).get("rng_key")
        if key is not None:
            # what is inside a loop, or asks for a key, is not known here
            msg["kwargs"]["rng_key"] = _suited(msg["fn"], key) if msg["type"] == "sample" else default_key(key)


def _suited(fn: dist.Distribution, key: Any) -> Any:
    inner = fn
    while isinstance(inner, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        inner = inner.base_dist
    if isinstance(inner, SIMPLE):
        return key
    try:
        jax.eval_shape(fn.sample, key)
    except NotImplementedError:
        return default_key(key)
    return key
