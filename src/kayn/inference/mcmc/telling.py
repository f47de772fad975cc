"""What a chain says while it runs: factors without a density, sweeps with nothing to draw from, latents that stay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kayn.errors import NumericsWarning, PoorFitWarning, warn
from kayn.inference.mcmc.sweep import Told
from kayn.support.arrays import Array
from kayn.support.names import in_model, whole

STUCK = 500
"""Sweeps after warm-up in which no element of a latent has moved, from which on it is named."""


class News(NamedTuple):
    """What is to be told after a sweep.

    Attributes:
        unsound: by factor, whether any of its log densities was +inf.
        dead: whether no combination had any weight.
        stuck: by latent, whether none of its elements has moved for long.
    """

    unsound: dict[str, Array]
    dead: Array
    stuck: dict[str, Array]


def watch(seen: Array, told: Told, still: Mapping[str, Array], learning: Array) -> tuple[Array, News]:
    """What has been told after a sweep, [2] by kind, and what is to be told now."""
    dead = ~jnp.isfinite(told.log_weight)
    unsound = {n: v & ~seen[0] for n, v in told.unsound.items()}
    stuck = {n: (v >= STUCK) & ~learning & ~seen[1] for n, v in still.items()}
    kinds = [jnp.any(jnp.stack([dead, *told.unsound.values()])), jnp.any(jnp.stack([*stuck.values()]))]
    return seen | jnp.stack(kinds), News(unsound, dead & ~seen[0], stuck)


def tell(model: str, news: News) -> None:
    """Warn, while the compiled program runs, of what is new in any chain."""
    any_chain = jax.tree.map(jnp.any, news)
    jax.lax.cond(
        jnp.any(jnp.stack(jax.tree.leaves(any_chain))),
        lambda found: jax.debug.callback(partial(_say, model), found),
        lambda found: None,
        any_chain,
    )


def _say(model: str, found: News) -> None:
    unsound = [whole(n) for n, new in found.unsound.items() if new]
    stuck = [in_model(n) for n, new in found.stuck.items() if new]
    if unsound:
        warn(
            f"sampling {model}: log densities of {', '.join(map(repr, unsound))} were +inf or none at particles, which "
            "got no weight; the posterior of what is left is sampled. Look for poles and overflow in the model",
            NumericsWarning,
        )
    if found.dead:
        warn(
            f"sampling {model}: in a sweep no combination of particles had any weight, the current state included, "
            "so that the chain stays where it is. Its draws are not of the posterior",
            NumericsWarning,
        )
    if stuck:
        warn(
            f"sampling {model}: no element of {', '.join(map(repr, stuck))} has moved for {STUCK} sweeps; use "
            "proposal='local' for it, more particles, or a longer warm-up",
            PoorFitWarning,
        )
