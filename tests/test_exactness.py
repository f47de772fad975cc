"""kayn against brute-force enumeration on random models: evidence, marginals, gradients, expectations, draws, best combination."""

from __future__ import annotations

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy import stats

from kayn import evidence, expectation, queries
from kayn.axes import make_request
from kayn.errors import StructureError
from kayn.evidence import Draws, Problem
from oracle import QUICK, BruteForce, everything
from strategies import MAX_COMBINATIONS, Spec, specs

pytestmark = pytest.mark.slow

EVENTS = ("mvn", "event")
FALSE_ALARM = 1e-4
"""Probability that a correct sampler fails one chi-square test; seeds are fixed, so a test that passes keeps passing."""


def build(spec: Spec) -> tuple[Problem, BruteForce]:
    request = make_request(dict(spec.num_particles), spec.strategy, spec.groups)
    try:
        problem = evidence.build_problem(spec.model, spec.guide, (), {}, spec.params(), request, spec.denominator)
    except StructureError as error:
        # an enumerated latent cannot be coupled; whatever else is refused is a fault
        assert "is enumerated" in str(error)
        assume(False)
    oracle = BruteForce(problem, spec.model, spec.guide)
    assume(oracle.combinations <= MAX_COMBINATIONS)
    return problem, oracle


def some_draws(spec: Spec, problem: Problem) -> Draws:
    """Particles of any law do for these tests; NumPy's cost no compilation."""
    rng = np.random.default_rng(spec.seed)
    runs = {}
    for name in problem.guide.names:
        site, family = problem.guide.density.sites[name], spec.site(name).family
        shape = (problem.num_runs, *site.shape)
        if family in ("bernoulli", "categorical"):
            runs[name] = jnp.asarray(rng.integers(0, 2 if family == "bernoulli" else 3, shape), site.dtype)
        else:
            array = rng.gamma(2.0, size=shape) if family == "gamma" else rng.normal(size=shape)
            runs[name] = jnp.asarray(array.astype(np.float32), site.dtype)
    return evidence.draws_from_runs(problem, problem.numbers, spec.params(), runs, {})


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def estimates(problem: Problem, draws: Draws, params):
    """log Z, marginal weights of every axis, gradient in the parameters."""
    numbers = problem.numbers

    def log_z(params):
        slots = evidence.weigh(problem, numbers, draws, params)
        return evidence.log_evidence(problem, numbers, slots, params, draws.subsample), slots

    (value, slots), gradient = jax.value_and_grad(log_z, has_aux=True)(params)
    index = evidence.link_index(problem, evidence.model_inputs(problem, numbers, params, draws.subsample))
    again, weights = queries.marginals(problem, slots, index)
    return value, again, weights, gradient


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@given(specs())
@settings(max_examples=30)
def test_evidence_marginals_and_gradients_match_enumeration(spec):
    with jax.enable_x64(True):
        problem, oracle = build(spec)
        draws, params = some_draws(spec, problem), spec.params()
        log_weights, expected, expected_gradient = everything(oracle, draws, params)
        value, again, weights, gradient = estimates(problem, draws, params)
        close(value, expected, 1e-9)
        close(again, expected, 1e-9)
        marginals = oracle.marginals(np.asarray(jax.nn.softmax(log_weights)))
        assert weights.keys() == marginals.keys()
        for name, found in weights.items():
            close(found, marginals[name], 1e-9)
        for name, found in gradient.items():
            close(found, expected_gradient[name], 1e-9)
    if spec.seed % 3:
        return
    single, _ = build(spec)
    assert single.layout.axes == problem.layout.axes
    draws, params = some_draws(spec, single), spec.params()
    value, _, weights, gradient = estimates(single, draws, params)
    assert value.dtype == jnp.float32
    close(value, expected, 1e-4)
    for name, found in weights.items():
        close(found, marginals[name], 1e-4)
    for name, found in gradient.items():
        close(found, expected_gradient[name], 1e-3)


@given(specs())
@settings(max_examples=12)
def test_pair_expectations_match_enumeration(spec):
    latents = [s for s in spec.sites if not s.observed]
    pairs = [
        (a.name, b.name)
        for a in latents
        for b in latents
        if a.name < b.name and a.family not in EVENTS and b.family not in EVENTS
    ]
    # plates along equal dimensions, or none: then elements of the two latents pair up
    pairs = [
        (a, b)
        for a, b in pairs
        if not spec.site(a).home or not spec.site(b).home or spec.site(a).home == spec.site(b).home
    ]
    assume(pairs)
    first, second = pairs[spec.seed % len(pairs)]
    with jax.enable_x64(True):
        problem, oracle = build(spec)

        def product(a, b):
            return a * jnp.tanh(b)

        planned = expectation.of_function(problem, product, (first, second))
        assume(planned is not None)
        draws, params = some_draws(spec, problem), spec.params()
        replicates = jax.tree.map(lambda x: x[None], draws)
        moments = jax.jit(planned.moments, compiler_options=QUICK)
        mean, std = moments(problem.numbers, params, replicates, jnp.ones(1))
        probabilities = np.asarray(jax.nn.softmax(everything(oracle, draws, params)[0]))
        close(mean, oracle.expectation(probabilities, draws, product, first, second), 1e-9)
        square = oracle.expectation(probabilities, draws, lambda a, b: product(a, b) ** 2, first, second)
        close(std**2, square - np.square(mean), 1e-9)


@given(specs())
@settings(max_examples=15)
def test_draws_and_best_combination_match_enumeration(spec):
    with jax.enable_x64(True):
        problem, oracle = build(spec)
        draws, params = some_draws(spec, problem), spec.params()
        log_weights = np.asarray(everything(oracle, draws, params)[0])
        chosen, (largest, best) = _chosen(problem, draws, params, jax.random.split(jax.random.key(spec.seed), 10_000))
        probabilities = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        assert chi_square(oracle.position(chosen), probabilities) > FALSE_ALARM
        position = oracle.position({n: np.asarray(v)[None] for n, v in best.items()})
        close(log_weights[position[0]], log_weights.max(), 1e-12)
        close(largest, log_weights.max(), 1e-9)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _chosen(problem, draws, params, keys):
    slots = evidence.weigh(problem, problem.numbers, draws, params)
    index = evidence.link_index(problem, evidence.model_inputs(problem, problem.numbers, params, draws.subsample))
    return queries.draw_indices(problem.layout.plan, slots, index, keys), queries.best_indices(
        problem.layout.plan, slots, index
    )


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


def test_random_models_cover_the_structures():
    """The strategy must not quietly shrink to trivial models."""
    seen: Counter[str] = Counter()

    @given(specs())
    @settings(max_examples=150, database=None)
    def look(spec):
        latents = [s for s in spec.sites if not s.observed]
        seen["ragged"] += any(isinstance(h, tuple) for s in spec.sites for r in s.reads for _, h in r.how)
        seen["ragged in ragged"] += any(
            isinstance(h, tuple) and len(h) == 3 for s in spec.sites for r in s.reads for _, h in r.how
        )
        seen["nested"] += any(len(s.home) == 2 for s in latents)
        seen["whole plate"] += any(h == "sum" for s in spec.sites for r in s.reads for _, h in r.how)
        seen["event"] += any(s.family in ("mvn", "event") for s in latents)
        seen["enumerated"] += any(s.enumerate for s in latents)
        seen["discrete"] += any(s.family in ("bernoulli", "categorical") and not s.enumerate for s in latents)
        seen["implicit plate"] += any("batch" in s.home for s in latents)
        seen["dependent guide"] += any(reads for _, reads in spec.guide_reads)
        seen["groups"] += bool(spec.groups)
        seen[spec.strategy] += 1

    look()
    assert min(seen.values()) >= 5, seen
    assert len(seen) == 13, seen
