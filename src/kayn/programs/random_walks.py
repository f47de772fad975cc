"""Random walks that are one site, `numpyro.distributions.GaussianRandomWalk`, read as Markov chains of their steps.

As one vector all steps would share a particle. Given the walk's value one step earlier (an `Alias`), its density is one
Normal a step, as that of a `scan` is, and every step has particles of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from kayn.programs.scans import Alias
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import is_in_scan

WALK = "_kayn_walk"
"""Marks the sites that were put in the place of walks, in `infer`."""


class Walks(Messenger):
    """Puts Normals along a plate of steps in the place of latent random walks without plates.

    Args:
        values: values of the walks one step earlier, by alias name; zeros where shapes are all that matters.

    Attributes:
        orders: how many steps back the walks are read, by site.
    """

    def __init__(self, values: Mapping[str, Array]):
        super().__init__()
        self.values = values
        self.orders: dict[str, int] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put a Normal along the steps in the place of a latent walk, given the walk one step earlier."""
        if msg["type"] != "sample" or msg["is_observed"] or not isinstance(msg["fn"], dist.GaussianRandomWalk):
            return
        fn: dist.GaussianRandomWalk = msg["fn"]
        steps = fn.event_shape[0]
        if fn.batch_shape or msg["cond_indep_stack"] or is_in_scan(msg) or steps < 2:
            return
        self.orders[msg["name"]] = 1
        before = self.values.get(Alias(msg["name"], 1, False).name, jnp.zeros(steps))
        msg["fn"] = dist.Normal(jnp.where(jnp.arange(steps) == 0, 0.0, before), fn.scale)
        msg["infer"] = {**msg["infer"], WALK: True}
