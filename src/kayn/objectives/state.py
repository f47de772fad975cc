"""States of an SVI: its first one, and those of modules (`numpyro.primitives.mutable`), such as the running statistics
of batch normalisation, after one run of guide and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.primitives import Messenger

from kayn.errors import GuideError
from kayn.evidence.fixed_rows import fixed_rows_of
from kayn.programs.given import Given
from kayn.programs.seeding import seeded
from kayn.support.arrays import KeyArray, PyTree
from kayn.support.numpyro_internals import mispaired


def first_state(
    svi: SVI, rng_key: KeyArray, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]
) -> Any:
    """`svi.init` from given parameters.

    Raises:
        GuideError: the guide has a site of another kind that is called like a plate or latent of the model,
            which NumPyro takes for it.
    """
    try:
        return svi.init(rng_key, *args, init_params=dict(params) or None, **kwargs)
    except RuntimeError as error:
        if (found := mispaired(error)) is None:
            raise
        name, kind = found
        raise GuideError(
            f"{name!r} is a {kind} of the model and a site of another kind in the guide, and NumPyro's SVI pairs the "
            "two by name; rename the guide's"
        ) from error


class Watched(Messenger):
    """Notes whether what runs within has any state."""

    mutable = False

    def process_message(self, msg: dict[str, Any]) -> None:
        """Note a `mutable` site."""
        self.mutable = self.mutable or msg["type"] == "mutable"


def next_state(call: Any, rng_key: KeyArray, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The state that one draw from the guide, and the model run on it, leave;
    as `numpyro.infer.Trace_ELBO` does with one particle.

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
