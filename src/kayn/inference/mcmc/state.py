"""The state of a chain."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kayn.inference.mcmc.sweep import Kernel, Tuning
from kayn.support.arrays import Array, KeyArray


class GibbsState(NamedTuple):
    """State of a chain.

    Attributes:
        i: sweeps so far.
        z: latents in their coordinates: unconstrained where they move locally, else values.
        moved: by latent, the share of its elements that the passes of the last sweep gave another value.
        log_weight: log of the average weight of all combinations of the last sweep, in nats.
        still: by latent, for how many sweeps no pass has moved an element of it.
        told: what there was to tell has been told, by kind.
        tuning: steps of local proposals.
        num_warmup: sweeps that adapt these.
        rng_key: of the sweeps to come.
    """

    i: Array
    z: dict[str, Array]
    moved: dict[str, Array]
    log_weight: Array
    still: dict[str, Array]
    told: Array
    tuning: Tuning
    num_warmup: Array
    rng_key: KeyArray

    @staticmethod
    def of(kernel: Kernel, z: dict[str, Array], log_weight: Array, num_warmup: Array, rng_key: KeyArray) -> GibbsState:
        """The state that a chain begins with."""
        return GibbsState(
            i=jnp.zeros((), jnp.int32),
            z=z,
            moved={n: jnp.zeros((), float) for n in z},
            log_weight=log_weight,
            still={n: jnp.zeros((), jnp.int32) for n in z},
            told=jnp.zeros((2,), bool),
            tuning=kernel.first_tuning(z),
            num_warmup=num_warmup,
            rng_key=rng_key,
        )
