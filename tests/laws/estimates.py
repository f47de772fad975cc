"""What kayn says for given particles, and how it is compared."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from scipy import stats

from kayn.evidence import queries
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem
from kayn.evidence.queries import best_indices, draw_indices
from kayn.evidence.weights import log_evidence, weigh
from tests.laws.oracle import QUICK, BruteForce

FALSE_ALARM = 1e-4
"""Probability that a correct sampler fails one chi-square test; seeds are fixed, so that what passes keeps passing."""


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def estimates(problem: Problem, draws: Draws, params):
    """log Z, marginal weights of every axis, gradient in the parameters."""
    numbers = problem.numbers

    def log_z(params):
        weighed = weigh(problem, numbers, draws, params)
        return log_evidence(problem, numbers, weighed, params, draws.subsample), weighed

    (value, weighed), gradient = jax.value_and_grad(log_z, has_aux=True)(params)
    again, weights = queries.marginals(weighed)
    return value, again, weights, gradient


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def evidence_alone(problem: Problem, draws: Draws, params):
    weighed = weigh(problem, problem.numbers, draws, params)
    return log_evidence(problem, problem.numbers, weighed, params, draws.subsample)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def evidence_by_enumeration(oracle: BruteForce, draws: Draws, params):
    return oracle.log_evidence(draws, params)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def slope_by_enumeration(oracle: BruteForce, draws: Draws, params):
    return jax.value_and_grad(lambda p: oracle.log_evidence(draws, p))(params)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def chosen(problem, draws, params, keys):
    weighed = weigh(problem, problem.numbers, draws, params)
    return draw_indices(weighed, keys), best_indices(weighed)


def chi_square(drawn: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of draws against probabilities; bins with fewer than five expected draws are pooled."""
    counts = np.bincount(drawn, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(drawn)
    assert counts[probabilities == 0].sum() == 0
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    if expected[-1] < 5:
        # too little is left over for a bin of its own: add it to the smallest one
        smallest = np.argmin(expected[:-1])
        observed[smallest] += observed[-1]
        expected[smallest] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    if len(expected) == 1:
        return 1.0
    return stats.chi2.sf(np.sum((observed - expected) ** 2 / expected), len(expected) - 1)
