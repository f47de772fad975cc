"""Posteriors of a guide whose vectors follow the model given its numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import kayn
from kayn.guides.curvature import WHOLE, Banded
from kayn.guides.laplace import LOC, WIDTH
from kayn.inference import settle
from kayn.inference.laplace import LaplaceSampler
from kayn.posterior.chains import Chains
from kayn.posterior.diagnostics import POOR_EFFICIENCY, POOR_KHAT
from kayn.posterior.mixing import ENOUGH
from kayn.posterior.poor_fit import complaints, few_count, worst_efficiency

KNOTS, ROWS = 12, 60
X = np.sort(np.random.default_rng(0).uniform(0, 1, ROWS))
B = np.exp(-0.5 * ((X[:, None] - np.linspace(-0.1, 1.1, KNOTS)) / 0.09) ** 2)
B = (B / B.sum(1, keepdims=True)).astype(np.float32)
Y = (np.sin(6 * X) + 0.4 * np.random.default_rng(1).normal(size=ROWS)).astype(np.float32)
KEY = jax.random.key(3)
WALK = np.tril(np.ones((KNOTS, KNOTS)))


def spline(y):
    """A penalised spline: a scale, and the steps of a walk that it scales."""
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    s = numpyro.sample("s", dist.HalfNormal(1))
    with numpyro.plate("knot", KNOTS):
        z = numpyro.sample("z", dist.Normal(0, 1))
    w = numpyro.deterministic("w", tau * jnp.cumsum(z))
    with numpyro.plate("row", ROWS):
        numpyro.sample("y", dist.Normal(B @ w, s), obs=y)


@pytest.fixture(scope="module")
def exact():
    """Log evidence, means and deviations of `spline` by quadrature over its two numbers: given them all is Normal."""
    points = np.linspace(-5.5, 2.0, 160), np.linspace(-2.5, 1.0, 120)
    design = B.astype(float) @ WALK
    mass, moments = [], []
    for log_tau in points[0]:
        for log_s in points[1]:
            tau, s = np.exp(log_tau), np.exp(log_s)
            precision = np.eye(KNOTS) + (tau / s) ** 2 * design.T @ design
            mean = np.linalg.solve(precision, design.T @ Y * tau / s**2)
            rest = Y - tau * design @ mean
            quadratic = (rest @ rest) / s**2 + mean @ mean
            log_p = -0.5 * (quadratic + np.linalg.slogdet(precision)[1] + ROWS * np.log(2 * np.pi * s**2))
            log_p += sum(np.log(2) - 0.5 * np.log(2 * np.pi) - v**2 / 2 + np.log(v) for v in (tau, s))
            mass.append(log_p)
            second = np.diag(np.linalg.inv(precision)) + mean**2
            moments.append(np.concatenate([[tau, s], mean, [tau**2, s**2], second]))
    mass = np.array(mass)
    cell = np.log(np.diff(points[0])[0] * np.diff(points[1])[0])
    weights = np.exp(mass - mass.max())
    first, square = np.split(weights @ np.array(moments) / weights.sum(), 2)
    return np.log(weights.sum()) + mass.max() + cell, first, np.sqrt(square - first**2)


@pytest.fixture(scope="module")
def fitted():
    return kayn.fit(spline, (Y,), progress=False)


@pytest.fixture(scope="module")
def follows(fitted):
    """The guide, fitted to the poor weights of the other and to its own."""
    sampler = LaplaceSampler.of(fitted.sampler, fitted.call, WHOLE)
    first = sampler.fitted_again(fitted.sampler.posterior(fitted.call, jax.random.key(1), 32))
    return first.fitted_again(first.posterior(fitted.call, jax.random.key(2), 32))


def off(posterior, exact):
    """How far means and deviations are from the right ones: in deviations, and as a share."""
    mean, sd = (np.concatenate([np.ravel(f(n)) for n in ("tau", "s", "z")]) for f in (posterior.mean, posterior.std))
    return np.abs(mean - exact[1]) / exact[2], np.abs(sd / exact[2] - 1)


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_a_funnel_of_a_scale_and_a_vector_needs_no_chains(fitted, exact):
    """By default, with nothing to warn of; means and deviations within .06 of quadrature."""
    found = fitted.posterior()
    assert not isinstance(found, Chains)
    assert settle.FOLLOWS in str(fitted)
    means, deviations = off(found, exact)
    assert means.max() < 0.06
    assert deviations.max() < 0.06
    assert abs(found.log_evidence - exact[0]) < 4 * found.log_evidence_error + 0.01


def test_weights_are_even_where_those_of_a_joint_normal_are_not(fitted, follows):
    own = fitted.sampler.posterior(fitted.call, jax.random.key(1), 32)
    found = follows.posterior(fitted.call, jax.random.key(3), 32)
    assert any(complaints(own))
    assert not any(complaints(found))
    assert worst_efficiency(found) > max(0.6, 1.3 * worst_efficiency(own))


def test_evidence_is_unbiased_whatever_the_parameters(follows, fitted, exact):
    """With numbers a deviation off and vectors half as wide as their curvature says, by 400 replicates: Z within four
    standard errors (a false alarm in 16,000)."""
    moved = {**follows.params, LOC: follows.params[LOC] + 0.3, WIDTH: jnp.asarray(0.8)}
    moved = replace(follows, params=moved)
    log_z = np.asarray(moved.posterior(fitted.call, jax.random.key(5), 400).log_evidences, float)
    ratio = np.exp(log_z - exact[0])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 20


def test_what_has_no_weight_does_not_move_the_guide(follows, fitted):
    """Replicates that hold nothing possible, whatever is in them."""
    found = follows.posterior(fitted.call, jax.random.key(8), 16)
    log_z, weights, draws = jax.tree.map(np.array, (found.log_evidences, found.axis_weights, found.draws))
    log_z[:2] = -np.inf
    for array in (*weights.values(), *draws.values.values()):
        array[:2] = np.nan
    broken = replace(found, log_evidences=log_z, axis_weights=weights, draws=draws)
    kept = jax.tree.map(lambda x: x[2:], (found.log_evidences, found.axis_weights, found.draws))
    whole = replace(found, log_evidences=kept[0], axis_weights=kept[1], draws=kept[2])
    for name, value in follows.fitted_again(whole).params.items():
        np.testing.assert_allclose(follows.fitted_again(broken).params[name], value, rtol=1e-4, atol=1e-6)


def test_on_one_axis_particles_of_all_replicates_count(follows, fitted):
    """A guide that is too wide is poor in eight replicates and, where k-hat is low, good enough in many: elements of a
    plate, which share their weights with the numbers, too."""
    wide = follows.wider(3.0)
    few, many = (wide.posterior(fitted.call, jax.random.key(9), n) for n in (8, 256))
    assert worst_efficiency(many) < POOR_EFFICIENCY
    assert few_count(few) and few_count(many)
    assert any("effective sample size" in text for text in complaints(few))
    assert many.ess("z").min() >= ENOUGH and many.khat("z").max() < POOR_KHAT
    assert not any("effective sample size" in text or "k-hat" in text for text in complaints(many))


def test_wider_guides_are_wider(follows, fitted):
    """In all coordinates, or in vectors alone; the evidence stays."""
    base = follows.posterior(fitted.call, jax.random.key(6), 16)
    wide, vectors = (follows.wider(8.0, only).posterior(fitted.call, jax.random.key(6), 64) for only in (False, True))
    spread = [float(np.std(np.log(np.asarray(p.draws.values["tau"])))) for p in (base, wide, vectors)]
    assert spread[1] > 1.8 * spread[0]
    np.testing.assert_allclose(spread[2], spread[0], rtol=0.05)
    for other in (wide, vectors):
        error = np.hypot(other.log_evidence_error, base.log_evidence_error)
        assert abs(other.log_evidence - base.log_evidence) < 4 * error


def test_such_a_posterior_is_read_back(follows, fitted, tmp_path):
    """Moments and draws to the bit."""
    found = follows.posterior(fitted.call, jax.random.key(7), 16)
    found.save(tmp_path / "posterior.kayn")
    again = kayn.load(tmp_path / "posterior.kayn", spline)
    np.testing.assert_array_equal(again.mean("z"), found.mean("z"))
    for name, value in found.sample(0, 50).items():
        np.testing.assert_array_equal(again.sample(0, 50)[name], value)


def numbers_alone(y):
    s = numpyro.sample("s", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(0, s).expand([ROWS]).to_event(1), obs=y)


def vectors_alone(y):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([KNOTS]).to_event(1))
    numpyro.sample("y", dist.Normal(B @ z, 0.4).to_event(1), obs=y)


def ordered(y):
    low = numpyro.sample("low", dist.Normal(0, 1))
    high = numpyro.sample("high", dist.TruncatedNormal(low, 1, low=low))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([KNOTS]).to_event(1))
    numpyro.sample("y", dist.Normal(B @ z + low, jnp.exp(high)).to_event(1), obs=y)


@pytest.mark.parametrize("model", [numbers_alone, vectors_alone, ordered])
def test_models_that_have_nothing_to_follow_are_left(model):
    fit = kayn.fit(model, (Y,), num_steps=8, progress=False)
    assert LaplaceSampler.of(fit.sampler, fit.call, WHOLE) is None


@pytest.mark.parametrize("error", [kayn.KaynError("no second derivatives"), FloatingPointError("a NaN")])
def test_what_cannot_follow_is_left(fitted, monkeypatch, error):
    """Densities without derivatives, and `jax_debug_nans` where a curvature is not positive on the way."""

    def broken(*args):
        raise error

    own = fitted.sampler.posterior(fitted.call, KEY, 32)
    assert settle._following(fitted.sampler, fitted.call, own, lambda draw: draw(KEY, 32), KEY) is not None
    monkeypatch.setattr(LaplaceSampler, "posterior", broken)
    assert settle._following(fitted.sampler, fitted.call, own, lambda draw: draw(KEY, 32), KEY) is None


def test_one_mode_of_several_does_not_take_the_place_of_all():
    """Signs are free where only squares are known: about one of eight choices weights are even, without a complaint,
    and what is lacking in evidence, log 8, tells."""

    def signs(y):
        s = numpyro.sample("s", dist.HalfNormal(1))
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(z**2, 0.05 + s / 10).to_event(1), obs=y)

    fit = kayn.fit(signs, (np.array([2.0, 1.0, 1.5]),), progress=False, rng_key=1)
    own = fit.sampler.posterior(fit.call, jax.random.key(1), 256)
    one = LaplaceSampler.of(fit.sampler, fit.call, WHOLE).fitted_again(own).posterior(fit.call, jax.random.key(2), 32)
    assert not any(complaints(one))
    np.testing.assert_allclose(own.log_evidence - one.log_evidence, np.log(8), atol=0.05)
    assert settle._following(fit.sampler, fit.call, own, lambda draw: draw(KEY, 32), KEY) is None


STEPS = 40
LEVELS = np.random.default_rng(5).normal(size=(STEPS, 3)) * [0.2, 0.3, 0.5]
SERIES = (2 + np.cumsum(np.cumsum(LEVELS[:, 0]) + LEVELS[:, 1]) + LEVELS[:, 2]).astype(np.float32)


def trend(y):
    """A level with a slope, and an effect of all steps."""
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    middle = numpyro.sample("middle", dist.Normal(0, 5))

    def step(state, now):
        slope, level = state
        slope = numpyro.sample("slope", dist.Normal(slope, spread))
        level = numpyro.sample("level", dist.Normal(level + slope, 0.3))
        numpyro.sample("y", dist.Normal(middle + level, 0.5), obs=now)
        return (slope, level), None

    scan(step, (0.0, 0.0), y)


def added(y):
    """The same of innovations that are added up, which are read in their sums."""
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    middle = numpyro.sample("middle", dist.Normal(0, 5))
    with numpyro.plate("time", STEPS):
        w, z = (numpyro.sample(n, dist.Normal(0, 1)) for n in ("w", "z"))
        level = jnp.cumsum(jnp.cumsum(spread * w) + 0.3 * z)
        numpyro.sample("y", dist.Normal(middle + level, 0.5), obs=y)


def trend_evidence():
    """Its log evidence, and the mean and deviation of the log spread, by quadrature: given that all is Normal."""
    logs = np.linspace(-6, 2, 400)
    walk = np.tril(np.ones((STEPS, STEPS)))
    rest = 0.09 * walk @ walk.T + 0.25 * np.eye(STEPS) + 25

    def log_density(log_spread):
        covariance = rest + np.exp(2 * log_spread) * (walk @ walk) @ (walk @ walk).T
        own = stats.halfnorm.logpdf(np.exp(log_spread)) + log_spread
        return stats.multivariate_normal.logpdf(SERIES, np.zeros(STEPS), covariance) + own

    values = np.array([log_density(v) for v in logs])
    weights = np.exp(values - values.max())
    mean = weights @ logs / weights.sum()
    variance = weights @ (logs - mean) ** 2 / weights.sum()
    return np.log(weights.sum() * (logs[1] - logs[0])) + values.max(), mean, np.sqrt(variance)


@pytest.fixture(scope="module", params=[trend, added])
def series(request):
    """A short fit of it, and the guide that follows it, fitted to its own weights."""
    fit = kayn.fit(request.param, (SERIES,), progress=False, num_steps=24)
    first = fit.sampler.posterior(fit.call, jax.random.key(1), 32)
    begun = LaplaceSampler.of(fit.sampler, fit.call, first).fitted_again(first)
    return fit, begun.fitted_again(begun.posterior(fit.call, jax.random.key(2), 32))


def test_the_curvature_of_a_series_is_a_band_with_a_border(series):
    """81 coordinates, of which each has to do with those of its own step and the next, but for one that has to do with
    all; weights are even, evidence that of quadrature within four errors, moments within a tenth of a deviation."""
    fit, follows = series
    assert isinstance(follows.curvature, Banded)
    assert follows.curvature.border == 1 and follows.curvature.width <= 3
    found = follows.posterior(fit.call, jax.random.key(4), 64)
    log_evidence, mean, sd = trend_evidence()
    assert abs(float(found.log_evidence) - log_evidence) < 4 * float(found.log_evidence_error) + 2e-3
    draws = np.log(found.sample(0, 4000)["spread"])
    assert abs(draws.mean() - mean) < 0.1 * sd and abs(draws.std() / sd - 1) < 0.1
    assert worst_efficiency(found) > 0.3


def test_a_series_is_read_back_with_its_band(series, tmp_path):
    """A saved posterior draws the same, though no particles tell of its band before it is read."""
    fit, follows = series
    found = follows.posterior(fit.call, jax.random.key(4), 32)
    found.save(tmp_path / "trend")
    again = kayn.load(tmp_path / "trend", fit.call.model)
    for name, values in found.sample(0, 50).items():
        np.testing.assert_array_equal(values, again.sample(0, 50)[name])


def test_guides_that_are_dear_to_follow_are_not_drawn_from(series, monkeypatch):
    fit, _ = series
    monkeypatch.setattr("kayn.inference.laplace.dear", lambda operations: True)
    monkeypatch.setattr(LaplaceSampler, "posterior", lambda *asked: pytest.fail("drawn from"))
    own = fit.sampler.posterior(fit.call, jax.random.key(1), 32)
    assert settle._following(fit.sampler, fit.call, own, None, jax.random.key(2)) is None


def test_guides_of_which_many_particles_are_dear_draw_few(fitted, exact, monkeypatch):
    """Thirty, which tell the same evidence, and are read back as many."""
    most = 50 * LaplaceSampler.of(fitted.sampler, fitted.call, WHOLE).problem.layout.operations / 100
    monkeypatch.setattr("kayn.inference.laplace.dear", lambda operations: operations > most)
    few = LaplaceSampler.of(fitted.sampler, fitted.call, WHOLE)
    assert {a.size for a in few.problem.layout.axes} == {30}
    first = few.fitted_again(fitted.sampler.posterior(fitted.call, jax.random.key(1), 32))
    found = first.posterior(fitted.call, jax.random.key(2), 64)
    assert abs(found.log_evidence - exact[0]) < 4 * found.log_evidence_error
    assert found.log_evidence_error < 0.05


def test_another_posterior_of_a_guide_that_follows_compiles_nothing(fitted):
    """Nor does a guide made anew for the same model."""
    first, again = (LaplaceSampler.of(fitted.sampler, fitted.call, WHOLE) for _ in range(2))
    first.posterior(fitted.call, KEY, 8)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    again.posterior(fitted.call, KEY, 8)
    assert compiled
    assert "/jax/core/compile/backend_compile_duration" not in compiled
