"""Score-function estimators: gradients of E log Z for guides that cannot be reparameterised,
discrete ones above all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kayn.axes.minibatches import refuse_powers
from kayn.axes.types import Axis, proposal_name
from kayn.errors import KaynError
from kayn.evidence.draws import Draws, draw_particles, draws_from_runs
from kayn.evidence.problem import Problem, guide_inputs, model_inputs
from kayn.evidence.queries import marginals
from kayn.evidence.soundness import telling
from kayn.evidence.summands import log_evidence_summands, outer_plate
from kayn.evidence.weights import proposal_terms, weigh_against
from kayn.graph.absent import absences
from kayn.objectives.base import (
    Call,
    MassivelyParallelELBO,
    along,
    only_gradient,
    refuse_dependent_axes,
    sampled_axes,
    site_count,
)
from kayn.particles.density import log_density
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.options import Particles, Strategy
from kayn.support.validate import checked


class Reinforce(MassivelyParallelELBO):
    """Minus log Z, with the score-function gradient in the guide's parameters; unbiased, noisy.

    The gradient is `(log Z - b) grad log q(particles)` plus that of log Z with the particles fixed. Where every latent
    runs over one outer plate, log Z is a sum over its elements, and each element's particles are judged by their own
    summand.

    Args:
        baseline: b, a function of (params, *args, **kwargs) of the model that returns a scalar or one number for every
            element of the outer plate. Parameters it uses (register them with `numpyro.param` in the guide) are fitted
            to log Z by least squares.
    """

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        baseline: Callable[..., Any] | None = None,
        **options: Any,
    ):
        super().__init__(num_particles, strategy, **options)
        self.baseline = baseline

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats, plus terms of value zero with the score's gradient; and the squared error of the
        baseline."""
        problem = self.problem(call, params)
        numbers = problem.numbers
        draws = jax.lax.stop_gradient(draw_particles(problem, numbers, rng_key, params))
        terms = proposal_terms(problem, numbers, draws, params)
        log_z = log_evidence_summands(problem, numbers, draws, params, terms)
        plate, signal = outer_plate(problem), jax.lax.stop_gradient(log_z.parts)
        fitted = 0.0
        if self.baseline is not None:
            expected = self.baseline(params, *call.args, **call.kwargs)
            fitted = only_gradient(jnp.sum((signal - expected) ** 2))
            signal = signal - jax.lax.stop_gradient(expected)
        scores = [along(_score(problem, numbers, a, draws, params, terms), a, plate) for a in sampled_axes(problem)]
        return -log_z.total - only_gradient(log_z.scale * jnp.sum(signal * sum(scores))) + fitted


class VIMCO(MassivelyParallelELBO):
    """Minus log Z, with the score-function gradient and the evidence without a particle as its baseline
    (Mnih & Rezende, ICML 2016).

    Unbiased, without a learned baseline. Latents that can be reparameterised are differentiated through, beside
    discrete ones. For particles of every latent on an axis of its own, deleting particle k of latent i leaves
    `Z (1 - w_ik) K / (K - 1)`, w its marginal weight, so that all baselines come from one backward pass; see the
    documentation.

    Args:
        num_particles: at least 2.
        baseline: "arithmetic" deletes the particle; "geometric" replaces its share by the geometric mean of the
            others', as in the original.
    """

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        baseline: Literal["arithmetic", "geometric"] = "arithmetic",
        **options: Any,
    ):
        super().__init__(num_particles, strategy, **options)
        self.baseline = baseline

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats, plus terms of value zero with the score's gradient.

        Raises:
            GuideError: particles of one axis are drawn given another's, or rows of a subsampled plate stand for others
                below a latent outside of it.
            KaynError: an axis whose particles cannot be differentiated through has one of them.
        """
        problem = self.problem(call, params)
        refuse_dependent_axes(
            problem,
            "VIMCO",
            "Put both on one axis (strategy='local' or groups=), or use kayn.RWS or kayn.Reinforce",
        )
        refuse_powers(problem.layout, "VIMCO")
        scored = [(a, names) for a in sampled_axes(problem) if (names := _without_path(problem, a))]
        for axis, _ in scored:
            if axis.size < 2:
                raise KaynError(
                    f"kayn.VIMCO compares particles with each other, but {axis.latents[0]!r} has one; use at least 2"
                )
        numbers = problem.numbers
        draws = _pathwise(problem, numbers, rng_key, params, {n for _, names in scored for n in names})
        terms = proposal_terms(problem, numbers, draws, params)
        weighed = telling(weigh_against(problem, numbers, draws, params, terms))
        _, weights = marginals(jax.lax.stop_gradient(weighed))
        surrogate = 0.0
        for axis, names in scored:
            gain = jax.lax.stop_gradient(_gain(weights[axis.name], self.baseline))
            scale = math.prod(problem.graph.plate(p).scale for p in axis.scope)
            score = _score(problem, numbers, replace(axis, latents=names), draws, params, terms)
            surrogate = surrogate + scale * jnp.sum(gain * score)
        return -weighed.log_evidence() - only_gradient(surrogate)


def _without_path(problem: Problem, axis: Axis) -> tuple[str, ...]:
    """Latents of an axis whose draws cannot be differentiated."""
    return tuple(n for n in axis.latents if not problem.guide.density.sites[n].reparameterised)


def _pathwise(problem: Problem, numbers: Mapping, rng_key: KeyArray, params: PyTree, fixed: set[str]) -> Draws:
    """Particles with derivatives in the guide's parameters, but for those of some latents."""
    draws = draw_particles(problem, numbers, rng_key, params)
    runs = {n: jax.lax.stop_gradient(v) if n in fixed else v for n, v in draws.runs.items()}
    return draws_from_runs(problem, numbers, params, runs, draws.subsample)


def _gain(weights: Array, baseline: str) -> Array:
    """log Z minus its value without each particle, from marginal weights [*scope, K]."""
    count = weights.shape[-1]
    others = 1.0 - jnp.eye(count, dtype=weights.dtype)
    tiny = float(jnp.finfo(weights.dtype).tiny)
    # summed over the others, never 1 - w, which has lost all digits where w is near one
    rest = jnp.matmul(weights, others, precision=jax.lax.Precision.HIGHEST)
    if baseline == "arithmetic":
        return -jnp.log(jnp.maximum(rest, tiny)) - math.log(count / (count - 1))
    logs = jnp.log(jnp.maximum(weights, tiny))
    mean = jnp.matmul(logs, others, precision=jax.lax.Precision.HIGHEST) / (count - 1)
    return -jnp.log(jnp.maximum(rest + jnp.exp(mean), tiny))


def _score(
    problem: Problem, numbers: Mapping, axis: Axis, draws: Draws, params: Mapping, terms: Mapping[str, Array]
) -> Array:
    """Log density of drawing every particle, given the particles it was drawn from: [*scope, K]."""
    whole = axis in problem.layout.axes and all(site_count(problem, n) == 1.0 for n in axis.latents)
    if whole and not any(p not in axis.latents for n in axis.latents for p in problem.guide.parents[n]):
        return -terms[proposal_name(axis)]
    inputs = guide_inputs(problem, numbers, params, draws.subsample)
    absent = absences(problem.model, model_inputs(problem, numbers, params, draws.subsample))
    return log_density(problem.guide, problem.graph, axis, draws.runs, inputs, absent, "paired", drawn=True)
