"""Sums of terms on particle axes of their own: what is found in programs,
and that nothing but the speed of a factor depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers

import kayn
from kayn.axes.request import make_request
from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import build_problem
from kayn.evidence.weights import log_evidence, weigh, weigh_against
from kayn.factors import by_terms
from kayn.factors.by_terms import choose
from kayn.graph.predictor_terms import read_parts
from kayn.guides.factorised import FactorisedGuide
from kayn.programs.outputs import Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program
from tests.laws.oracle import QUICK

RNG = np.random.default_rng(0)
N, K = 12, 3
X = RNG.normal(size=(N, 4))
GROUP, FINE = RNG.integers(0, 3, N), RNG.integers(0, 5, N)
Y = RNG.normal(size=N)
COUNTS = RNG.poisson(2.0, N)


def normal(name, loc=0.0, scale=1.0):
    return numpyro.sample(name, dist.Normal(loc, scale))


# -- what is found


def found_in(expression, argument="loc"):
    """Parts of a Normal's location, or of a rate, that is an expression of latents a, b, c, and vectors u, v."""

    def model():
        latents = {n: normal(n) for n in "abc"}
        latents |= {n: numpyro.sample(n, dist.Normal(jnp.zeros(4), 1.0).to_event(1)) for n in "uv"}
        latents["k"] = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        value = expression(**latents)
        law = dist.Normal(value, 1.0) if argument == "loc" else dist.Poisson(value)
        numpyro.sample("y", law, obs=jnp.zeros(jnp.shape(value)))

    program = trace_program(model, (), {}, {}, inspect_sites(model, (), {}, {}))
    return read_parts(program)[Part.ARGUMENT.of("y", argument)]


def sets(parts):
    return sorted("".join(sorted(names)) for names in parts)


SUMS = [
    (lambda a, b, c, u, v, k: a + b - c, ["a", "b", "c"]),
    (lambda a, b, c, u, v, k: X @ u + a, ["a", "u"]),
    (lambda a, b, c, u, v, k: a * b + c, ["ab", "c"]),
    (lambda a, b, c, u, v, k: a * b + b * c, ["abc"]),
    (lambda a, b, c, u, v, k: (a + b) * X[:, 0] / 2.0, ["a", "b"]),
    (lambda a, b, c, u, v, k: (a + b) * c, ["abc"]),
    (lambda a, b, c, u, v, k: -(a - jnp.exp(b)), ["a", "b"]),
    (lambda a, b, c, u, v, k: jnp.exp(a + b), ["ab"]),
    (lambda a, b, c, u, v, k: u[GROUP] + v[FINE % 4], ["u", "v"]),
    (lambda a, b, c, u, v, k: u[k] + a, ["a", "ku"]),
    (lambda a, b, c, u, v, k: jnp.array([1.0, 2.0, 4.0])[k] + a, ["a", "k"]),
    (lambda a, b, c, u, v, k: jnp.where(X[:, 0] > 0, a, b), ["a", "b"]),
    (lambda a, b, c, u, v, k: jnp.where(a > 0, b, c), ["abc"]),
    (lambda a, b, c, u, v, k: jnp.maximum(a + b, c), ["abc"]),
    (lambda a, b, c, u, v, k: jnp.sum(u * X, -1) + jnp.cumsum(v).sum(), ["u", "v"]),
    (lambda a, b, c, u, v, k: jnp.dot(u, v) + a, ["a", "uv"]),
    (lambda a, b, c, u, v, k: jnp.concatenate([u, v[:2]])[None] + a, ["a", "u", "v"]),
    (lambda a, b, c, u, v, k: jnp.floor(a + b) + c, ["ab", "c"]),
    (lambda a, b, c, u, v, k: (a + b).astype(int) + c, ["ab", "c"]),
    (lambda a, b, c, u, v, k: 1.0 / (a + b), ["ab"]),
    (lambda a, b, c, u, v, k: jnp.log(jnp.exp(a) * jnp.exp(b) / jnp.exp(c)), ["a", "b", "c"]),
    (lambda a, b, c, u, v, k: jax.jit(lambda x, y: x + y)(a, b), ["a", "b"]),
    (lambda a, b, c, u, v, k: jax.lax.fori_loop(0, 3, lambda _, x: x + b, a), ["ab"]),
    (lambda a, b, c, u, v, k: jnp.stack([a, b]), ["a", "b"]),
    (lambda a, b, c, u, v, k: X[:, 0] * 2.0, []),
]


@pytest.mark.parametrize("case", range(len(SUMS)))
def test_terms_are_found(case):
    expression, expected = SUMS[case]
    assert sets(found_in(expression).terms) == expected


PRODUCTS = [
    (lambda a, b, c, u, v, k: jnp.exp(a + b) * X[:, 0] ** 2, ["a", "b"]),
    (lambda a, b, c, u, v, k: jnp.exp(a) * (1 + b**2) / jnp.exp(c), ["a", "b", "c"]),
    (lambda a, b, c, u, v, k: jnp.exp(a) + jnp.exp(b), ["ab"]),
    (lambda a, b, c, u, v, k: jnp.sqrt(jnp.exp(a) * jnp.exp(b)), ["a", "b"]),
    (lambda a, b, c, u, v, k: (jnp.exp(a) * jnp.abs(b)) ** c, ["abc"]),
    (lambda a, b, c, u, v, k: jnp.exp(a * b + X @ u), ["ab", "u"]),
    (lambda a, b, c, u, v, k: jnp.sum(jnp.exp(u) * jnp.exp(a)), ["au"]),
]


@pytest.mark.parametrize("case", range(len(PRODUCTS)))
def test_factors_are_found(case):
    expression, expected = PRODUCTS[case]
    assert sets(found_in(expression, "rate").factors) == expected


# -- and used


@pytest.fixture
def always(monkeypatch):
    """Terms wherever they are found, whatever it costs."""
    monkeypatch.setattr(by_terms, "MIN_WORK", 0)
    monkeypatch.setattr(by_terms, "MIN_GAIN", 1e-9)


def regression(family, rows=(), scale="latent", options=frozenset()):
    """Intercept, two slopes and a group effect; rows in one plate, two, an event, or linked to groups."""

    def model(x, y):
        a, b = normal("a"), numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(1.0)) if scale == "latent" else 0.5
        if scale == "data":
            sd = jnp.abs(x[..., 0]) + 0.5
        plates = [numpyro.plate("rows", y.shape[-1], dim=-1)]
        if "groups" in options:
            with numpyro.plate("groups", 3, dim=-1):
                effect = normal("effect")
            added = effect[GROUP]
        elif "nested" in options:
            plates = [numpyro.plate("outer", y.shape[0], dim=-2), *plates]
            with plates[0]:
                added = normal("effect")
                sd = numpyro.sample("sds", dist.HalfNormal(1.0)) if scale == "plate" else sd
        else:
            added = normal("effect") ** 2
        eta = a + x[..., :2] @ b + added
        law = {
            "Normal": lambda: dist.Normal(eta, sd),
            "LogNormal": lambda: dist.LogNormal(eta, sd),
            "Poisson": lambda: dist.Poisson(jnp.exp(eta)),
        }[family]()
        law = law.to_event(1) if "event" in options else law
        handled = (
            handlers.mask(mask=np.arange(y.size).reshape(y.shape) % 3 > 0)
            if "mask" in options
            else handlers.scale(scale=1.0)
        )
        weights = 0.5 + jnp.abs(x[..., 1]) if "scale" in options else 1.0
        with handled, handlers.scale(scale=weights):
            if "event" in options:
                numpyro.sample("y", law, obs=y)
            else:
                for plate in plates:
                    plate.__enter__()
                numpyro.sample("y", law, obs=y)
                for plate in reversed(plates):
                    plate.__exit__(None, None, None)

    shape = (3, 5) if "nested" in options else (N,)
    x = RNG.normal(size=(*shape, 2))
    y = RNG.poisson(2.0, shape) if family == "Poisson" else np.exp(0.3 * RNG.normal(size=shape))
    return model, (x, y)


def evaluated(problem, draws, params):
    """log Z with its gradient, and the log factors."""

    def log_z(draws):
        slots = weigh(problem, problem.numbers, draws, params)
        return log_evidence(problem, problem.numbers, slots, params, {}), slots

    (value, slots), gradient = jax.jit(jax.value_and_grad(log_z, has_aux=True, allow_int=True), compiler_options=QUICK)(
        draws
    )
    return value, slots, gradient.values


def both_ways(model, args, monkeypatch, change=lambda draws: draws):
    """The same by the terms of predictors, and as a whole."""
    guide = FactorisedGuide.from_model(model, args)
    problem = build_problem(model, guide, args, {}, guide.start, make_request(K))
    draws = change(draw_particles(problem, problem.numbers, jax.random.key(1), guide.start))
    used, chosen = [], choose
    with monkeypatch.context() as patch:
        patch.setattr(by_terms, "choose", lambda *a: used.append(chosen(*a)) or used[-1])
        ours = evaluated(problem, draws, guide.start)
        patch.setattr(by_terms, "choose", lambda *_: None)
        whole = evaluated(problem, draws, guide.start)
    assert any(groups is not None for groups in used)
    return ours, whole


CASES = [
    ("Normal", (), "latent"),
    ("Normal", (), "data"),
    ("Normal", ("groups",), "fixed"),
    ("Normal", ("groups", "scale"), "latent"),
    ("Normal", ("groups", "mask"), "data"),
    ("Normal", ("nested",), "plate"),
    ("Normal", ("nested", "mask"), "latent"),
    ("Normal", ("event",), "latent"),
    ("LogNormal", ("mask", "scale", "nested"), "latent"),
    ("LogNormal", ("groups",), "latent"),
    ("LogNormal", ("event",), "data"),
    ("Poisson", ("mask", "scale"), "fixed"),
    ("Poisson", ("groups",), "fixed"),
    ("Poisson", ("nested", "mask"), "fixed"),
    ("Poisson", ("event",), "fixed"),
]


@pytest.mark.parametrize(("family", "options", "scale"), CASES)
def test_values_and_gradients_are_those_of_the_whole(family, options, scale, x64, always, monkeypatch):
    model, args = regression(family, scale=scale, options=frozenset(options))
    ours, plain = both_ways(model, args, monkeypatch)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_subsampled_rows_count_as_often(x64, always, monkeypatch):
    def model(x, y):
        a, b = normal("a"), normal("b")
        with numpyro.plate("rows", N, subsample_size=4):
            own = numpyro.subsample(jnp.asarray(x), event_dim=0)
            numpyro.sample("y", dist.Normal(a + b * own, 1.0), obs=numpyro.subsample(jnp.asarray(y), event_dim=0))

    guide = FactorisedGuide.from_model(model, (X[:, 0], Y))
    problem = build_problem(model, guide, (X[:, 0], Y), {}, guide.start, make_request(K))
    draws = draw_particles(problem, problem.numbers, jax.random.key(0), guide.start)
    found = weigh_against(problem, problem.numbers, draws, guide.start, {})
    with monkeypatch.context() as patch:
        patch.setattr(by_terms, "choose", lambda *_: None)
        plain = weigh_against(problem, problem.numbers, draws, guide.start, {})
    for slot, array in found.items():
        np.testing.assert_allclose(array, plain[slot], rtol=1e-9)


@pytest.mark.parametrize("family", ["Normal", "Poisson"])
@pytest.mark.parametrize("wild", [np.nan, np.inf, 1e30, 300.0])
def test_wild_particles_are_weighed_as_by_the_whole(family, wild, always, monkeypatch):
    """What is not safe by terms is evaluated as a whole, in the gradient too."""
    model, args = regression(family, scale="fixed")

    def change(draws):
        values = {**draws.values, "a": draws.values["a"].at[0].set(wild)}
        return Draws(values, draws.runs, draws.subsample)

    (value, slots, gradient), (other, plain, expected) = both_ways(model, args, monkeypatch, change)
    assert not np.isnan(value)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for slot, array in slots.items():
        np.testing.assert_allclose(array, plain[slot], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, expected)


def test_large_offsets_keep_their_digits(always, monkeypatch):
    """Means of 10,000 standard deviations in float32, against the same numbers in float64: no more than the rounding
    of means, half of the distance of floats there, in residuals of the size that they have."""
    x, y = np.float32(X[:, 0]), np.float32(1e4 + Y)
    a, b = np.float32([1e4, 9999.5, 10001.0]), np.float32([-1.0, 0.0, 0.5])

    def model(x, y):
        a, b = normal("a", 1e4, 1.0), normal("b")
        with numpyro.plate("rows", N):
            numpyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)

    def factor(dtype):
        args = (x.astype(dtype), y.astype(dtype))
        guide = FactorisedGuide.from_model(model, args)
        problem = build_problem(model, guide, args, {}, guide.start, make_request(K))
        values = {"a": a.astype(dtype), "b": b.astype(dtype)}
        draws = Draws(values, values, {})
        slots = weigh_against(problem, problem.numbers, draws, guide.start, {})
        return np.asarray(max(slots.values(), key=np.size), np.float64)

    single = factor(np.float32)
    with jax.enable_x64(True):
        double = factor(np.float64)
    residuals = np.float64(y) - np.float64(a)[:, None, None] - np.float64(b)[:, None] * np.float64(x)
    rounding = np.abs(residuals).sum(-1) * np.spacing(np.float32(1e4)) / 2
    np.testing.assert_array_less(np.abs(single - double), rounding + 1e-5 * np.abs(double))


@st.composite
def separate_terms(draw):
    """Sets of latents, of which two at least have no latent in common."""
    order, cut = draw(st.permutations(range(4))), draw(st.integers(1, 3))
    sides = (order[:cut], order[cut:])
    more = draw(st.lists(st.sampled_from(sides), max_size=2))
    return [draw(st.sets(st.sampled_from(side), min_size=1, max_size=2)) for side in (*sides, *more)]


@settings(max_examples=12)
@given(separate_terms(), st.sampled_from(["Normal", "Poisson"]), st.booleans())
def test_random_regressions(drawn, family, ragged):
    """Terms over random sets of latents and plates: values as of the whole in float64."""
    used, taken = sorted(set.union(*drawn)), []

    def model(x, y):
        latents = {}
        for i in used:
            if ragged and i == used[0]:
                with numpyro.plate("groups", 3):
                    latents[i] = normal(f"z{i}")[GROUP]
            else:
                latents[i] = normal(f"z{i}")
        with numpyro.plate("rows", N):
            eta = sum(
                jnp.prod(jnp.stack([latents[i] * jnp.ones(N) for i in sorted(s)]), 0) * x[:, j]
                for j, s in enumerate(drawn)
            )
            law = dist.Normal(eta, 1.0) if family == "Normal" else dist.Poisson(jnp.exp(eta))
            numpyro.sample("y", law, obs=y)

    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_terms, "MIN_WORK", 0)
        patch.setattr(by_terms, "MIN_GAIN", 1e-9)
        args = (X.astype(np.float64), Y if family == "Normal" else COUNTS)
        guide = FactorisedGuide.from_model(model, args)
        problem = build_problem(model, guide, args, {}, guide.start, make_request(2))
        draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
        patch.setattr(by_terms, "choose", lambda way: taken.append(choose(way)) or taken[-1])
        found = weigh_against(problem, problem.numbers, draws, guide.start, {})
        assert any(taken)
        patch.setattr(by_terms, "choose", lambda _: None)
        plain = weigh_against(problem, problem.numbers, draws, guide.start, {})
    for slot, array in found.items():
        np.testing.assert_allclose(array, plain[slot], rtol=1e-8, atol=1e-8)


def test_analysis_tells_the_terms():
    def model(x, y):
        a, b, c = normal("a"), normal("b"), normal("c")
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(a + b * x[:, 0] + c * x[:, 1], 1.0), obs=y)

    rows = 2000
    text = str(kayn.analyze(model, RNG.normal(size=(rows, 2)), RNG.normal(size=rows), num_particles=8))
    assert "predictor, [a] + [b] + [c]" in text
