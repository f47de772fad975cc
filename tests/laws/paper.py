"""Estimators of random models by their formulas, from the enumeration of all combinations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from kayn.evidence.draws import Draws, draws_from_runs
from kayn.evidence.problem import Problem
from tests.laws.oracle import QUICK, BruteForce
from tests.laws.programs import Spec

LARGEST = 3000
"""Combinations of particles, at most: derivatives of all of them are held at once."""


def own_runs(spec: Spec, problem: Problem, params: Mapping) -> dict[str, Any]:
    """NumPyro's runs of the guide, as functions of its parameters where these can be differentiated through."""
    sites = problem.guide.density.sites

    def one(key: Any) -> dict[str, Any]:
        program = handlers.seed(handlers.substitute(spec.guide, data=dict(params)), key)
        trace = handlers.trace(program).get_trace()
        return {n: trace[n]["value"].astype(sites[n].dtype) for n in problem.guide.names}

    return jax.vmap(one)(jax.random.split(jax.random.key(spec.seed), problem.num_runs))


class Paper:
    """One model's estimators by their formulas, from the enumeration alone."""

    def __init__(self, spec: Spec, problem: Problem):
        self.spec, self.problem = spec, problem
        self.oracle = BruteForce(problem, spec.clean_model, spec.guide)

    def draws(self, params: Mapping) -> Draws:
        runs = own_runs(self.spec, self.problem, params)
        return draws_from_runs(self.problem, self.problem.numbers, params, runs, {})

    def weights(self, params: Mapping) -> tuple[np.ndarray, dict[str, Any]]:
        """Probabilities of all combinations, and those of every axis's particles: [*scope, K]."""
        probabilities = jax.jit(self.oracle.probabilities_of, compiler_options=QUICK)(self.draws(params), params)
        probabilities = np.asarray(probabilities)
        return probabilities, self.oracle.marginals(probabilities)

    def score(
        self, params: Mapping, factors: Mapping[str, Any], kept: Callable[[str], bool] = lambda name: True
    ) -> Any:
        """Factors times the log density of drawing every particle from its own parents,
        summed over latents that are kept."""
        still, total = jax.lax.stop_gradient(self.draws(params)), 0.0
        for axis in self.oracle.axes:
            names = tuple(n for n in axis.latents if kept(n))
            if not axis.enumerated and names:
                log_q = self.oracle.log_proposal(replace(axis, latents=names), still, params, "paired")
                total = total + jnp.sum(factors[axis.name] * log_q)
        return total


def fixed(paper: Paper, params: Mapping, shared: Mapping | None = None) -> Any:
    """log Z with the particles held."""
    return paper.oracle.log_evidence(jax.lax.stop_gradient(paper.draws(params)), params, shared)
