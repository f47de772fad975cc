"""The sleep phase: train a guide on latents and data drawn from the model (Hinton et al., 1995; Bornschein & Bengio, 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from kayn.checks import Count, checked
from kayn.errors import KaynError
from kayn.graph.given import Given
from kayn.graph.seeded import seeded
from kayn.graph.trace import inspect_sites
from kayn.memory import refuse_too_many
from kayn.objectives.base import Call, Objective
from kayn.particles import InvertedDraws

Replace = Callable[..., tuple[tuple, Mapping[str, Any]]]


MANY = 10**4
"""Dreams from which their memory is estimated first."""


class Sleep(Objective):
    """The sleep phase alone: minus the guide's log density of dreams, latents and data drawn from the model; no gradient for the model.

    For a phase of its own beside `kayn.RWS`, with its own optimiser and rhythm (see `kayn.train`); with `RWS(sleep_phi=1)` both share one.

    Args:
        num_particles: dreams per datum.
        replace: as in `kayn.RWS`.
    """

    @checked()
    def __init__(self, num_particles: Count = 1, *, replace: Replace | None = None):
        super().__init__(num_particles=num_particles)
        self.replace = replace

    def objective(self, call: Call, rng_key: Any, params: dict[str, Any]) -> Any:
        return sleep_loss(call, params, rng_key, self.num_particles, self.replace)


class _Dream(Messenger):
    """Draws observed sites too, and remembers the data they were given."""

    def __init__(self, fn: Callable):
        super().__init__(fn)
        self.given: dict[str, Any] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["is_observed"]:
            self.given[msg["name"]] = msg["value"]
            msg["is_observed"], msg["value"] = False, None


def sleep_loss(call: Call, params: Mapping[str, Any], rng_key: Any, count: int, replace: Replace | None) -> Any:
    """`- mean over dreams of log q(z | x)`, (z, x) drawn from the model; the gradient is in the guide's parameters only.

    Raises:
        KaynError: an observed site's data are not among the arguments, so that the guide could not be shown the dream.
    """
    fixed = jax.lax.stop_gradient(dict(params))

    def one(key: Any) -> Any:
        dreaming = _Dream(Given(call.model, params=fixed))
        trace = handlers.trace(seeded(InvertedDraws(dreaming), key)).get_trace(*call.args, **call.kwargs)
        dream = {n: jax.lax.stop_gradient(s["value"]) for n, s in trace.items() if s["type"] == "sample"}
        shown = {n: v for n, v in dream.items() if n in dreaming.given}
        args, kwargs = (
            replace(shown, *call.args, **call.kwargs) if replace is not None else _replaced(call, dreaming.given, shown)
        )
        latents = {n: v for n, v in dream.items() if n not in dreaming.given}
        guide = Given(handlers.seed(call.guide, key), params=params, latents=latents)
        log_q, asleep = compute_log_probs(guide, args, kwargs, {})
        return sum((v for n, v in log_q.items() if not asleep[n]["is_observed"]), jnp.zeros(()))

    if count > MANY:  # before that many are drawn at once
        sites = inspect_sites(call.model, call.args, call.kwargs, fixed).values()
        refuse_too_many("num_particles", count, 8 + sum(math.prod(s.shape) for s in sites if s.kind == "sample"))
    return -jnp.mean(jax.vmap(one)(jax.random.split(rng_key, count)))


def _replaced(call: Call, given: Mapping[str, Any], shown: Mapping[str, Any]) -> tuple[tuple, Mapping[str, Any]]:
    leaves, tree = jax.tree.flatten((call.args, dict(call.kwargs)))
    for name, data in given.items():
        places = [i for i, leaf in enumerate(leaves) if leaf is data]
        if not places:
            raise KaynError(
                f"sleep phase: the data of observed site {name!r} are not an argument of the model as they are, so the guide cannot be shown "
                "dreams in their place; pass the data as they are observed, or replace=lambda dream, *args: (new_args, {})"
            )
        for place in places:
            leaves[place] = shown[name].astype(jnp.result_type(data)).reshape(jnp.shape(data))
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return args, kwargs
