"""Dreams: data drawn from a model in the place of those it is given, and which models they can be drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.axes.minibatches import chosen_rows, plate_count
from kayn.errors import KaynError
from kayn.graph.flow import Sources, reach
from kayn.programs.given import Given
from kayn.programs.roles import Fixed
from kayn.programs.seeding import seeded
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.numpyro_internals import mask_of


class Dreaming(Messenger):
    """A model that draws its observed sites too, in loops as well; under a mask they keep what they were given."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Have observed sites drawn, in loops too; masked elements keep the value that they were given."""
        if msg["type"] == "control_flow":
            # a loop tells of its sites only when it is over
            msg["args"] = tuple(Dreaming(a) if callable(a) else a for a in msg["args"])
        elif msg["type"] == "sample" and msg["is_observed"]:
            scored = scored_values(msg["fn"])
            if scored is not None:
                msg["fn"] = _Partly(msg["fn"], scored, jnp.asarray(msg["value"]))
            msg["is_observed"], msg["value"] = False, None


class _Partly(dist.Distribution):
    """Draws of a distribution where `scored`, and `given` values elsewhere."""

    pytree_data_fields = ("base_dist", "scored", "given")

    def __init__(self, base_dist: dist.Distribution, scored: Array, given: Array):
        self.base_dist, self.scored, self.given = base_dist, scored, given
        super().__init__(base_dist.batch_shape, base_dist.event_shape)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        drawn = self.base_dist.sample(key, sample_shape)
        return jnp.where(self.scored, drawn, self.given.astype(drawn.dtype))


def scored_values(fn: dist.Distribution) -> Array | None:
    """Which values a distribution scores, to be broadcast against them; None for all of them."""
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        # leading dimensions are added by an expansion, and events are of the same elements
        return scored_values(fn.base_dist)
    if not isinstance(fn, dist.MaskedDistribution):
        return None
    mask, inner = jnp.asarray(mask_of(fn), bool), scored_values(fn.base_dist)
    mask = mask.reshape(mask.shape + (1,) * fn.event_dim)
    return mask if inner is None else mask & inner


def dreamable_data(call: Any, params: Mapping[str, PyTree], key: KeyArray) -> dict[str, Array]:
    """The data that a model is given, by observed site.

    Raises:
        KaynError: the model holds what nothing can be drawn from: factors, scaled densities,
            or data computed from latents.
    """

    def run(latents: Mapping[str, Array], rows: Mapping[str, Array]) -> dict[str, Array]:
        program = Given(Fixed(call.model), params=params, latents=latents, subsample=rows)
        return handlers.trace(seeded(program, key)).get_trace(*call.args, **call.kwargs)

    trace = run({}, {})
    sites = {n: s for n, s in trace.items() if s["type"] == "sample"}
    for name, site in sites.items():
        _refuse_undrawable(name, site, trace)
    given = {n: s["value"] for n, s in sites.items() if s["is_observed"]}
    latents = {n: s["value"] for n, s in sites.items() if n not in given}
    _refuse_computed(lambda z: {n: run(z, chosen_rows(trace))[n]["value"] for n in given}, latents)
    return given


def _refuse_undrawable(name: str, site: Mapping[str, Any], trace: Mapping[str, Any]) -> None:
    if isinstance(innermost(site["fn"]), dist.Unit):
        raise KaynError(
            f"sleep phase: {name!r} is a factor (numpyro.factor), which no dream can be drawn from; write it as a "
            "distribution, or train by the wake phase alone"
        )
    if site["scale"] is None:
        return
    scale = site["scale"] / plate_count(site, trace)
    if isinstance(scale, jax.core.Tracer) or not np.allclose(scale, 1.0, rtol=1e-6):
        raise KaynError(
            f"sleep phase: site {name!r} is within numpyro.handlers.scale, and no dream can be drawn from the power "
            "of a density; leave the scale out (a minibatch is scaled by numpyro.plate(..., subsample_size=)), or "
            "train by the wake phase alone"
        )


def _refuse_computed(data: Callable[[Mapping[str, Array]], dict[str, Array]], latents: Mapping[str, Array]) -> None:
    """Refuse data that depend on latents, such as missing values that one stands for."""
    if not latents:
        return
    closed, shapes = jax.make_jaxpr(data, return_shape=True)(latents)
    # `make_jaxpr` flattens dictionaries by sorted key
    sources = reach(closed.jaxpr, [Sources((n,)) for n in sorted(latents)])
    for site, found in zip(sorted(shapes), sources, strict=True):
        if found:
            raise KaynError(
                f"sleep phase: the data of {site!r} are computed from latent {min(found)!r}, so no dream can stand "
                "in their place; train by the wake phase alone"
            )
