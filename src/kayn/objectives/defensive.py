"""Defensive proposals: a guide whose discrete sites are mixed with a fixed base
(Le et al., Revisiting reweighted wake-sleep, UAI 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import discrete

from kayn.programs.inside import Inside
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import mask_of


class Defensive(Inside):
    """A guide with `(1 - delta) q + delta base` in the place of q at Bernoulli and categorical sites;
    the mixture is of the same family.

    Attributes:
        mixed: names of the sites that were found.
    """

    def __init__(self, guide: Callable, delta: float, base: Mapping[str, Array]):
        super().__init__(guide)
        self.delta, self.base = delta, base
        self.mixed: set[str] = set()

    def change(self, msg: dict[str, Any]) -> None:
        """Put the mixture in the place of a Bernoulli or categorical distribution, and note the site."""
        mixed = _mixed(msg["fn"], self.delta, self.base.get(msg["name"]))
        if mixed is not None:
            self.mixed.add(msg["name"])
            msg["fn"] = mixed


def _mixed(fn: dist.Distribution, delta: float, base: Array | None) -> dist.Distribution | None:
    if isinstance(fn, dist.Independent):
        inner = _mixed(fn.base_dist, delta, base)
        return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        inner = _mixed(fn.base_dist, delta, base)
        return None if inner is None else inner.expand(fn.batch_shape)
    if isinstance(fn, dist.MaskedDistribution):
        inner = _mixed(fn.base_dist, delta, base)
        return None if inner is None else inner.mask(mask_of(fn))
    for family, make in FAMILIES.items():
        if isinstance(fn, family):
            probs = _probabilities(fn)
            uniform = 0.5 if make is dist.BernoulliProbs else 1.0 / probs.shape[-1]
            return make(probs=(1 - delta) * probs + delta * (uniform if base is None else jnp.asarray(base)))
    return None


FAMILIES = {
    discrete.BernoulliProbs: dist.BernoulliProbs,
    discrete.BernoulliLogits: dist.BernoulliProbs,
    discrete.CategoricalProbs: dist.CategoricalProbs,
    discrete.CategoricalLogits: dist.CategoricalProbs,
}


def _probabilities(fn: dist.Distribution) -> Array:
    if isinstance(fn, discrete.BernoulliLogits):
        return jax.nn.sigmoid(fn.logits)
    if isinstance(fn, discrete.CategoricalLogits):
        return jax.nn.softmax(fn.logits, -1)
    return fn.probs
