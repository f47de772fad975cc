"""E Z = p(data): by simulation on conjugate models, and exactly, by enumerating every outcome of a discrete guide."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

from kayn.axes.request import make_request
from kayn.axes.types import proposal_name
from kayn.evidence import weights
from kayn.evidence.draws import draw_particles, draws_from_runs
from kayn.evidence.problem import build_problem
from kayn.evidence.weights import weigh
from kayn.guides.factorised import FactorisedGuide
from tests.laws.oracle import QUICK

Y = np.array([0.5, -0.3, 0.9, 0.1, 1.2, -0.4], np.float32)
ERRORS = 4.0
"""Standard errors that a correct estimate may be off: a false alarm in 16000, and seeds are fixed."""


def prior_of(model):
    return handlers.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])


# -- by simulation


def groups(plated):
    """mu ~ N(0, 1), theta_m ~ N(mu, 1), y_m ~ N(theta_m, 1) for six groups."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    if plated:
        with numpyro.plate("m", 6):
            theta = numpyro.sample("theta", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(theta, 1), obs=Y)
        return
    for m in range(6):
        theta = numpyro.sample(f"theta{m}", dist.Normal(mu, 1))
        numpyro.sample(f"y{m}", dist.Normal(theta, 1), obs=Y[m])


GROUPS_EVIDENCE = stats.multivariate_normal(np.zeros(6), 2 * np.eye(6) + 1).logpdf(Y)


def chain():
    """a -> b -> c with two observed ends; c depends on both a and b.

    Dependence is weak enough for paired denominators, whose weights q(z | one parent) / q(z | another) have heavy
    tails.
    """
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(0.3 * a, 1))
    c = numpyro.sample("c", dist.Normal(0.2 * a - 0.3 * b, 1))
    numpyro.sample("y", dist.Normal(c, 1), obs=0.7)
    numpyro.sample("z", dist.Normal(b, 1), obs=-0.4)


def _chain_evidence():
    b = np.array([0.3, 1.0, 0.0])
    c = np.array([0.2, 0.0, 1.0]) - 0.3 * b
    both = np.stack([c, b])
    return stats.multivariate_normal(np.zeros(2), both @ both.T + np.eye(2)).logpdf([0.7, -0.4])


def mean_ratio(model, args, guide, log_evidence, num, **options):
    """Mean of Z / p(data) over independent estimates, and its standard error."""
    denominator = options.pop("denominator", "mixture")
    problem = build_problem(model, guide, args, {}, {}, make_request(**options), denominator)

    def one(key):
        draws = draw_particles(problem, problem.numbers, key, {})
        slots = weigh(problem, problem.numbers, draws, {})
        return weights.log_evidence(problem, problem.numbers, slots, {}, draws.subsample)

    batches = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=5000))
    ratio = np.exp(np.asarray(batches(jax.random.split(jax.random.key(0), num)), np.float64) - log_evidence)
    return ratio.mean(), ratio.std() / np.sqrt(num)


def check(mean, error):
    assert error < 0.01
    assert abs(mean - 1) < ERRORS * error


@pytest.mark.parametrize("num_particles", [2, 3, 10])
@pytest.mark.parametrize("plated", [True, False])
def test_prior_as_dependent_proposal(plated, num_particles):
    num = {2: 300_000, 3: 150_000, 10: 20_000}[num_particles]
    check(*mean_ratio(groups, (plated,), prior_of(groups), GROUPS_EVIDENCE, num, num_particles=num_particles))


@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 3, "groups": [["mu", "theta"]]},
        {"num_particles": 3, "strategy": "local"},
        {"num_particles": 10, "strategy": "global"},
        {"num_particles": {"mu": 2, "theta": 4}},
        {"num_particles": {"mu": 4, "theta": 2}},
        {"num_particles": 3, "couple": {"theta": "m"}},
    ],
    ids=str,
)
def test_axes_and_denominators(options):
    check(*mean_ratio(groups, (True,), prior_of(groups), GROUPS_EVIDENCE, 200_000, **options))


@pytest.mark.parametrize("denominator", ["mixture", "paired"])
@pytest.mark.parametrize("num_particles", [2, 5])
def test_two_guide_parents(num_particles, denominator):
    check(
        *mean_ratio(
            chain, (), prior_of(chain), _chain_evidence(), 60_000, num_particles=num_particles, denominator=denominator
        )
    )


@pytest.mark.parametrize("num_particles", [2, 10])
def test_evenly_spread_particles(num_particles):
    """The default guide fills quantiles evenly: particles of a latent are dependent,
    the estimate is unbiased all the same."""
    guide = FactorisedGuide.from_model(groups, (True,))
    mean, error = mean_ratio(
        groups, (True,), guide, GROUPS_EVIDENCE, 100_000, num_particles=num_particles, draws="even"
    )
    check(mean, error)


# -- exactly


TABLE = np.array([[[0.4, 0.2], [0.15, 0.9]], [[0.7, 0.75], [0.85, 0.1]]])
"""Strongly interacting, so that a wrong denominator shows."""


def _bernoulli(name, p, **options):
    return numpyro.sample(name, dist.Bernoulli(p), **options)


def discrete(model):
    """a -> b, and c given (a, b); every site Bernoulli. As a guide the same graph with other numbers."""
    at = jnp.asarray(TABLE if model else TABLE[::-1, ::-1])
    a = _bernoulli("a", at[0, 0, 0])
    b = _bernoulli("b", at[a, 1, 0])
    c = _bernoulli("c", at[a, b, 1])
    if model:
        _bernoulli("y", 0.1 + 0.2 * a + 0.5 * b * c, obs=1)
        _bernoulli("x", 0.9 - 0.6 * c, obs=1)


def plated(model):
    """The same with a plate of two elements for c, whose guide depends on both parents, and on the element."""
    at = jnp.asarray(TABLE if model else TABLE[::-1, ::-1])
    a = _bernoulli("a", at[0, 0, 0])
    b = _bernoulli("b", at[a, 1, 0])
    with numpyro.plate("two", 2):
        c = _bernoulli("c", at[a, b] * jnp.array([1.0, 0.6]))
        if model:
            _bernoulli("y", 0.1 + 0.2 * a + 0.5 * b * c, obs=jnp.array([1, 0]))


def entangled(model):
    """b and c in one plate; as a guide, c's elements depend on a and on the first element of b."""
    at = jnp.asarray(TABLE if model else TABLE[::-1, ::-1])
    a = _bernoulli("a", at[0, 0, 0])
    with numpyro.plate("two", 2):
        b = _bernoulli("b", at[a, 1, 0] * jnp.array([1.0, 0.6]))
        c = _bernoulli("c", at[a, b if model else b[0], 1])
        if model:
            _bernoulli("y", 0.1 + 0.2 * a + 0.5 * b * c, obs=jnp.array([1, 0]))


def _sites(program, values):
    """log probability of every site of a program at given values, summed."""
    trace = handlers.trace(handlers.substitute(program, data=values)).get_trace()
    return {n: s["fn"].log_prob(s["value"]).sum() for n, s in trace.items() if s["type"] == "sample"}


def expected_evidence(program, shapes, num_particles, change=None, **options):
    """sum over all guide outcomes of their probability times Z, and the true p(data)."""
    model, guide = partial(program, True), partial(program, False)
    denominator = options.pop("denominator", "mixture")
    problem = build_problem(model, guide, (), {}, {}, make_request(num_particles, **options), denominator)
    runs, size = problem.num_runs, sum(int(np.prod(s)) for s in shapes.values())
    bits = np.array(list(itertools.product([0, 1], repeat=size)))

    def unpack(vector):
        parts = np.split(np.arange(size), np.cumsum([int(np.prod(s)) for s in shapes.values()])[:-1])
        return {n: vector[p].reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    outcomes = jnp.asarray(np.array(list(itertools.product(range(len(bits)), repeat=runs))))
    table = jnp.asarray(bits)
    log_p = jax.vmap(lambda v: sum(_sites(model, unpack(v)).values()))(table)
    log_q = jax.vmap(lambda v: sum(_sites(guide, unpack(v)).values()))(table)

    @partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def z(outcome):
        particles = jax.vmap(unpack)(table[outcome])
        draws = draws_from_runs(problem, problem.numbers, {}, particles, {})
        slots = weigh(problem, problem.numbers, draws, {})
        if change is not None:
            slots = change(problem, draws, slots)
        return weights.log_evidence(problem, problem.numbers, slots, {}, {})

    return float(jnp.sum(jnp.exp(log_q[outcomes].sum(-1) + z(outcomes)))), float(jnp.exp(log_p).sum())


SCALARS = {"a": (), "b": (), "c": ()}


@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 1},
        {"num_particles": 2},
        {"num_particles": 3},
        {"num_particles": 2, "denominator": "paired"},
        {"num_particles": 3, "denominator": "paired"},
        {"num_particles": 2, "strategy": "global"},
        {"num_particles": 2, "strategy": "local"},
        {"num_particles": 2, "groups": [["a", "b"]]},
        {"num_particles": 2, "groups": [["a", "c"]]},
        {"num_particles": 3, "groups": [["a", "c"]]},
        {"num_particles": 3, "groups": [["a", "c"]], "denominator": "paired"},
        {"num_particles": 3, "groups": [["b", "c"]]},
        {"num_particles": 2, "groups": [["b", "c"]], "denominator": "paired"},
        {"num_particles": {"a": 2, "b": 3, "c": 2}},
        {"num_particles": {"a": 3, "b": 1, "c": 2}},
        {"num_particles": {"a": 1, "b": 2, "c": 3}, "denominator": "paired"},
    ],
    ids=str,
)
def test_every_outcome_of_a_two_parent_guide(options, x64):
    found, expected = expected_evidence(discrete, SCALARS, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 2},
        {"num_particles": 2, "denominator": "paired"},
        {"num_particles": 2, "strategy": "local"},
        {"num_particles": 2, "strategy": "global"},
        {"num_particles": 2, "groups": [["b", "c"]]},
        {"num_particles": 2, "couple": {"c": "two"}},
        {"num_particles": {"a": 2, "b": 1, "c": 2}},
    ],
    ids=str,
)
def test_every_outcome_with_a_plate(options, x64):
    found, expected = expected_evidence(plated, {"a": (), "b": (), "c": (2,)}, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"strategy": "local"}, {"strategy": "local", "denominator": "paired"}], ids=str
)
def test_every_outcome_of_a_guide_that_mixes_plate_elements(options, x64):
    found, expected = expected_evidence(entangled, {"a": (), "b": (2,), "c": (2,)}, 2, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_latents_on_one_axis_depend_on_each_other_within_an_element(x64):
    def axes(program):
        problem = build_problem(partial(program, True), partial(program, False), (), {}, {}, make_request(2, "local"))
        return [(a.latents, a.scope) for a in problem.layout.axes]

    assert axes(entangled) == [(("a",), ()), (("b", "c"), ())]

    def aligned(model):
        a = _bernoulli("a", 0.3)
        with numpyro.plate("two", 2):
            _bernoulli("c", 0.2 + 0.1 * a + 0.4 * _bernoulli("b", 0.4))

    assert axes(aligned) == [(("a",), ()), (("b", "c"), ("two",))]


def test_a_group_around_another_latent_takes_it_in(x64):
    """a -> b -> c: with a and c on one axis, b's particles descend from it and feed it, so b has to join."""
    problem = build_problem(
        partial(discrete, True), partial(discrete, False), (), {}, {}, make_request(2, groups=[["a", "c"]])
    )
    assert [a.latents for a in problem.layout.axes] == [("a", "c", "b")]
    assert "and back" in str(problem.layout.couplings[0])
    paired = build_problem(
        partial(discrete, True), partial(discrete, False), (), {}, {}, make_request(2, groups=[["a", "c"]]), "paired"
    )
    assert len(paired.layout.axes) == 2


def test_averaging_each_guide_parent_separately_is_biased(x64):
    """The test has power: a denominator over K^2 pairs of parents, which looks as natural, is off."""

    def separately(problem, draws, slots):
        p = jnp.asarray(TABLE[::-1, ::-1])[:, :, 1][draws.runs["a"][:, None], draws.runs["b"][None, :]].mean()
        c = draws.values["c"]
        axis = problem.layout.axis_of("c")
        slot = [t.name for t in problem.layout.plan.terms].index(proposal_name(axis))
        return {**slots, slot: -jnp.log(jnp.where(c == 1, p, 1 - p))}

    found, expected = expected_evidence(discrete, SCALARS, 2, change=separately)
    assert abs(found / expected - 1) > 1e-3


def test_enumerated_latents_need_no_guide(x64):
    """Z with an enumerated parent is that of the model with it summed out, outcome by outcome."""

    def model():
        a = _bernoulli("a", 0.3, infer={"enumerate": "parallel"})
        b = _bernoulli("b", 0.2 + 0.5 * a)
        _bernoulli("y", 0.1 + 0.2 * a + 0.5 * b, obs=1)

    problem = build_problem(model, lambda: _bernoulli("b", 0.6), (), {}, {}, make_request(2))
    total = 0.0
    for outcome in itertools.product([0, 1], repeat=2):
        draws = draws_from_runs(problem, problem.numbers, {}, {"b": jnp.array(outcome)}, {})
        slots = weigh(problem, problem.numbers, draws, {})
        weight = np.prod([0.6 if b else 0.4 for b in outcome])
        total += weight * np.exp(float(weights.log_evidence(problem, problem.numbers, slots, {}, {})))
    p = [0.3 * a + 0.7 * (1 - a) for a in (0, 1)]
    expected = sum(
        p[a] * (0.2 + 0.5 * a if b else 0.8 - 0.5 * a) * (0.1 + 0.2 * a + 0.5 * b) for a in (0, 1) for b in (0, 1)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-12)
