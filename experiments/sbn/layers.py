"""Layers of binary units given the units above: independent, with a deterministic hidden layer,
or autoregressive (DARN, NADE).

A layer is a function of the layer's name, its size and the values above, `[..., inputs]`, that returns a distribution
over `[..., size]`. Weights are `numpyro.param` sites.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

HIDDEN = 50
"""Deterministic units of a DSBN layer, recurrent ones of NADE."""


def weights(name: str, inputs: int, outputs: int) -> Any:
    """Normal with the scale of Glorot & Bengio (2010)."""
    scale = (2.0 / (inputs + outputs)) ** 0.5
    return numpyro.param(name, lambda key: scale * jax.random.normal(key, (inputs, outputs)))


def bias(name: str, size: int) -> Any:
    return numpyro.param(name, jnp.zeros(size))


def sbn(name: str, size: int, above: Any) -> Any:
    """Independent units: the sigmoid belief network of Saul, Jaakkola & Jordan (1996)."""
    return dist.Bernoulli(
        logits=above @ weights(f"{name}_w", above.shape[-1], size) + bias(f"{name}_b", size)
    ).to_event(1)


def dsbn(name: str, size: int, above: Any) -> Any:
    """Independent units given a layer of tanh units."""
    hidden = jnp.tanh(above @ weights(f"{name}_u", above.shape[-1], HIDDEN) + bias(f"{name}_c", HIDDEN))
    return dist.Bernoulli(logits=hidden @ weights(f"{name}_w", HIDDEN, size) + bias(f"{name}_b", size)).to_event(1)


def darn(name: str, size: int, above: Any) -> Any:
    """Every unit given those before it, linearly in the logit (Gregor et al., 2014)."""
    before = numpyro.param(f"{name}_a", jnp.zeros((size, size)))
    logits = above @ weights(f"{name}_w", above.shape[-1], size) + bias(f"{name}_b", size)
    return Darn(logits, before)


def nade(name: str, size: int, above: Any) -> Any:
    """Every unit given those before it, through hidden units that add them up (Larochelle & Murray, 2011)."""
    start = above @ weights(f"{name}_u", above.shape[-1], HIDDEN) + bias(f"{name}_c", HIDDEN)
    offset = above @ weights(f"{name}_r", above.shape[-1], size) + bias(f"{name}_b", size)
    return Nade(start, offset, weights(f"{name}_v", size, HIDDEN), weights(f"{name}_w", size, HIDDEN))


def top(name: str, size: int, kind: str) -> Any:
    """The prior of the highest layer: independent units, or an autoregressive layer without anything above."""
    nothing = jnp.zeros(1)
    if kind in ("darn", "nade"):
        return LAYERS[kind](name, size, nothing)
    return dist.Bernoulli(logits=bias(f"{name}_b", size)).to_event(1)


LAYERS = {"sbn": sbn, "dsbn": dsbn, "darn": darn, "nade": nade}


class Darn(dist.Distribution):
    """logit p(x_i | x_<i) = logits_i + sum_j<i x_j A_ji."""

    support = constraints.independent(constraints.boolean, 1)
    pytree_data_fields = ("logits", "before")

    def __init__(self, logits: Any, before: Any, *, validate_args: bool | None = None):
        self.logits, self.before = logits, jnp.triu(before, 1)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Any:
        value = value.astype(self.logits.dtype)
        return _bernoulli(self.logits + value @ self.before, value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        shape = sample_shape + self.batch_shape
        uniform = jax.random.uniform(key, (self.event_shape[0], *shape))

        def step(logits: Any, now: Any) -> tuple[Any, Any]:
            i, u = now
            x = (u < jax.nn.sigmoid(logits[..., i])).astype(logits.dtype)
            return logits + x[..., None] * self.before[i], x

        start = jnp.broadcast_to(self.logits, shape + self.event_shape)
        drawn = jax.lax.scan(step, start, (jnp.arange(self.event_shape[0]), uniform))[1]
        return jnp.moveaxis(drawn, 0, -1).astype(int)


class Nade(dist.Distribution):
    """logit p(x_i | x_<i) = offset_i + w_i . sigmoid(start + sum_j<i x_j v_j)."""

    support = constraints.independent(constraints.boolean, 1)
    pytree_data_fields = ("start", "offset", "v", "w")

    def __init__(self, start: Any, offset: Any, v: Any, w: Any, *, validate_args: bool | None = None):
        self.start, self.offset, self.v, self.w = start, offset, v, w
        super().__init__(offset.shape[:-1], offset.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Any:
        value = value.astype(self.offset.dtype)
        added = value[..., None] * self.v
        hidden = jax.nn.sigmoid(self.start[..., None, :] + jnp.cumsum(added, -2) - added)
        return _bernoulli(self.offset + jnp.sum(hidden * self.w, -1), value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        shape = sample_shape + self.batch_shape
        uniform = jax.random.uniform(key, (self.event_shape[0], *shape))
        offset = jnp.broadcast_to(self.offset, shape + self.event_shape)

        def step(sums: Any, now: Any) -> tuple[Any, Any]:
            u, offset, v, w = now
            x = (u < jax.nn.sigmoid(offset + jax.nn.sigmoid(sums) @ w)).astype(sums.dtype)
            return sums + x[..., None] * v, x

        start = jnp.broadcast_to(self.start, shape + self.start.shape[-1:])
        drawn = jax.lax.scan(step, start, (uniform, jnp.moveaxis(offset, -1, 0), self.v, self.w))[1]
        return jnp.moveaxis(drawn, 0, -1).astype(int)


def _bernoulli(logits: Any, value: Any) -> Any:
    return jnp.sum(value * logits - jax.nn.softplus(logits), -1)
