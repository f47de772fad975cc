"""Local proposals: particles exchangeable about an auxiliary centre.

The centre is drawn about the current value with half of a step's variance, the other particles about the centre with
the other half. Given the centre, all K are alike, the current one included, so that the posterior's density alone
weighs them. About the current value itself they would not be alike.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kayn.inference.mcmc.coordinates import Coordinates
from kayn.support.arrays import Array, KeyArray


def local_particles(
    key: KeyArray, current: Array, scale: Array, count: int, coordinates: Coordinates, noise: Array | None = None
) -> Array:
    """`count` particles, the current one first: [K, *shape] in the coordinates of `current` [*shape].

    Args:
        scale: standard deviation of a step from the current particle to another, of a shape that broadcasts to it;
            zero where it stays.
        noise: of mean zero and of any covariance within a draw, [K, *shape], the draws independent; None for
            independent numbers of variance one.
    """
    if coordinates.uniform:
        anything = coordinates.any_value(key, (count - 1, *current.shape), str(current.dtype))
        return jnp.concatenate([current[None], jnp.where(scale > 0, anything, current)])
    if noise is None:
        noise = jax.random.normal(key, (count, *current.shape), jnp.result_type(float))
    noise = noise * scale / math.sqrt(2)
    if coordinates.discrete:
        noise = jnp.round(noise)
    noise = noise.astype(current.dtype)
    # the first draw places the centre, the others its particles
    return jnp.concatenate([current[None], current + noise[:1] + noise[1:]])
