"""Whole models under numerical stress: impossible particles, huge log weights, one particle, odd sizes and dtypes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import kayn
from kayn.axes.request import make_request
from kayn.contraction.steps.sliced import made_in_parts
from kayn.errors import NumericsWarning
from kayn.evidence import queries
from kayn.evidence.draws import draw_particles, draws_from_runs
from kayn.evidence.problem import build_problem
from kayn.evidence.weights import log_evidence, weigh
from kayn.factors import elementwise
from kayn.factors.cost import is_dear
from kayn.guides.factorised import FactorisedGuide
from kayn.programs.outputs import Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program
from kayn.xla.compilation import apart
from tests.laws.oracle import QUICK, BruteForce

Y = np.array([0.1, 0.5, -1.0, 2.0], np.float32)
COUNTY = np.array([0, 2, 2, 0], np.int32)


def normal(name, loc=0.0, scale=1.0, **options):
    return numpyro.sample(name, dist.Normal(loc, scale), **options)


def guide(*args, **kwargs):
    """Parameters for the models below."""
    normal("mu", numpyro.param("mu_loc", 0.0))
    with numpyro.plate("c", 3):
        normal("a", numpyro.param("a_loc", jnp.zeros(3)))


PARAMS = {"mu_loc": np.float32(0.3), "a_loc": np.array([0.1, -0.4, 0.8], np.float32)}


def groups(extra=None, scale=1.0, y=Y, county=COUNTY):
    mu = normal("mu")
    with numpyro.plate("c", 3):
        a = normal("a", mu)
    if extra is not None:
        numpyro.factor("extra", extra(mu, a))
    with numpyro.plate("h", 4):
        normal("y", a[county], scale, obs=y)


def build(model, num_particles=3, params=PARAMS, guide=guide, **options):
    return build_problem(model, guide, (), {}, params, make_request(num_particles, **options))


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def estimates(problem, key, params):
    """log Z with its gradient in the parameters, through the particles, and the marginals."""

    def log_z(params):
        draws = draw_particles(problem, problem.numbers, key, params)
        weighed = weigh(problem, problem.numbers, draws, params)
        return log_evidence(problem, problem.numbers, weighed, params, draws.subsample), (draws, weighed)

    (value, (draws, weighed)), gradient = jax.value_and_grad(log_z, has_aux=True)(params)
    return value, gradient, queries.marginals(weighed)[1], draws


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def exact(problem, model, draws):
    """log Z by enumeration in float64, with the particles that float32 drew, and the marginals."""
    with jax.enable_x64(True):
        oracle = BruteForce(problem, model, guide)
        log_weights = np.asarray(oracle.log_weights(jax.tree.map(lambda x: np.asarray(x, np.float64), draws), PARAMS))
        value = np.logaddexp.reduce(log_weights)
        return value, oracle.marginals(np.exp(log_weights - value)) if np.isfinite(value) else None


def below(threshold):
    """A factor that makes particles of mu above a threshold impossible."""
    return partial(groups, lambda mu, a: jnp.where(mu < threshold, 0.0, -jnp.inf))


def test_impossible_particles_get_no_weight():
    model = below(0.3)
    problem = build(model)
    value, gradient, weights, draws = estimates(problem, jax.random.key(0), PARAMS)
    possible = np.asarray(draws.values["mu"]) < 0.3
    assert 0 < possible.sum() < 3
    expected, marginals = exact(problem, model, draws)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert finite(gradient)
    for name, found in weights.items():
        np.testing.assert_allclose(found, marginals[name], atol=1e-5)
    assert (np.asarray(weights["kayn:K[mu]"])[~possible] == 0).all()


def test_nothing_possible():
    with jax.debug_nans(True):
        value, gradient, weights, _ = estimates(build(below(-100.0)), jax.random.key(0), PARAMS)
    assert np.isneginf(value)
    assert all((np.asarray(w) == 0).all() for w in weights.values())
    assert all((np.asarray(g) == 0).all() for g in gradient.values())


def test_undefined_densities_are_impossible():
    """A log density that is NaN at a wild particle (here a negative scale) must not spoil the others."""

    def model():
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
        with numpyro.plate("h", 4):
            normal("y", a[COUNTY], jnp.sqrt(mu), obs=Y)

    value, _, weights, draws = estimates(build(model, 4), jax.random.key(1), PARAMS | {"mu_loc": np.float32(-0.3)})
    defined = np.asarray(draws.values["mu"]) > 0
    assert 0 < defined.sum() < 4
    assert np.isfinite(value)
    assert finite(weights)
    assert (np.asarray(weights["kayn:K[mu]"])[~defined] == 0).all()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_shifted_log_weights(shift):
    plain = estimates(build(groups), jax.random.key(0), PARAMS)
    shifted = estimates(build(partial(groups, lambda mu, a: shift)), jax.random.key(0), PARAMS)
    np.testing.assert_allclose(shifted[0], plain[0] + shift, rtol=1e-6)
    for name, weights in plain[2].items():
        np.testing.assert_allclose(shifted[2][name], weights, atol=1e-5)
    for name, gradient in plain[1].items():
        np.testing.assert_allclose(shifted[1][name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3])
def test_log_weights_that_span_thousands_of_nats(scale):
    model = partial(groups, scale=scale)
    problem = build(model, 4)
    value, gradient, weights, draws = estimates(problem, jax.random.key(2), PARAMS)
    expected, marginals = exact(problem, model, draws)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert finite(gradient)
    for name, found in weights.items():
        # at log weights of 1e6 one float32 step is 0.06 nats: weights are off by some 10 %, but sum to one exactly
        np.testing.assert_allclose(found, marginals[name], atol=5e-2 if scale == 1e-3 else 2e-3)
        np.testing.assert_allclose(np.sum(found, -1), 1.0, atol=1e-5)


def test_likelihood_against_prior():
    """20000 observations pull one way, a tight prior the other: a sharp factor against a sharp factor, in float32."""

    def model():
        mu = normal("mu", 0.0, 0.01)
        with numpyro.plate("c", 3):
            a = normal("a", mu, 0.01)
        with numpyro.plate("h", 20_000):
            normal("y", a[np.arange(20_000, dtype=np.int32) % 3], 1.0, obs=np.ones(20_000, np.float32))

    problem = build(model, 4)
    value, gradient, weights, draws = estimates(problem, jax.random.key(2), PARAMS)
    expected, marginals = exact(problem, model, draws)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert finite(gradient)
    for name, found in weights.items():
        np.testing.assert_allclose(found, marginals[name], atol=2e-3)


def test_one_particle():
    model = groups
    problem = build(model, 1)
    value, gradient, weights, draws = estimates(problem, jax.random.key(0), PARAMS)
    values = {n: np.asarray(v)[0] for n, v in draws.values.items()}
    prior = stats.norm.logpdf(values["mu"]) + stats.norm.logpdf(values["a"], values["mu"]).sum()
    likelihood = stats.norm.logpdf(Y, values["a"][COUNTY]).sum()
    proposal = stats.norm.logpdf(values["mu"], PARAMS["mu_loc"]) + stats.norm.logpdf(values["a"], PARAMS["a_loc"]).sum()
    np.testing.assert_allclose(value, prior + likelihood - proposal, rtol=1e-5)
    assert finite(gradient)
    for found in weights.values():
        np.testing.assert_allclose(found, 1.0, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["parallel", "global", "local"])
def test_plate_of_one(strategy):
    def model():
        mu = normal("mu")
        with numpyro.plate("c", 1), numpyro.plate("d", 1, dim=-2):
            a = normal("a", mu)
            normal("y", a, obs=np.ones((1, 1), np.float32))

    def flat():
        normal("y", normal("a", normal("mu")), obs=1.0)

    def guide(flat):
        normal("mu", 0.2)
        with numpyro.plate("c", 1), numpyro.plate("d", 1, dim=-2):
            normal("a", 0.4)

    plated = build(model, 3, {}, lambda: guide(False), strategy=strategy)
    scalar = build(flat, 3, {}, lambda: (normal("mu", 0.2), normal("a", 0.4)), strategy=strategy)
    runs = {"mu": jnp.array([0.1, -0.5, 1.0]), "a": jnp.array([0.3, 0.9, -0.2])}
    values = []
    for problem, shape in ((plated, (3, 1, 1)), (scalar, (3,))):
        mine = runs | {"a": runs["a"].reshape(shape)}
        draws = draws_from_runs(problem, problem.numbers, {}, mine, {})
        weighed = weigh(problem, problem.numbers, draws, {})
        values.append(log_evidence(problem, problem.numbers, weighed, {}, {}))
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_empty_group_keeps_its_prior_weights():
    """County 1 has no home: its particles are weighed by prior over proposal alone."""
    problem = build(groups, 4)
    value, _, weights, draws = estimates(problem, jax.random.key(0), PARAMS)
    expected, marginals = exact(problem, groups, draws)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(weights["kayn:K[a]"], marginals["kayn:K[a]"], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.int8, np.uint8, bool])
def test_data_of_other_dtypes(dtype):
    y = np.array([0, 1, 1, 0]).astype(dtype)
    problem = build(partial(groups, y=y))
    value, gradient, *_ = estimates(problem, jax.random.key(0), PARAMS)
    expected = estimates(build(partial(groups, y=y.astype(np.float32))), jax.random.key(0), PARAMS)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for name, found in gradient.items():
        np.testing.assert_allclose(found, expected[1][name], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.float32, bool])
def test_discrete_likelihoods_of_other_dtypes(dtype):
    y = np.array([0, 1, 1, 0]).astype(dtype)

    def model(y):
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
        with numpyro.plate("h", 4):
            numpyro.sample("y", dist.Bernoulli(logits=a[COUNTY]), obs=y)

    value, gradient, *_ = estimates(build(partial(model, y)), jax.random.key(0), PARAMS)
    expected, *_ = estimates(build(partial(model, y.astype(np.int32))), jax.random.key(0), PARAMS)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert finite(gradient)


def test_float16_covariates():
    x = np.array([0.5, 1.0, -0.25, 2.0])

    def model(x):
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
        with numpyro.plate("h", 4):
            normal("y", a[COUNTY] * x, obs=Y)

    half, single = (
        estimates(build(partial(model, x.astype(t))), jax.random.key(0), PARAMS)[0] for t in (np.float16, np.float32)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, rtol=1e-6)


def test_float64_throughout(x64):
    params = {n: np.asarray(v, np.float64) for n, v in PARAMS.items()}
    value, gradient, weights, draws = estimates(build(groups, 3, params), jax.random.key(0), params)
    for leaf in jax.tree.leaves((value, gradient, weights, draws)):
        assert leaf.dtype == jnp.float64


def test_debug_nans_finds_nothing():
    """JAX's NaN check stays silent on a healthy model, eagerly and compiled."""
    problem = build(groups)
    with jax.debug_nans(True):
        assert finite(estimates(problem, jax.random.key(0), PARAMS))
        draws = draw_particles(problem, problem.numbers, jax.random.key(0), PARAMS)
        weighed = weigh(problem, problem.numbers, draws, PARAMS)
        assert np.isfinite(log_evidence(problem, problem.numbers, weighed, PARAMS, {}))


def test_many_keys_at_once():
    problem = build(groups)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: estimates(problem, key, PARAMS))(keys)
    for i, key in enumerate(keys):
        value, gradient, *_ = estimates(problem, key, PARAMS)
        np.testing.assert_allclose(together[0][i], value, rtol=1e-5)
        np.testing.assert_allclose(together[1]["a_loc"][i], gradient["a_loc"], rtol=1e-4, atol=1e-6)


def test_gradient_through_particles_is_that_of_enumeration(x64):
    """Pathwise: parameters move the particles and the density they are divided by."""
    params = {n: jnp.asarray(v, jnp.float64) for n, v in PARAMS.items()}
    for model, strategy in (
        (groups, "parallel"),
        (groups, "local"),
        (partial(groups, lambda mu, a: a.sum() * mu), "parallel"),
    ):
        problem = build(model, 3, params, strategy=strategy)
        oracle = BruteForce(problem, model, guide)

        def enumerated(params, problem=problem, oracle=oracle):
            return oracle.log_evidence(draw_particles(problem, problem.numbers, jax.random.key(0), params), params)

        expected, expected_gradient = jax.jit(jax.value_and_grad(enumerated), compiler_options=QUICK)(params)
        value, gradient, *_ = estimates(problem, jax.random.key(0), params)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        for name, found in gradient.items():
            np.testing.assert_allclose(found, expected_gradient[name], rtol=1e-9, atol=1e-9)


def test_masked_rows_may_hold_nan():
    """Values and gradients are those of the model without the masked rows."""
    keep = np.array([True, True, False, True])

    def model(y, masked):
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
        if masked:
            with numpyro.plate("h", 4), handlers.mask(mask=keep):
                normal("y", a[COUNTY], obs=y)
        else:
            with numpyro.plate("h", 3):
                normal("y", a[COUNTY[keep]], obs=y)

    masked = estimates(build(partial(model, np.where(keep, Y, np.nan), True)), jax.random.key(0), PARAMS)
    without = estimates(build(partial(model, Y[keep], False)), jax.random.key(0), PARAMS)
    np.testing.assert_allclose(masked[0], without[0], rtol=1e-6)
    for name, found in masked[1].items():
        np.testing.assert_allclose(found, without[1][name], rtol=1e-5)


def answers(person, item, right):
    """Rows that cross two plates, with a likelihood that is dear to compute."""
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("people", 5):
        ability = normal("ability")
    with numpyro.plate("items", 3):
        difficulty = normal("difficulty", 0.0, scale)
    with numpyro.plate("answers", len(right)):
        numpyro.sample("right", dist.Bernoulli(logits=ability[person] - difficulty[item]), obs=right)


@pytest.mark.parametrize("num_particles", [2, 5, 8])
def test_dear_factors_computed_along_their_rows_are_the_same(monkeypatch, num_particles):
    rng = np.random.default_rng(0)
    args = (rng.integers(0, 5, 40), rng.integers(0, 3, 40), rng.integers(0, 2, 40).astype(np.float32))
    guide = FactorisedGuide.from_model(answers, args)
    found = []
    for long in (1, 2**40):
        monkeypatch.setattr(elementwise, "LONG", long)
        problem = build_problem(answers, guide, args, {}, guide.start, make_request(num_particles))
        program = jax.jit(lambda key, params, problem=problem: estimates.__wrapped__(problem, key, params))
        # on its own in two of the three cases: eight at a time need no help
        conditions = program.lower(jax.random.key(1), guide.start).as_text().count("stablehlo.case")
        found.append((conditions, program(jax.random.key(1), guide.start)))
    assert (found[0][0] > found[1][0]) == (num_particles != 8)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found[0][1], found[1][1])


def test_an_array_computed_apart_keeps_everything():
    x = np.array([0.0, np.nan, np.inf, -2.0], np.float32)
    for witness in (1.0, np.nan):
        assert_equal = np.testing.assert_array_equal
        assert_equal(jax.jit(apart)(x, np.float32(witness)), x)
        gradient = jax.grad(lambda x, w=witness: jnp.sum(jnp.sin(apart(2 * x, w))))(x[[0, 3]])
        np.testing.assert_allclose(gradient, 2 * np.cos(2 * x[[0, 3]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("density", "dear"),
    [
        (lambda mu, log_sd, a: dist.Normal(mu + a, 1.0), False),
        (lambda mu, log_sd, a: dist.Normal(mu, jnp.exp(log_sd)), False),
        (lambda mu, log_sd, a: dist.Normal(mu, jnp.exp(log_sd + a)), True),
        (lambda mu, log_sd, a: dist.Normal(mu, jax.nn.softplus(log_sd + a)), True),
        (lambda mu, log_sd, a: dist.StudentT(jnp.exp(log_sd), mu), True),
        (lambda mu, log_sd, a: dist.Poisson(jnp.exp(a)), False),
    ],
)
def test_dear_densities_are_told_from_cheap_ones(density, dear):
    def model():
        latents = [normal(n) for n in ("mu", "log_sd", "a")]
        numpyro.sample("y", density(*latents), obs=np.float32(1.0))

    sites = inspect_sites(model, (), {}, {})
    program = trace_program(model, (), {}, {}, sites)
    assert is_dear(program, Part.DENSITY.of("y"), {n: n for n in ("mu", "log_sd", "a")}) == dear


@pytest.mark.parametrize("memory", [None, "400kB"])
def test_a_pole_is_named_also_in_factors_that_are_made_part_by_part(memory):
    """The evidence is the same without the entries at the pole, and the warning the same with its values."""

    def model():
        a, b, c = (numpyro.sample(n, dist.Normal(0, 1)) for n in "abc")
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Normal(jnp.sin(a) + b * jnp.cos(c), 1.0), obs=jnp.array([0.3, -0.4, 1.0]))
        numpyro.factor("pole", jnp.where(a * b * c > 0.5, jnp.inf, 0.0))

    importance = kayn.Importance(model, None, 40, memory=memory, num_replicates=2)
    plan = importance.problem(None).layout.plan
    assert ("pole" in {plan.terms[s].name for s in made_in_parts(plan)}) == (memory is not None)
    with pytest.warns(NumericsWarning, match="'pole' has a log density of .inf.*a = .* b = .* c = .*2 of 2"):
        found = importance.run(0, None)
    assert np.isfinite(found.log_evidence)


@pytest.mark.parametrize("loss", [kayn.VI(3), kayn.RWS(3), kayn.VIMCO(3)], ids=lambda loss: type(loss).__name__)
def test_losses_name_a_pole(loss):
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z, 1), obs=0.3)
        numpyro.factor("pole", jnp.where(z > -9, jnp.inf, 0.0))

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))

    with pytest.warns(NumericsWarning, match="'pole' has a log density of .inf.*loss's particles"):
        loss.loss(jax.random.key(0), {"m": jnp.array(0.0)}, model, guide)
