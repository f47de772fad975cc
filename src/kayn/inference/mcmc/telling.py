"""What a chain says while it runs: factors without a density, sweeps with nothing to draw from, latents that stay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import NumericsWarning, PoorFitWarning, warn
from kayn.inference.mcmc.sweep import Told
from kayn.support.arrays import Array
from kayn.support.names import in_model, whole

STUCK = 500
"""Sweeps after warm-up in which no element of a latent has moved, from which on it is named."""


def watch(seen: Array, told: Told, still: Mapping[str, Array], learning: Array) -> tuple[Array, dict[str, Array]]:
    """What has been told after a sweep, [2] by kind, and what is to be told now: booleans by name."""
    dead = ~jnp.isfinite(told.log_weight)
    unsound = {f"unsound:{n}": v & ~seen[0] for n, v in told.unsound.items()}
    stuck = {f"stuck:{n}": (v >= STUCK) & ~learning & ~seen[1] for n, v in still.items()}
    news = {**unsound, "dead": dead & ~seen[0], **stuck}
    kinds = [jnp.any(jnp.stack([dead, *told.unsound.values()])), jnp.any(jnp.stack([*stuck.values()]))]
    return seen | jnp.stack(kinds), news


def tell(model: str, news: Mapping[str, Array]) -> None:
    """Warn, while the compiled program runs, of what is new in any chain."""
    any_chain = {n: jnp.any(v) for n, v in news.items()}
    jax.lax.cond(
        jnp.any(jnp.stack([*any_chain.values()])),
        lambda found: jax.debug.callback(partial(_say, model), found),
        lambda found: None,
        any_chain,
    )


def _say(model: str, found: Mapping[str, np.ndarray]) -> None:
    names = [n for n, v in found.items() if v]
    unsound = [whole(n.removeprefix("unsound:")) for n in names if n.startswith("unsound:")]
    stuck = [in_model(n.removeprefix("stuck:")) for n in names if n.startswith("stuck:")]
    if unsound:
        warn(
            f"sampling {model}: log densities of {', '.join(map(repr, unsound))} were +inf or none at particles, which "
            "got no weight; the posterior of what is left is sampled. Look for poles and overflow in the model",
            NumericsWarning,
        )
    if "dead" in names:
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
