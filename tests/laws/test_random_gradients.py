"""Every estimator's loss and gradient on random models, for given particles, against derivatives of the enumeration.

Nothing here is statistical: particles are drawn by NumPyro's own run of the guide, and both sides have the same ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from numpyro.infer.util import log_density

import kayn
from kayn.errors import StructureError, StructureWarning
from kayn.evidence.draws import Draws, draw_particles, draws_from_runs
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.queries import latent_weights
from kayn.evidence.summands import outer_plate
from tests.laws.oracle import QUICK
from tests.laws.paper import LARGEST, Paper, fixed, own_runs
from tests.laws.programs import Spec
from tests.laws.strategies import examples, specs
from tests.laws.structures import DISCRETE
from tests.replacing import replace_everywhere


def pathwise(paper: Paper, params: Mapping, weights: Any) -> Any:
    return paper.oracle.log_evidence(paper.draws(params), params)


def sticking(paper: Paper, params: Mapping, weights: Any) -> Any:
    return paper.oracle.log_evidence(paper.draws(params), params, jax.lax.stop_gradient(params))


def doubly(paper: Paper, params: Mapping, weights: Any) -> Any:
    """Derivatives through a particle count by its weight; the guide's density has constant parameters."""
    draws = paper.draws(params)

    def scaled(name: str, value: Any) -> Any:
        own = latent_weights(paper.problem, weights[1], name)
        own = own.reshape((*own.shape, *(1,) * (value.ndim - own.ndim)))
        still = jax.lax.stop_gradient(value)
        return still + own * (value[: len(own)] - still[: len(own)])

    values = {
        n: v if paper.oracle.problem.layout.axis_of(n).enumerated else scaled(n, v) for n, v in draws.values.items()
    }
    runs = {n: values.get(n, v) if values[n].shape == v.shape else _padded(values[n], v) for n, v in draws.runs.items()}
    draws = replace(draws, values=values, runs=runs)
    return paper.oracle.log_evidence(draws, params, jax.lax.stop_gradient(params))


def _padded(few: Any, all_runs: Any) -> Any:
    return jnp.concatenate([few, jax.lax.stop_gradient(all_runs[len(few) :])])


def wake(paper: Paper, params: Mapping, weights: Any, mixed: bool = False) -> Any:
    """log Z in the model's parameters, and the guide's log density at all combinations by their probabilities."""
    probabilities, marginals = weights
    still = jax.lax.stop_gradient(paper.draws(params))
    total = fixed(paper, params, jax.lax.stop_gradient(params))
    if mixed:
        axes = [a for a in paper.oracle.axes if not a.enumerated]
        return total + sum(jnp.sum(marginals[a.name] * paper.oracle.log_proposal(a, still, params)) for a in axes)
    values = {n: v for n, v in paper.oracle.values(still).items() if n in paper.problem.guide.names}
    log_q = jax.vmap(lambda v: log_density(paper.spec.guide, (), {}, {**params, **v})[0])(values)
    return total + jnp.sum(probabilities * log_q)


def reinforced(paper: Paper, params: Mapping, weights: Any) -> Any:
    log_z = fixed(paper, params)
    return log_z + jax.lax.stop_gradient(log_z) * paper.score(params, {a.name: 1.0 for a in paper.oracle.axes})


def leaving_out(paper: Paper, params: Mapping, weights: Any) -> Any:
    """Continuous particles are differentiated through; discrete ones are judged against the evidence without them."""
    draws = paper.draws(params)
    discrete = {paper.spec.latent(s) for s in paper.spec.latents if s.family in DISCRETE}

    def held(values: Mapping) -> dict[str, Any]:
        return {n: jax.lax.stop_gradient(v) if n in discrete else v for n, v in values.items()}

    log_z = paper.oracle.log_evidence(replace(draws, values=held(draws.values), runs=held(draws.runs)), params)
    gains = {n: -np.log1p(-w) - np.log(w.shape[-1] / (w.shape[-1] - 1)) for n, w in weights[1].items()}
    return log_z + paper.score(params, gains, discrete.__contains__)


ESTIMATORS = {
    "VI": (kayn.VI, pathwise, {"discrete": False}),
    "STL": (kayn.STL, sticking, {"discrete": False}),
    "DReG": (kayn.DReG, doubly, {"discrete": False}),
    "RWS": (kayn.RWS, wake, {}),
    "Reinforce": (kayn.Reinforce, reinforced, {}),
    "VIMCO": (kayn.VIMCO, leaving_out, {}),
    "RELAX": (kayn.RELAX, reinforced, {"continuous": False}),
}
INDEPENDENT = ("DReG", "VIMCO", "RELAX")
"""Those that refuse guides whose sites depend on each other."""


def control(params: Mapping, z: Mapping) -> Any:
    """No control variate, so that what is left is the score-function gradient."""
    return 0.0 * params["theta"]


def told(spec: Spec, monkeypatch: Any) -> None:
    """Lets kayn take the particles that the guide's own runs give."""

    def chosen(problem: Problem, numbers: Any, key: Any, params: Mapping) -> Draws:
        return draws_from_runs(problem, numbers, params, own_runs(spec, problem, params), {})

    replace_everywhere(monkeypatch, draw_particles, chosen)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_losses_and_gradients(name, monkeypatch):
    loss_type, formula, kinds = ESTIMATORS[name]

    @given(specs(plain=True, **kinds))
    @settings(max_examples=examples(2), phases=[Phase.explicit, Phase.generate])
    def check(spec: Spec) -> None:
        if name in INDEPENDENT:
            spec = replace(spec, guide_reads=())
        assume(any(s.drawn for s in spec.latents))
        options = {"control": control, "control_params": ["theta"]} if name == "RELAX" else {}
        loss = loss_type(2, spec.strategy, groups=spec.groups, denominator=spec.denominator, **options)
        with jax.enable_x64(True), monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            params = spec.params()
            try:
                problem = build_problem(spec.model, spec.guide, (), {}, params, loss.request, spec.denominator)
            except StructureError as error:
                assert "is enumerated" in str(error)
                assume(False)
            paper = Paper(spec, problem)
            assume(paper.oracle.combinations <= LARGEST)
            # by element of such a plate, particles are judged apart: this is tested on its own
            assume(outer_plate(problem) is None or name not in ("Reinforce", "RELAX"))
            told(spec, patch)
            if name == "RELAX":
                told_rounded(spec, patch)
            value, gradient = of_loss(loss, spec, params)
            mixed = any(w.category is StructureWarning and "wake-phi" in str(w.message) for w in said)
            weights = paper.weights(params)
            more = {"mixed": mixed} if name == "RWS" else {}
            expected = jax.jit(jax.grad(lambda p: formula(paper, p, weights, **more)), compiler_options=QUICK)(params)
            log_z = jax.jit(paper.oracle.log_evidence, compiler_options=QUICK)(paper.draws(params), params)
        np.testing.assert_allclose(value, -log_z, rtol=1e-9, atol=1e-9)
        for parameter in params:
            if name == "RELAX" and parameter == "theta":
                continue
            np.testing.assert_allclose(
                gradient[parameter], -expected[parameter], rtol=1e-7, atol=1e-8, err_msg=parameter
            )

    check()


def told_rounded(spec: Spec, patch: Any) -> None:
    """What noisy logits are rounded to is replaced by the same particles as elsewhere."""
    taken = draws_from_runs

    def given_runs(problem: Problem, numbers: Any, params: Mapping, runs: Any, subsample: Mapping) -> Draws:
        return taken(problem, numbers, params, own_runs(spec, problem, params), subsample)

    replace_everywhere(patch, draws_from_runs, given_runs)


def of_loss(loss: Any, spec: Spec, params: Mapping) -> tuple[Any, Any]:
    def value(params: Mapping) -> Any:
        return loss.loss(jax.random.key(0), params, spec.model, spec.guide)

    return jax.jit(jax.value_and_grad(value), compiler_options=QUICK)(dict(params))
