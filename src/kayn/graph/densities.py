"""Log densities rewritten for speed, where NumPyro's own form keeps compilers from vectorising it.

On CPUs, XLA hands chains of arithmetic to vectorised kernels, but a selection (`jnp.where`) in the chain sends the whole of it
through scalar loops, which is an order of magnitude slower. Values are the same, those at infinite arguments included.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints


def vectorisable(fn: dist.Distribution, value: Any) -> dist.Distribution:
    """The distribution with its innermost log density in a form without selections, if there is one.

    Args:
        value: where the density will be taken; data that are concrete numbers make for a simpler form.
    """
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        inner = vectorisable(fn.base_dist, value)
        if inner is fn.base_dist:
            return fn
        outer = copy.copy(fn)
        outer.base_dist = inner
        return outer
    if type(fn) is dist.BernoulliLogits:
        return (_Binary if _is_binary(value) else _Fractional)(fn.logits, validate_args=False)
    if fn._validate_args and fn.support in (constraints.real, constraints.real_vector):
        # NumPyro replaces log densities outside of the support; here that is at infinity and NaN, which have none anyway
        inner = copy.copy(fn)
        inner._validate_args = False
        return inner
    return fn


@jax.custom_jvp
def _log_sigmoid(x: Any) -> Any:
    return jnp.minimum(x, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


@_log_sigmoid.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    # the derivative of each operation in turn would select by sign, and take ten times as long as the one operation that they amount to
    return _log_sigmoid(*primals), jax.nn.sigmoid(-primals[0]) * tangents[0]


class _Binary(dist.BernoulliLogits):
    def log_prob(self, value: Any) -> Any:
        return _log_sigmoid(self.logits * (2.0 * value - 1.0))


class _Fractional(dist.BernoulliLogits):
    """Data that are only known when the program runs may lie between 0 and 1."""

    def log_prob(self, value: Any) -> Any:
        # a clipped logit stands for an infinite one: the log density is exactly 0, or so low that it counts as impossible
        far = jnp.finfo(jnp.result_type(self.logits, float)).max / 1e4
        logits = jnp.clip(self.logits, -far, far)
        return value * logits + _log_sigmoid(-logits)


def _is_binary(value: Any) -> bool:
    """Whether a value is known to be 0 or 1."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return True
    return not isinstance(value, jax.core.Tracer) and bool(np.isin(np.asarray(value), (0.0, 1.0)).all())
