"""REBAR's loss and gradients on random models, for given noise, against the enumeration of discrete and relaxed
particles.

Nothing here is statistical. NumPyro's Bernoulli is linear in its value, so that its own density is also that of shares,
once it does not refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from hypothesis import Phase, assume, given, settings
from numpyro import handlers

import kayn
from kayn.errors import StructureError
from kayn.evidence.draws import Draws, draws_from_runs
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.summands import outer_plate
from kayn.objectives import relax
from tests.laws.oracle import QUICK, as_users_compile
from tests.laws.paper import LARGEST, Paper, fixed
from tests.laws.programs import Spec
from tests.laws.strategies import examples, specs

RHO = {"rebar_scale": 0.7, "rebar_temperature": 0.6}


def of_bernoullis(spec: Spec) -> Spec:
    """The model with Bernoulli latents that the guide draws apart, none of which picks an element of another."""
    sites = tuple(replace(s, family="bernoulli" if s.drawn else s.family, select=None) for s in spec.sites)
    return replace(spec, sites=sites, guide_reads=())


class Relaxation(Paper):
    """What noise makes of a model's discrete particles and of relaxed ones, by the formulas of the paper."""

    def __init__(self, spec: Spec, problem: Problem):
        super().__init__(spec, problem)
        rng = np.random.default_rng([spec.seed, 500])
        shapes = {n: problem.guide.density.sites[n].shape for n in sorted(problem.guide.names)}
        self.noise = {n: rng.uniform(0.05, 0.95, (2, problem.num_runs, *shape)) for n, shape in shapes.items()}
        logits = self.logits(spec.params())
        self.discrete = {n: logits[n] + logit(u) > 0 for n, (u, _) in self.noise.items()}

    def logits(self, params: Mapping) -> dict[str, Any]:
        program = handlers.seed(handlers.substitute(self.spec.guide, data=dict(params)), jax.random.key(0))
        trace = handlers.trace(program).get_trace()
        return {n: jnp.broadcast_to(trace[n]["fn"].logits, trace[n]["value"].shape) for n in self.noise}

    def draws(self, params: Mapping) -> Draws:
        """The discrete particles, which do not depend on the parameters."""
        runs = {n: b.astype(self.problem.guide.density.sites[n].dtype) for n, b in self.discrete.items()}
        return draws_from_runs(self.problem, self.problem.numbers, params, runs, {})

    def noisy(self, params: Mapping) -> dict[str, Any]:
        return {n: x + logit(self.noise[n][0]) for n, x in self.logits(params).items()}

    def noisy_again(self, params: Mapping) -> dict[str, Any]:
        """Noise drawn uniformly from what gives the discrete particles."""
        out = {}
        for name, x in self.logits(params).items():
            least, v = jax.nn.sigmoid(-x), self.noise[name][1]
            out[name] = x + logit(jnp.where(self.discrete[name], least + (1 - least) * v, least * v))
        return out

    def control(self, noisy: Mapping, params: Mapping, rho: Mapping) -> Any:
        """A multiple of log Z at the shares of noisy logits, with densities that have constant parameters."""
        shares = {n: jax.nn.sigmoid(z / rho["rebar_temperature"]) for n, z in noisy.items()}
        draws = self.draws(params)
        values = {n: shares[n][: len(v)] if n in shares else v for n, v in draws.values.items()}
        relaxed = replace(draws, values=values, runs=shares)
        with numpyro.validation_enabled(False):
            return rho["rebar_scale"] * self.oracle.log_evidence(relaxed, jax.lax.stop_gradient(params))


def logit(u: Any) -> Any:
    return jnp.log(u) - jnp.log1p(-u)


def estimate(paper: Relaxation, params: Mapping, rho: Mapping) -> dict[str, Any]:
    """Of the gradient of log Z (Tucker et al., 2017)."""
    gap = paper.oracle.log_evidence(paper.draws(params), params)
    gap = gap - paper.control(paper.noisy_again(params), params, rho)

    def surrogate(moving: Mapping) -> Any:
        on_noisy, on_again = (paper.control(z(moving), params, rho) for z in (paper.noisy, paper.noisy_again))
        score = paper.score(moving, {a.name: 1.0 for a in paper.oracle.axes})
        return fixed(paper, moving) + gap * score + on_noisy - on_again

    return jax.grad(surrogate)(params)


def squared(paper: Relaxation, params: Mapping, rho: Mapping) -> tuple[Any, dict[str, Any]]:
    found = estimate(paper, params, rho)
    return sum(jnp.sum(g**2) for g in found.values()), found


@given(specs(plain=True, continuous=False))
@settings(max_examples=examples(2), phases=[Phase.explicit, Phase.generate])
def test_loss_and_gradients_of_rebar(spec: Spec):
    spec = of_bernoullis(spec)
    assume(any(s.drawn for s in spec.latents))

    def guide() -> None:
        for name, start in RHO.items():
            numpyro.param(name, start)
        spec.guide()

    loss = kayn.REBAR(2, spec.strategy, groups=spec.groups, denominator=spec.denominator)
    with jax.enable_x64(True), as_users_compile(), pytest.MonkeyPatch.context() as patch:
        params, rho = spec.params(), {n: jnp.asarray(v) for n, v in RHO.items()}
        try:
            problem = build_problem(spec.model, spec.guide, (), {}, params, loss.request, spec.denominator)
        except StructureError as error:
            assert "is enumerated" in str(error)
            assume(False)
        assume(outer_plate(problem) is None)
        paper = Relaxation(spec, problem)
        assume(paper.oracle.combinations <= LARGEST)
        noise = cycle(paper.noise.values())
        patch.setattr(relax._Logits, "noise", lambda logits, key, count: tuple(map(jnp.asarray, next(noise))))

        def of_loss(every: Mapping) -> Any:
            return loss.loss(jax.random.key(0), every, spec.model, guide)

        # not by `QUICK`: XLA's programs for CPUs that are not optimised make NaN of some second derivatives
        value, gradient = jax.jit(jax.value_and_grad(of_loss))({**params, **rho})
        of_rho, of_params = jax.jit(
            jax.grad(lambda r: squared(paper, params, r), has_aux=True), compiler_options=QUICK
        )(rho)
        log_z = paper.oracle.log_evidence(paper.draws(params), params)
    np.testing.assert_allclose(value, -log_z, rtol=1e-9, atol=1e-9)
    for name, expected in of_params.items():
        np.testing.assert_allclose(gradient[name], -expected, rtol=1e-7, atol=1e-8, err_msg=name)
    for name, expected in of_rho.items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-7, atol=1e-8, err_msg=name)
