"""Guides trained by gradients of an objective, until the log evidence has stopped improving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI

from kayn.axes.request import USUAL, make_request
from kayn.evidence.problem import refuse_unknown_params
from kayn.evidence.read import refuse_broken_arguments
from kayn.evidence.unguided import inspected_for
from kayn.guides.factorised import FactorisedGuide, Unstarted
from kayn.inference.stopping import UNKNOWN, until_flat
from kayn.objectives.state import first_state
from kayn.posterior.call import Call
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.xla.jit import QuickJit


def trained(
    call: Call,
    guide: Callable,
    objective: Callable[..., Any],
    options: Mapping[str, Any],
    params: Mapping[str, PyTree],
    key: KeyArray,
    learning_rate: float,
    bounds: tuple[int, bool, float | None],
) -> tuple[dict[str, PyTree], np.ndarray, bool]:
    """Train a guide by Adam.

    Args:
        objective: makes the loss of particle options.
        params: values to start from.
        bounds: steps, whether a bar is shown, and seconds, all at most.

    Returns:
        parameters, the log evidence step by step, whether it had stopped improving.
    """
    num_steps = bounds[0]
    count = options["num_particles"]
    loss = objective(**{**options, "num_particles": USUAL if count is None else count})
    optimiser = optax.adam(optax.exponential_decay(learning_rate, max(num_steps // 2, 1), 0.3))
    svi = SVI(call.model, guide, numpyro.optim.optax_to_numpyro(optimiser), loss=loss)
    state = _begin(svi, call, params, key)

    def steps(state: PyTree, count: int) -> tuple[PyTree, Array]:
        state, losses = jax.lax.scan(lambda s, _: svi.update(s, *call.args, **call.kwargs), state, None, length=count)
        return state, -losses

    run = QuickJit(steps, (1,))
    state, history, converged = until_flat(lambda state, count: (*run(state, count), UNKNOWN), state, *bounds)
    # with the state of modules, such as running statistics
    return {**svi.get_params(state), **(state.mutable_state or {})}, history, converged


def own_guide(call: Call, options: Mapping[str, Any], params: Mapping[str, PyTree]) -> FactorisedGuide:
    """kayn's guide for a model."""
    request = make_request(**options)
    return Unstarted.of(inspected_for(None, call.model, call.args, call.kwargs, dict(params), request)).started()


def _begin(svi: SVI, call: Call, params: Mapping[str, PyTree], key: KeyArray) -> Any:
    """The first state: for kayn's own guides from one compiled program,
    which takes a tenth of the time of one operation after the other."""
    params = dict(params)
    refuse_broken_arguments(svi.model, call.args, call.kwargs, params)
    refuse_unknown_params(svi.model, svi.guide, call.args, call.kwargs, params)

    def init(key: KeyArray) -> Any:
        return first_state(svi, key, call.args, call.kwargs, params)

    if isinstance(svi.guide, FactorisedGuide):
        with suppress(jax.errors.NonConcreteBooleanIndexError):  # a Cholesky factor among the model's own parameters
            return jax.jit(init)(key)
    return init(key)
