"""The sleep phase: train a guide on latents and data drawn from the model
(Hinton et al., 1995; Bornschein & Bengio, 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers

from kayn.axes.minibatches import chosen_rows
from kayn.densities.log_prob import log_density
from kayn.errors import KaynError
from kayn.evidence.fixed_rows import fixed_rows_of
from kayn.objectives.base import Call, Objective
from kayn.objectives.dreams import Dreaming, dreamable_data, scored_values
from kayn.programs.given import Given
from kayn.programs.roles import Fixed
from kayn.programs.seeding import InvertedDraws, seeded
from kayn.programs.sites import inspect_sites
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.memory import refuse_too_many
from kayn.support.validate import Count, checked

Replace = Callable[..., tuple[tuple, Mapping[str, Any]]]


MANY = 10**4
"""Dreams from which their memory is estimated first."""


class Sleep(Objective):
    """The sleep phase alone: minus the guide's log density of dreams, latents and data drawn from the model;
    no gradient for the model.

    For a phase of its own beside `kayn.RWS`, with its own optimiser and rhythm (see `kayn.train`); with
    `RWS(sleep_phi=1)` both share one.

    Args:
        num_particles: dreams per datum.
        replace: as in `kayn.RWS`.
    """

    @checked()
    def __init__(self, num_particles: Count = 1, *, replace: Replace | None = None):
        super().__init__(num_particles=num_particles)
        self.replace = replace

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus the mean log density of dreams under the guide, in nats."""
        return sleep_loss(call, params, rng_key, self.num_particles, self.replace)


def sleep_loss(
    call: Call, params: Mapping[str, PyTree], rng_key: KeyArray, count: int, replace: Replace | None
) -> Array:
    """`- mean over dreams of log q(z | x)`, (z, x) drawn from the model;
    the gradient is in the guide's parameters only.

    Data are dreamt where the model scores them: under a mask they stay as they are, and latents under a mask add
    nothing. Model and guide are on the same rows of subsampled plates.

    Raises:
        KaynError: the model is none that data can be drawn from, see `dreamable_data`; the data of an observed site are
            not among the arguments, so that the guide could not be shown the dream; or the guide has auxiliary sites,
            so that its density of a dream is not known.
    """
    fixed = jax.lax.stop_gradient(dict(params))
    if count > MANY:  # before that many are drawn at once
        sites = inspect_sites(call.model, call.args, call.kwargs, fixed).values()
        refuse_too_many("num_particles", count, 8 + sum(math.prod(s.shape) for s in sites if s.kind == "sample"))
    keys = jax.random.split(rng_key, count)
    given = dreamable_data(call, fixed, keys[0])
    rows = fixed_rows_of(call.model, call.guide, call.args, call.kwargs, fixed, keys[0])

    def one(key: KeyArray) -> Array:
        dreaming = Dreaming(Given(Fixed(call.model), params=fixed, subsample=rows))
        trace = handlers.trace(seeded(InvertedDraws(dreaming), key)).get_trace(*call.args, **call.kwargs)
        dream = {n: jax.lax.stop_gradient(s["value"]) for n, s in trace.items() if s["type"] == "sample"}
        shown = {n: v for n, v in dream.items() if n in given}
        args, kwargs = (
            replace(shown, *call.args, **call.kwargs) if replace is not None else _replaced(call, given, shown)
        )
        latents = {n: v for n, v in dream.items() if n not in given}
        guide = Given(
            handlers.seed(Fixed(call.guide), key), params=params, latents=latents, subsample=chosen_rows(trace) | rows
        )
        asleep = handlers.trace(guide).get_trace(*args, **kwargs)
        return sum((_log_q(s, trace.get(n)) for n, s in asleep.items() if _is_drawn(s)), jnp.zeros(()))

    return -jnp.mean(jax.vmap(one)(keys))


def _is_drawn(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _log_q(site: Mapping[str, Any], dreamt: Mapping[str, Any] | None) -> Array:
    """Log density of a guide site at its dream, summed; elements that the model masks are left out."""
    if dreamt is None:
        raise KaynError(
            f"sleep phase: guide site {site['name']!r} is no latent of the model, so the guide's density of a dream "
            "is not known; write a guide without auxiliary sites (AutoNormal has none), or train by the wake phase "
            "alone"
        )
    # as in the wake phase: NumPyro's own density of a Bernoulli has no right gradient at logits of exactly 0,
    # where guides often start
    log_q, scored = log_density(site["fn"], site["value"]), scored_values(dreamt["fn"])
    if scored is not None:
        scored = jnp.all(scored, tuple(range(scored.ndim - dreamt["fn"].event_dim, scored.ndim)))
        if jnp.ndim(log_q) >= scored.ndim:
            log_q = jnp.where(scored, log_q, 0.0)
    return jnp.sum(log_q if site["scale"] is None else site["scale"] * log_q)


def _replaced(call: Call, given: Mapping[str, Array], shown: Mapping[str, Array]) -> tuple[tuple, Mapping[str, Any]]:
    leaves, tree = jax.tree.flatten((call.args, dict(call.kwargs)))
    for name, data in given.items():
        places = [i for i, leaf in enumerate(leaves) if leaf is data]
        if not places:
            raise KaynError(
                f"sleep phase: the data of observed site {name!r} are not an argument of the model as they are, so "
                "the guide cannot be shown dreams in their place; pass the data as they are observed, or "
                f"replace=lambda dream, *args: (new_args, {{}})"
            )
        for place in places:
            leaves[place] = shown[name].astype(jnp.result_type(data)).reshape(jnp.shape(data))
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return args, kwargs
