"""Factors as products of statistics and naturals against NumPyro's log densities, term by term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from numpyro import handlers

import kayn
from kayn import evidence
from kayn.axes.request import make_request
from kayn.densities.exponential.members import FAMILIES as KNOWN
from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import Problem, build_problem, model_inputs
from kayn.evidence.weighed import links_of
from kayn.evidence.weights import weigh
from kayn.factors import by_product, choose_form, elementwise
from kayn.factors.choose_form import Split, choose
from kayn.factors.elementwise import evaluate_reduced
from kayn.factors.evaluate import evaluate
from kayn.factors.task import Task, reduction
from tests.laws.oracle import QUICK
from tests.laws.problems import build, some_draws
from tests.laws.strategies import specs

K, N, D = 4, 3, 2
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Family:
    """A distribution of parameters that are latents, with particles of these and of a value of it.

    `parameters` and `value`: functions of a shape that draw particles, with the shape of one core event.
    """

    make: Callable[..., dist.Distribution]
    parameters: Mapping[str, tuple[Callable, tuple[int, ...]]]
    value: tuple[Callable, tuple[int, ...]]


def real(shape):
    return RNG.normal(size=shape)


def positive(shape):
    return RNG.gamma(3.0, size=shape) / 3 + 0.05


def unit(shape):
    return RNG.uniform(0.02, 0.98, shape)


def count(shape):
    return RNG.integers(0, 6, shape)


def cholesky(shape):
    return np.tril(0.4 * RNG.normal(size=shape), -1) + np.eye(shape[-1]) * RNG.uniform(0.5, 2.0, shape)


def simplex(shape):
    array = RNG.gamma(2.0, size=shape)
    return array / array.sum(-1, keepdims=True)


def trials(shape):
    return np.stack(
        [RNG.multinomial(7, np.ones(shape[-1]) / shape[-1]) for _ in range(int(np.prod(shape[:-1])))]
    ).reshape(shape)


LOC_SCALE = {"loc": (real, ()), "scale": (positive, ())}
FAMILIES = {
    "Normal": Family(dist.Normal, LOC_SCALE, (real, ())),
    "LogNormal": Family(dist.LogNormal, LOC_SCALE, (positive, ())),
    "Laplace": Family(dist.Laplace, LOC_SCALE, (real, ())),
    "HalfNormal": Family(dist.HalfNormal, {"scale": (positive, ())}, (positive, ())),
    "MultivariateNormal": Family(
        lambda loc, scale_tril: dist.MultivariateNormal(loc, scale_tril=scale_tril),
        {"loc": (real, (3,)), "scale_tril": (cholesky, (3, 3))},
        (real, (3,)),
    ),
    "Exponential": Family(dist.Exponential, {"rate": (positive, ())}, (positive, ())),
    "Gamma": Family(dist.Gamma, {"concentration": (positive, ()), "rate": (positive, ())}, (positive, ())),
    "InverseGamma": Family(
        dist.InverseGamma, {"concentration": (positive, ()), "rate": (positive, ())}, (positive, ())
    ),
    "Beta": Family(dist.Beta, {"concentration1": (positive, ()), "concentration0": (positive, ())}, (unit, ())),
    "Dirichlet": Family(dist.Dirichlet, {"concentration": (positive, (3,))}, (simplex, (3,))),
    "Poisson": Family(dist.Poisson, {"rate": (positive, ())}, (count, ())),
    "BernoulliProbs": Family(dist.BernoulliProbs, {"probs": (unit, ())}, (lambda s: RNG.integers(0, 2, s), ())),
    "BernoulliLogits": Family(dist.BernoulliLogits, {"logits": (real, ())}, (lambda s: RNG.integers(0, 2, s), ())),
    "BinomialProbs": Family(partial(dist.BinomialProbs, total_count=9), {"probs": (unit, ())}, (count, ())),
    "BinomialLogits": Family(partial(dist.BinomialLogits, total_count=9), {"logits": (real, ())}, (count, ())),
    "CategoricalProbs": Family(
        dist.CategoricalProbs, {"probs": (simplex, (4,))}, (lambda s: RNG.integers(0, 4, s), ())
    ),
    "CategoricalLogits": Family(
        dist.CategoricalLogits, {"logits": (real, (4,))}, (lambda s: RNG.integers(0, 4, s), ())
    ),
    "MultinomialProbs": Family(
        partial(dist.MultinomialProbs, total_count=7), {"probs": (simplex, (4,))}, (trials, (4,))
    ),
    "MultinomialLogits": Family(
        partial(dist.MultinomialLogits, total_count=7), {"logits": (real, (4,))}, (trials, (4,))
    ),
}
FORMS = {family.name: family.forms for family in KNOWN}
CASES = [(name, form) for name in FAMILIES for form in FORMS[name.removesuffix("Probs").removesuffix("Logits")]]
"""Every form of every family."""


def test_every_law_of_every_family_has_a_case():
    assert {law.__name__ for family in KNOWN for law in family.laws} == FAMILIES.keys()


@pytest.fixture
def always(monkeypatch):
    """Products wherever a form exists, whatever it costs."""
    monkeypatch.setattr(choose_form, "MIN_WORK", 0)
    monkeypatch.setattr(choose_form, "MIN_GAIN", 1e-9)


def vector(model: Family, value: Any = None, wrap: Callable = lambda fn: fn, rows: int = N) -> None:
    """Parameters of D independent events, shared by the rows of a plate."""
    given = {}
    for name, (_, core) in model.parameters.items():
        prior = dist.Normal(jnp.zeros((D, *core)), 1.0).to_event(1 + len(core))
        given[name] = numpyro.sample(name, prior)
    with numpyro.plate("rows", rows):
        numpyro.sample("x", wrap(model.make(**given).to_event(1)), obs=value)


def vector_guide(model: Family, rows: int = N) -> None:
    for name, (_, core) in model.parameters.items():
        numpyro.sample(name, dist.Normal(jnp.zeros((D, *core)), 1.0).to_event(1 + len(core)))
    fixed = {n: jnp.asarray(draw((D, *core))) for n, (draw, core) in model.parameters.items()}
    with numpyro.plate("rows", rows):
        numpyro.sample("x", model.make(**fixed).to_event(1))


@dataclass(frozen=True)
class Factor:
    """One factor of a problem, and how it is computed: `product` or `plain`, [*plates, *axes] from latent values."""

    problem: Problem
    name: str

    @property
    def task(self) -> Task:
        slot = next(i for i, term in enumerate(self.problem.layout.plan.terms) if term.name == self.name)
        return reduction(self.problem.graph, self.problem.layout, slot).of(self.problem.model)

    def _evaluate(self, evaluate: Callable, values: Mapping) -> Any:
        inputs = model_inputs(self.problem, self.problem.numbers, {}, {})
        links = links_of(self.problem, self.problem.numbers, {}, {})
        return evaluate(self.task, self.task.operands(values, inputs, links.__getitem__))

    def product(self, values: Mapping) -> Any:
        return self._evaluate(evaluate, values)

    def plain(self, values: Mapping) -> Any:
        return self._evaluate(evaluate_reduced, values)

    def split(self) -> Split | None:
        return choose(self.task)

    def alone(self, values: Mapping) -> Any:
        """The product with nothing in reserve: NaN where it is not kept."""
        nothing = jnp.full(jax.eval_shape(self.plain, values).shape, jnp.nan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kayn.factors.evaluate.evaluate_reduced", lambda *_: nothing)
            return self.product(values)

    def is_safe(self, values: Mapping) -> bool:
        """Whether the product was kept."""
        return not bool(jnp.isnan(run(self.alone, values)).any())


def latent_value(family: Family, wrap: Callable = lambda fn: fn) -> Factor:
    model, guide = partial(vector, family, wrap=wrap), partial(vector_guide, family)
    return Factor(build_problem(model, guide, (), {}, {}, make_request(K)), "x")


def observed_value(family: Family, value: Any, wrap: Callable = lambda fn: fn) -> Factor:
    model = partial(vector, family, value=value, wrap=wrap, rows=len(value))

    def guide():
        for name, (_, core) in family.parameters.items():
            numpyro.sample(name, dist.Normal(jnp.zeros((D, *core)), 1.0).to_event(1 + len(core)))

    return Factor(build_problem(model, guide, (), {}, {}, make_request(K)), "x")


def particles(family: Family, problem: Problem, rows: int = N) -> dict[str, Any]:
    values = {n: draw((K, D, *core)) for n, (draw, core) in family.parameters.items()}
    draw, core = family.value
    values["x"] = draw((K, rows, D, *core))
    kept = {n: v for n, v in values.items() if n in problem.graph.latent_names}
    return {n: jnp.asarray(v, problem.model.sites[n].dtype) for n, v in kept.items()}


def use(monkeypatch, form):
    family = next(f for f in KNOWN if form in f.forms)
    monkeypatch.setitem(vars(family), "forms", (form,))


def run(function, values):
    """Compiled anew: tests change what the function does."""
    return jax.jit(lambda v: function(v), compiler_options=QUICK)(values)


def with_gradient(evaluate, values):
    """The factor, and the gradient of a weighted sum of it in all floats."""
    shape = jax.eval_shape(evaluate, values).shape
    weights = np.random.default_rng(1).normal(size=shape)

    def total(values):
        moving = {n: v for n, v in values.items() if jnp.issubdtype(v.dtype, jnp.floating)}

        def of(moving):
            factor = evaluate({**values, **moving})
            return jnp.sum(jnp.where(jnp.isfinite(factor), weights * factor, 0.0)), factor

        (_, factor), gradient = jax.value_and_grad(of, has_aux=True)(moving)
        return factor, gradient

    return run(total, values)


@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda c: c if isinstance(c, str) else c.name)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_form_equals_the_log_density(name, form, weighted, always, monkeypatch):
    """As it is, and under a mask and a scale at once; with nothing in reserve, in the gradient neither."""
    use(monkeypatch, form)
    monkeypatch.setattr(by_product, "LOST_BITS", 20)
    family = FAMILIES[name]
    mask = np.array([True, False, True])
    with jax.enable_x64(True):
        with handlers.scale(scale=0.7 if weighted else 1.0):
            factor = latent_value(family, (lambda fn: fn.mask(mask)) if weighted else (lambda fn: fn))
        values = particles(family, factor.problem)
        assert factor.split().form is form
        expected, wanted = with_gradient(factor.plain, values)
        found, gradient = with_gradient(factor.alone, values)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
        assert set(gradient) >= set(family.parameters)
        if factor.problem.graph.latent("x").discrete:
            gradient.pop("x", None)  # whose derivative means nothing
        for latent, array in gradient.items():
            np.testing.assert_allclose(array, wanted[latent], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "form"), CASES, ids=lambda c: c if isinstance(c, str) else c.name)
def test_rows_are_summed_in_the_statistics(name, form, always, monkeypatch):
    """Observed rows of one law: the product sees their summed statistics only."""
    use(monkeypatch, form)
    monkeypatch.setattr(by_product, "LOST_BITS", 20)
    family = FAMILIES[name]
    draw, core = family.value
    with jax.enable_x64(True):
        factor = observed_value(family, jnp.asarray(draw((7, D, *core))), lambda fn: fn.mask(np.arange(7) != 2))
        values = particles(family, factor.problem)
        assert factor.split().form is form
        expected, wanted = with_gradient(factor.plain, values)
        found, gradient = with_gradient(factor.alone, values)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        for latent, array in gradient.items():
            np.testing.assert_allclose(array, wanted[latent], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", FORMS["Normal"], ids=lambda f: f.name)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_float32_keeps_its_accuracy_far_from_zero(form, offset, scale, always, monkeypatch):
    """Mean over standard deviation of 1e4: the reference keeps the squares small."""
    use(monkeypatch, form)
    factor = latent_value(FAMILIES["Normal"])
    rng = np.random.default_rng(3)
    values = {
        "loc": scale * (offset + rng.normal(size=(K, D))),
        "scale": scale * rng.uniform(0.5, 2.0, (K, D)),
        "x": scale * (offset + rng.normal(size=(K, N, D))),
    }
    values = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
    found, gradient = with_gradient(factor.alone, values)
    with jax.enable_x64(True):
        double = {n: np.asarray(v, np.float64) for n, v in values.items()}
        exact = latent_value(FAMILIES["Normal"])
        expected, wanted = with_gradient(exact.plain, {n: jnp.asarray(v) for n, v in double.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for latent, array in gradient.items():
        largest = np.abs(wanted[latent]).max()
        np.testing.assert_allclose(array, wanted[latent], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("form", [f for f in FORMS["Normal"] if f.cancels], ids=lambda f: f.name)
def test_cancellation_falls_back(form, always, monkeypatch):
    """Particles a thousand standard deviations apart, one pair of them close:
    squares of 1e6 would hide a log density of 1."""
    use(monkeypatch, form)
    factor = latent_value(FAMILIES["Normal"])
    rng = np.random.default_rng(3)
    values = {"loc": rng.normal(size=(K, D)), "scale": np.full((K, D), 1e-3), "x": rng.normal(size=(K, N, D))}
    values["x"][0] = values["loc"][0] + 1e-3
    values = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
    assert not factor.is_safe(values)
    np.testing.assert_array_equal(run(factor.product, values), run(factor.plain, values))


EDGES = {
    "tiny scale": ("Normal", {"scale": (0, 1e-30)}),
    "zero scale": ("Normal", {"scale": (0, 0.0)}),
    "negative scale": ("Normal", {"scale": (1, -1.0)}),
    "undefined location": ("Normal", {"loc": (0, np.nan)}),
    "infinite location": ("Laplace", {"loc": (0, np.inf)}),
    "infinite value": ("Normal", {"x": (0, np.inf)}),
    "value on the boundary": ("Gamma", {"x": (0, 0.0)}),
    "value outside": ("Gamma", {"x": (1, -1.0)}),
    "log-normal value outside": ("LogNormal", {"x": (1, -1.0)}),
    "exponential value outside": ("Exponential", {"x": (1, -1.0)}),
    "beta at zero": ("Beta", {"x": (0, 0.0), "concentration1": (0, 1.0)}),
    "beta at one": ("Beta", {"x": (0, 1.0)}),
    "simplex not met": ("Dirichlet", {"x": (0, 0.3)}),
    "zero counts and no rate": ("Poisson", {"x": (0, 0), "rate": (0, 0.0)}),
    "counts without rate": ("Poisson", {"x": (0, 3), "rate": (0, 0.0)}),
    "sure success": ("BernoulliProbs", {"probs": (0, 1.0)}),
    "infinite logits": ("BernoulliLogits", {"logits": (0, np.inf)}),
    "more than the trials": ("BinomialLogits", {"x": (0, 11)}),
    "impossible category": ("CategoricalProbs", {"probs": (0, [0.0, 0.5, 0.5, 0.0])}),
    "unknown category": ("CategoricalLogits", {"x": (0, 9)}),
    "singular covariance": ("MultivariateNormal", {"scale_tril": (0, np.zeros((3, 3)))}),
}


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("which", [0, -1])
def test_edges_equal_the_plain_density(case, which, always, monkeypatch):
    name, changes = case
    forms = FORMS[name.removesuffix("Probs").removesuffix("Logits")]
    use(monkeypatch, forms[which])
    family = FAMILIES[name]
    factor = latent_value(family)
    values = particles(family, factor.problem)
    for latent, (particle, value) in changes.items():
        values[latent] = values[latent].at[particle].set(value)
    expected, wanted = with_gradient(factor.plain, values)
    found, gradient = with_gradient(factor.product, values)
    assert factor.split() is not None
    assert not np.isnan(found).any()
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for latent, array in gradient.items():
        np.testing.assert_array_equal(np.isnan(array), np.isnan(wanted[latent]))


def three_levels():
    """Links, expansions, an event, and rows that are summed: all that a product has to get right at once."""
    group = np.array([0, 1, 1, 2, 0, 2, 2, 1])
    data = np.random.default_rng(2).normal(size=(8, D))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    sd = numpyro.sample("sd", dist.LogNormal(jnp.zeros(D), 0.5).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("groups", 3):
        a = numpyro.sample("a", dist.Normal(mu, sd).to_event(1))
    with numpyro.plate("rows", 8):
        with handlers.mask(mask=np.arange(8) != 5):
            numpyro.sample("y", dist.Normal(a[group], noise).to_event(1), obs=data)
        numpyro.sample("w", dist.Gamma(2.0, noise), obs=np.exp(data[:, 0]))


def log_evidence(problem, draws, params):
    def of(params, values):
        now = Draws(values, draws.runs, draws.subsample)
        slots = weigh(problem, problem.numbers, now, params)
        return evidence.log_evidence(problem, problem.numbers, slots, params, draws.subsample)

    moving = {n: v for n, v in draws.values.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    still = {n: v for n, v in draws.values.items() if n not in moving}
    compiled = jax.jit(jax.value_and_grad(lambda p, m: of(p, {**still, **m}), (0, 1)), compiler_options=QUICK)
    return compiled(params, moving)


def same_evidence(problem, draws, params, monkeypatch):
    """log Z and its gradient in parameters and particles, with products everywhere and with none."""
    with monkeypatch.context() as patch:
        patch.setattr(choose_form, "MIN_WORK", 0)
        patch.setattr(choose_form, "MIN_GAIN", 1e-9)
        found = log_evidence(problem, draws, params)
        patch.setattr(choose_form, "MIN_WORK", np.inf)
        expected = log_evidence(problem, draws, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


def test_evidence_of_three_levels(x64, monkeypatch):
    guide = kayn.guides.FactorisedGuide.from_model(three_levels, (), {})
    problem = build_problem(three_levels, guide, (), {}, {}, make_request(3))
    draws = draw_particles(problem, problem.numbers, jax.random.key(0), {})
    same_evidence(problem, draws, {}, monkeypatch)


def test_parts_make_no_difference(always, monkeypatch):
    """Rows reduced a few particles at a time, in the statistics and in the path in reserve."""
    guide = kayn.guides.FactorisedGuide.from_model(three_levels, (), {})
    problem = build_problem(three_levels, guide, (), {}, {}, make_request(3))
    values = draw_particles(problem, problem.numbers, jax.random.key(0), {}).values
    for name in ("a", "y", "w"):
        factor = Factor(problem, name)
        assert factor.split() is not None, name
        whole = run(factor.product, values)
        with monkeypatch.context() as patch:
            patch.setattr(elementwise, "CHUNK_ELEMENTS", 20)
            np.testing.assert_allclose(run(factor.product, values), whole, rtol=1e-5)
            patch.setattr(by_product, "LOST_BITS", -100)
            np.testing.assert_allclose(run(factor.product, values), whole, rtol=1e-5)


@given(specs(plain=True))
@settings(max_examples=15)
def test_random_models(spec):
    with jax.enable_x64(True):
        problem, _ = build(spec)
        with pytest.MonkeyPatch.context() as patch:
            same_evidence(problem, some_draws(spec, problem), spec.params(), patch)


def test_large_vector_priors_are_products_by_default():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([18]).to_event(1))
        psi = numpyro.sample("psi", dist.Normal(0.0, 0.5).expand([18]).to_event(1))
        with numpyro.plate("users", 100):
            numpyro.sample("z", dist.Normal(mu, jnp.exp(psi)).to_event(1))

    text = str(kayn.analyze(model, num_particles=10))
    assert "product, residual: [z, mu] x [psi]" in text
    assert text.count("term by term") == 2
    # with mean and scale on one axis the square would be expanded, and every coordinate's entries are kept
    assert " product, " not in str(kayn.analyze(model, num_particles=30, groups=[("mu", "psi")]))


def test_vmapped_over_particle_sets(always):
    """Under vmap both paths run and each set keeps its own choice: one of these sets has an impossible scale."""
    family = FAMILIES["Normal"]
    factor = latent_value(family)
    sets = [particles(family, factor.problem) for _ in range(3)]
    sets[1]["scale"] = sets[1]["scale"].at[2].set(-1.0)
    together = jax.tree.map(lambda *v: jnp.stack(v), *sets)
    found = run(jax.vmap(factor.product), together)
    for one, values in zip(found, sets, strict=True):
        np.testing.assert_allclose(one, run(factor.plain, values), rtol=1e-5, atol=1e-5)


def test_entries_that_are_kept_are_no_product_where_terms_cancel():
    """A latent of every group, whose mean reads another and the coefficients: each combination of a group is an entry.
    Where fifty rows of each are summed, a product takes a part of the work."""

    def model():
        a, s = numpyro.sample("a", dist.Normal(0.0, 1.0)), numpyro.sample("s", dist.Exponential(1.0))
        with numpyro.plate("groups", 60, dim=-2):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
            z = numpyro.sample("z", dist.Normal(a * u, s))
            with numpyro.plate("rows", 50):
                numpyro.sample("y", dist.Normal(a * z, s), obs=jnp.zeros((60, 50)))

    told = str(kayn.analyze(model, num_particles=30)).splitlines()
    assert [line.split()[0] for line in told if " product, " in line] == ["y"]
