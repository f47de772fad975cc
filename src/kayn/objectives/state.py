"""State of modules (`numpyro.primitives.mutable`), such as the running statistics of batch normalisation, after one run of guide and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.fixed import fixed_rows_of
from kayn.graph.given import Given
from kayn.graph.seeded import seeded


class Watched(Messenger):
    """Notes whether what runs within has any state."""

    mutable = False

    def process_message(self, msg: dict[str, Any]) -> None:
        self.mutable = self.mutable or msg["type"] == "mutable"


def next_state(call: Any, rng_key: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The state that one draw from the guide, and the model run on it, leave; as `numpyro.infer.Trace_ELBO` does with one particle.

    Args:
        call: model, guide and their arguments.
        params: values of parameters, and the state before.
    """
    guide_key, model_key = jax.random.split(rng_key)
    fixed = fixed_rows_of(call.model, call.guide, call.args, call.kwargs, params, model_key)
    guide = seeded(Given(call.guide, params=params, subsample=fixed), guide_key)
    drawn = handlers.trace(guide).get_trace(*call.args, **call.kwargs)
    state = {n: s["value"] for n, s in drawn.items() if s["type"] == "mutable"}
    latents = {n: s["value"] for n, s in drawn.items() if s["type"] == "sample" and not s["is_observed"]}
    rows = {n: s["value"] for n, s in drawn.items() if s["type"] == "plate"} | fixed
    model = seeded(Given(call.model, params={**params, **state}, latents=latents, subsample=rows), model_key)
    followed = handlers.trace(model).get_trace(*call.args, **call.kwargs)
    state |= {n: s["value"] for n, s in followed.items() if s["type"] == "mutable"}
    return jax.lax.stop_gradient(state)
