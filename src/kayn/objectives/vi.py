"""Massively parallel variational inference: ascend log Z by pathwise gradients,
and two forms of them with less noise."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kayn.axes.minibatches import refuse_powers
from kayn.errors import GuideError
from kayn.evidence.draws import Draws, draw_particles, draws_from_runs
from kayn.evidence.problem import Problem
from kayn.evidence.queries import latent_weights, marginals
from kayn.evidence.weights import proposal_terms, weigh
from kayn.objectives.base import (
    Call,
    MassivelyParallelELBO,
    log_evidence_of,
    pathwise_problem,
    refuse_dependent_axes,
    site_count,
)
from kayn.support.arrays import Array, KeyArray, PyTree


class VI(MassivelyParallelELBO):
    """Minus log Z, with gradients through reparameterised particles.

    With the "parallel" strategy this is the TMC / MP-VI bound (Aitchison, Tensor Monte Carlo, 2019), with "global" and
    "local" the importance weighted bound of K joint draws, in all or for every datum (IWAE). E log Z never exceeds the
    log evidence, and the gradient is that of the bound, without bias.

    Particles are independent draws here, also those of kayn's own guides, which elsewhere fill the quantiles evenly:
    even particles make the bound so flat around the posterior that it hardly determines the guide's scales.

    Raises (from `loss`):
        GuideError: a guide site cannot be reparameterised.
    """

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats, of particles that are differentiated through."""
        problem = pathwise_problem(self.problem(call, params))
        numbers = problem.numbers
        draws = draw_particles(problem, numbers, rng_key, params)
        return -log_evidence_of(problem, draws, params, proposal_terms(problem, numbers, draws, params))


class STL(VI):
    """Sticking the landing: as `kayn.VI`, but the guide's parameters count as constants inside its density.

    The gradient vanishes where the guide is the posterior, and is biased for K > 1 (Roeder, Wu & Duvenaud, 2017; Tucker
    et al., 2019). Works for any reparameterised guide.
    """

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats, with the guide's density of the particles at parameters that count as constants."""
        problem = pathwise_problem(self.problem(call, params))
        numbers = problem.numbers
        draws = draw_particles(problem, numbers, rng_key, params)
        terms = proposal_terms(problem, numbers, draws, jax.lax.stop_gradient(params))
        return -log_evidence_of(problem, draws, params, terms)


class DReG(VI):
    """Doubly reparameterised gradients: the gradient of `kayn.VI` without bias and with far less noise as K grows.

    A particle's pathwise derivative of log Z, with the guide's parameters constant inside its density, counts by the
    particle's posterior weight (Tucker, Lawson, Gu & Maddison, ICLR 2019). For particles of every latent on an axis of
    its own this is the particle's marginal weight, not the squared weight of combinations; see the documentation for
    the derivation. The gradient in the model's parameters is the usual one.

    Raises (from `loss`):
        GuideError: a site cannot be reparameterised, or is drawn given another one: then neither form is unbiased.
    """

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats, with the gradient through every particle scaled by its posterior weight.

        Raises:
            GuideError: a guide site cannot be reparameterised or depends on another one, or rows of a subsampled
                plate stand for others below a latent outside of it.
        """
        problem = pathwise_problem(self.problem(call, params))
        refuse_dependent_axes(problem, "DReG", REMEDY)
        refuse_powers(problem.layout, "DReG")
        for name, parents in problem.guide.parents.items():
            if parents:
                raise GuideError(
                    f"kayn.DReG is biased where guide sites depend on each other, as {name!r} on {parents[0]!r}. "
                    f"{REMEDY}"
                )
        numbers, fixed = problem.numbers, jax.lax.stop_gradient(params)
        draws = draw_particles(problem, numbers, rng_key, params)
        still = jax.lax.stop_gradient(draws)
        _, weights = marginals(jax.lax.stop_gradient(weigh(problem, numbers, still, fixed)))
        draws = _scaled(problem, numbers, draws, params, weights)
        return -log_evidence_of(problem, draws, params, proposal_terms(problem, numbers, draws, fixed))


REMEDY = "Use kayn.VI or kayn.STL"


def _scaled(problem: Problem, numbers: Mapping, draws: Draws, params: Mapping, weights: Mapping[str, Array]) -> Draws:
    """The same particles, with derivatives through each multiplied by its weight.

    Where log q counts c times in the proposal (rows of a subsampled plate that share an index), by
    `1 - c (1 - weight)`: the score that its derivative in the parameters stands for counts c times, what is
    differentiated counts c times already.
    """
    runs = dict(draws.runs)
    for axis in problem.layout.axes:
        for name in axis.latents:
            if name in runs and not axis.enumerated:
                count = site_count(problem, name)
                own = latent_weights(problem, weights, name)
                own = own if count == 1.0 else 1 - count * (1 - own)
                values = runs[name]
                own = jnp.pad(own, [(0, values.shape[0] - own.shape[0]), *[(0, 0)] * (own.ndim - 1)])
                own = own.reshape((*own.shape, *(1,) * (values.ndim - own.ndim)))
                runs[name] = scale_gradient(values, own)
    return draws_from_runs(problem, numbers, params, runs, draws.subsample)


@jax.custom_vjp
def scale_gradient(value: Array, factor: Array) -> Array:
    """`value`, whose derivative counts `factor` times; the factor is broadcast against it."""
    return value


scale_gradient.defvjp(lambda value, factor: (value, factor), lambda factor, g: (factor * g, jnp.zeros_like(factor)))
