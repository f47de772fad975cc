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
from kayn.programs.wrappers import unexpanded
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
        walk = _walk(fn)
        if (walk is None and not isinstance(fn, Running)) or fn.shape()[-1] < 2:
            return
        self.orders[name] = fn.coordinates.order if walk is None else 1
        lags = range(1, self.orders[name] + 1)
        before = [self.values.get(Alias(name, lag, False).name, jnp.zeros(fn.shape())) for lag in lags]
        if walk is None:
            msg["fn"] = fn.steps(before)
            msg["infer"][EARLIER].values.extend(before)
        else:
            first = jnp.arange(fn.shape()[-1]) == 0
            msg["fn"] = dist.Normal(jnp.where(first, 0.0, before[0]), jnp.expand_dims(walk.scale, -1))
        # plates are counted from the last dimension of the batch, in which steps are now
        moved = fn.event_dim - msg["fn"].event_dim
        msg["cond_indep_stack"] = [f._replace(dim=f.dim - moved) for f in msg["cond_indep_stack"]]
        msg["infer"] = {**msg["infer"], WALK: True}


def _walk(fn: dist.Distribution) -> dist.GaussianRandomWalk | None:
    """The walk that a batch of walks is of, or an event of several."""
    fn = unexpanded(fn)
    return fn if isinstance(fn, dist.GaussianRandomWalk) else None
