"""NumPyro programs drawn with kayn's generator, but for what JAX draws with its own default generator only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import discrete
from numpyro.primitives import Messenger

from kayn.programs.randomness import Unseeded
from kayn.support.arrays import Array, KeyArray
from kayn.support.keys import default_key


class InvertedDraws(Messenger):
    """A program that draws categorical sites by inverting their distribution function:
    one random number a draw instead of one a category."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Have a categorical site drawn by one uniform number."""
        if msg["type"] == "sample" and not msg["is_observed"]:
            fn, shape = msg["fn"], msg["fn"].batch_shape
            if isinstance(fn, dist.ExpandedDistribution):
                fn = fn.base_dist
            if isinstance(fn, discrete.CategoricalLogits | discrete.CategoricalProbs):
                probs = jax.nn.softmax(fn.logits, -1) if isinstance(fn, discrete.CategoricalLogits) else fn.probs
                msg["fn"] = _InvertedCategorical(jnp.broadcast_to(probs, (*shape, probs.shape[-1])))


class _InvertedCategorical(discrete.CategoricalProbs):
    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        ends = jnp.cumsum(self.probs, -1)
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape), ends.dtype)
        # scaled by the last end, which rounding keeps from one; the last category takes what is left
        return jnp.sum(u[..., None] * ends[..., -1:] >= ends[..., :-1], -1)


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


def seeded(program: Callable, key: KeyArray) -> Callable:
    """As `numpyro.handlers.seed`, whatever seeds handlers within have set; Poisson counts and what rests on them get
    keys of JAX's default generator."""
    return _Keys(handlers.seed(Unseeded(program), key))


def draw(fn: dist.Distribution, key: KeyArray, sample_shape: tuple[int, ...]) -> Array:
    """`fn.sample`, with a key that its sampler takes."""
    return fn.sample(_suited(fn, key), sample_shape)


class _Keys(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        key = msg.get("kwargs", {}).get("rng_key")
        if key is not None:
            # what is inside a loop, or asks for a key, is not known here
            msg["kwargs"]["rng_key"] = _suited(msg["fn"], key) if msg["type"] == "sample" else default_key(key)


def _suited(fn: dist.Distribution, key: KeyArray) -> KeyArray:
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
