"""kayn against brute-force enumeration on random models: evidence, marginals, gradients, expectations, draws, mode."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, seed, settings

from kayn.evidence.expectation import of_function, traced_function
from tests.laws.estimates import (
    FALSE_ALARM,
    chi_square,
    chosen,
    close,
    estimates,
    evidence_alone,
    evidence_by_enumeration,
    slope_by_enumeration,
)
from tests.laws.oracle import QUICK, everything
from tests.laws.problems import build, some_draws
from tests.laws.programs import Spec
from tests.laws.strategies import EVENTS, examples, specs
from tests.laws.structures import DISCRETE, ROWS


def free(spec: Spec) -> dict:
    """The parameters that no handler holds: NumPyro's own `substitute` would put theirs in its place."""
    held = {spec.full("theta")} if "substitute" in spec.handlers else set()
    return {n: v for n, v in spec.params().items() if n not in held}


PARTS = 12
"""Of the random structures, so that workers share them; each has a seed of its own."""


def tried(part, matches, structures, count):
    """Compare so many random structures with enumeration, others in every part."""
    check = settings(max_examples=examples(count))(given(structures)(matches))
    seed(part)(check)()


@pytest.mark.parametrize("part", range(PARTS))
def test_evidence_marginals_and_gradients_match_enumeration(part, forget):
    def matches(spec):
        one_structure_matches(spec)
        forget()

    tried(part, matches, specs(), 120 / PARTS)


def one_structure_matches(spec):
    """The evidence of every structure, all the rest of a sixth of them, in float32 too of some."""
    with jax.enable_x64(True):
        problem, oracle = build(spec)
        draws, params = some_draws(spec, problem), spec.params()
        if spec.seed % 6 != 1:
            close(evidence_alone(problem, draws, params), evidence_by_enumeration(oracle, draws, free(spec)), 1e-9)
            return
        value, again, weights, gradient = estimates(problem, draws, params)
        marginals = {}
        if oracle.rows is None:
            log_weights, expected, slope = everything(oracle, draws, free(spec))
            marginals = oracle.marginals(np.asarray(jax.nn.softmax(log_weights)))
            assert weights.keys() == marginals.keys()
        else:
            expected, slope = slope_by_enumeration(oracle, draws, free(spec))
        close(value, expected, 1e-9)
        close(again, expected, 1e-9)
        slope = jax.tree.map(jnp.zeros_like, params) | slope
        for name, found in marginals.items():
            close(weights[name], found, 1e-9)
        for name, found in gradient.items():
            close(found, slope[name], 1e-9)
    if spec.seed % 18 != 1:
        return
    single, _ = build(spec)
    assert single.layout.axes == problem.layout.axes
    draws, params = some_draws(spec, single), spec.params()
    value, _, weights, gradient = estimates(single, draws, params)
    assert value.dtype == jnp.float32
    close(value, expected, 1e-4)
    for name, found in marginals.items():
        close(weights[name], found, 1e-4)
    for name, found in gradient.items():
        close(found, slope[name], 1e-3)


@pytest.mark.parametrize("part", range(4))
def test_pair_expectations_match_enumeration(part):
    tried(part, pairs_match, specs(plain=True), 3)


def pairs_match(spec):
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

        planned = of_function(problem, traced_function(problem, product, (first, second)))
        assume(planned is not None)
        draws, params = some_draws(spec, problem), spec.params()
        replicates = jax.tree.map(lambda x: x[None], draws)
        moments = jax.jit(planned.moments, compiler_options=QUICK)
        ((mean, std),) = moments(problem.numbers, params, replicates, jnp.ones(1))
        probabilities = np.asarray(jax.nn.softmax(everything(oracle, draws, params)[0]))
        close(mean, oracle.expectation(probabilities, draws, product, first, second), 1e-9)
        square = oracle.expectation(probabilities, draws, lambda a, b: product(a, b) ** 2, first, second)
        close(std**2, square - np.square(mean), 1e-9)


@pytest.mark.parametrize("part", range(5))
def test_draws_and_best_combination_match_enumeration(part):
    tried(part, draws_match, specs(), 3)


def draws_match(spec):
    with jax.enable_x64(True):
        problem, oracle = build(spec)
        # rows that stand for several elements have no weights of combinations
        assume(oracle.rows is None)
        draws, params = some_draws(spec, problem), free(spec)
        log_weights = np.asarray(everything(oracle, draws, params)[0])
        params = spec.params()
        drawn, (largest, best) = chosen(problem, draws, params, jax.random.split(jax.random.key(spec.seed), 10_000))
        probabilities = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        assert chi_square(oracle.position(drawn), probabilities) > FALSE_ALARM
        position = oracle.position({n: np.asarray(v)[None] for n, v in best.items()})
        close(log_weights[position[0]], log_weights.max(), 1e-12)
        close(largest, log_weights.max(), 1e-9)


def test_random_models_cover_the_structures():
    """The strategy must not quietly shrink to trivial models."""
    seen: Counter[str] = Counter()

    @given(specs())
    @settings(max_examples=250, database=None)
    def look(spec):
        latents, observed = spec.latents, [s for s in spec.sites if s.observed]
        ways = [h for s in spec.sites for r in s.reads for _, h in r.how]
        summed = {s.name for s in latents if s.enumerate}
        seen["ragged"] += any(isinstance(h, tuple) for h in ways)
        seen["ragged in ragged"] += any(isinstance(h, tuple) and len(h) == 3 for h in ways)
        seen["nested"] += any(len(s.home) == 2 for s in latents)
        seen["whole plate"] += "sum" in ways
        seen["event"] += any(s.family in EVENTS for s in latents)
        seen["enumerated"] += bool(summed)
        seen["enumerated below enumerated"] += any(r.source in summed for s in latents if s.enumerate for r in s.reads)
        seen["discrete"] += any(s.family in DISCRETE and not s.enumerate for s in latents)
        seen["mixed"] += len({s.family in DISCRETE for s in latents if s.drawn}) == 2
        seen["picked by a discrete latent"] += any(s.select for s in observed)
        seen["implicit plate"] += any("batch" in s.home for s in latents)
        seen["subsampled"] += spec.rows is not None and any(ROWS in s.home for s in observed)
        seen["latents in a subsample"] += spec.rows is not None and any(ROWS in s.home for s in latents)
        seen["scaled"] += any(s.wrap == "scale" for s in latents)
        seen["masked latent"] += any(s.wrap == "mask" for s in latents)
        seen["masked data"] += any(s.wrap == "mask" for s in observed)
        seen["masked in events"] += any(s.wrap == "part" for s in observed)
        seen["missing data"] += spec.missing and any(s.wrap in ("mask", "part") for s in observed)
        seen["fixed latent"] += any(s.fixed for s in latents)
        seen["loop"] += any(s.steps for s in latents)
        seen["loop, summed out"] += any(s.steps and s.enumerate for s in latents)
        seen["dependent guide"] += any(reads for _, reads in spec.guide_reads)
        seen["auxiliary"] += bool(spec.auxiliary)
        seen["hostile names"] += bool(spec.names)
        seen["groups"] += bool(spec.groups)
        seen[spec.strategy] += 1
        seen.update(spec.handlers)

    look()
    assert min(seen.values()) >= 5, seen
    assert len(seen) == 35, seen
