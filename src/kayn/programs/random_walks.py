"""Random walks that are one site, `numpyro.distributions.GaussianRandomWalk` or the running sum of innovations, read as
Markov chains of their steps.

As one vector all steps would share a particle. Given the walk's values at earlier steps (an `Alias` each), its density
is one law a step, as that of a `scan` is, and every step has particles of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from kayn.programs.running import EARLIER, Running
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
        """Put a law along the steps in the place of a latent walk, given the walk one step earlier."""
        if msg["type"] != "sample" or msg["is_observed"] or is_in_scan(msg):
            return
        fn, name = msg["fn"], msg["name"]
        walk = isinstance(fn, dist.GaussianRandomWalk) and not fn.batch_shape and not msg["cond_indep_stack"]
        if not (walk or isinstance(fn, Running)) or fn.shape()[-1] < 2:
            return
        steps = fn.shape()[-1]
        self.orders[name] = 1 if walk else fn.coordinates.order
        lags = range(1, self.orders[name] + 1)
        before = [self.values.get(Alias(name, lag, False).name, jnp.zeros(fn.shape())) for lag in lags]
        if walk:
            msg["fn"] = dist.Normal(jnp.where(jnp.arange(steps) == 0, 0.0, before[0]), fn.scale)
        else:
            msg["fn"] = fn.steps(before)
            msg["infer"][EARLIER].values.extend(before)
        msg["infer"] = {**msg["infer"], WALK: True}
