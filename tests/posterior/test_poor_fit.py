"""Means that move with the number of particles: told from the replicates that there are, and said."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.posterior import diagnostics, poor_fit
from kayn.posterior.diagnostics import FALSE_ALARM, POOR_SHARE, largest_share, noise_of_tails, shares, shift

GROUPS = 300
Y = np.random.default_rng(0).normal(0, np.sqrt(1.25), GROUPS).astype(np.float32)


def groups(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", GROUPS):
        x = numpyro.sample("x", dist.Normal(0, tau))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def guide(y):
    tau = numpyro.sample("tau", dist.LogNormal(np.log(0.524), 0.21))
    with numpyro.plate("groups", GROUPS):
        # what depends on tau is drawn as often as tau, so that a few of them are uneven; even ones leave nothing to see
        numpyro.sample("x", dist.Normal(0.215 * y + 0 * tau, 1.2 * 0.464))


def test_the_shift_of_means_is_what_few_particles_cost():
    """Twelve particles of N(0, 1.5^2) for N(1, 1): what single replicates lack is the shift, within four of its own
    standard errors and of the average's (6e-5)."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1.5, (40000, 12))
    weights = np.exp(-0.5 * (x - 1) ** 2 + 0.5 * (x / 1.5) ** 2)
    means = (weights * x).sum(1) / weights.sum(1)
    found, error = shift(np.log(weights.mean(1)), means, np.ones(()))
    lacking, noise = 1 - means.mean(), means.std() / 200
    assert lacking > 5 * noise
    assert abs(found - lacking) < 4 * np.hypot(noise, error)


def test_means_that_have_nothing_to_do_with_the_evidence_are_left_alone():
    """As often as stated, for one element as for forty: within four standard errors (6e-5 each)."""
    rng, count = np.random.default_rng(2), 2000
    for elements in (1, 40):
        runs = (shift(rng.normal(size=32), rng.normal(size=(32, elements)), np.ones(elements))[0] for _ in range(count))
        alarms = sum(bool(found.any()) for found in runs)
        # Fisher's transformation is normal for many replicates; far out in its tails, not quite for 32
        assert alarms < 2 * FALSE_ALARM * count + 4 * (FALSE_ALARM * count) ** 0.5
        assert alarms > 0


def test_replicates_count_by_their_evidence(monkeypatch):
    """Particles of the groups that are a little too wide: with twelve in each, tau is off by 0.3 sd in the average of
    replicates, which is told, and not where these count by their evidence."""
    monkeypatch.setattr(poor_fit, "POOR_SHIFT", 0.1)
    few, more = (found(k) for k in (12, 40))
    right, sd = float(more.mean("tau")), float(more.std("tau"))
    assert abs(few.mean("tau") - right) < 0.08 * sd
    assert abs(np.mean(few.sample(0, 4000)["tau"]) - few.mean("tau")) < 0.05 * sd
    for posterior in (few, more):
        assert not any("replicates of higher evidence" in text for text in poor_fit.check(posterior))
    monkeypatch.setattr(diagnostics, "LEAST_SHARED", 1.0)
    few, more = (found(k) for k in (12, 40))
    assert abs(few.mean("tau") - right) > 0.2 * sd
    assert any("latent 'tau': replicates of higher evidence" in text for text in poor_fit.check(few))
    assert not any("replicates of higher evidence" in text for text in poor_fit.check(more))


def found(particles):
    """A posterior with so many particles in every group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.PoorFitWarning)
        return kayn.Importance(groups, guide, {"tau": 30, "x": particles}, num_replicates=200).run(3, None, Y)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 3.0, 300.0])
def test_shares_are_those_of_the_evidence_or_worth_a_quarter_of_their_number(spread):
    log_z = (np.random.default_rng(0).normal(-1e4, 1, 64) * spread).astype(np.float32)
    log_z[:4] = -np.inf
    found = shares(log_z)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[:4], 0)
    by_evidence = np.exp(log_z - log_z.max()) / np.exp(log_z - log_z.max()).sum()
    if (1 / (by_evidence**2).sum()) >= 15:
        np.testing.assert_allclose(found, by_evidence, rtol=1e-4)
    else:
        assert 15 <= 1 / (found**2).sum() < 25
    np.testing.assert_allclose(jax.jit(shares)(jnp.asarray(log_z)), found, rtol=1e-4)
    np.testing.assert_array_equal(shares(np.full(3, -np.inf, np.float32)), 0)


def test_a_replicate_makes_a_large_part_of_a_variance_where_it_counts_for_more_and_is_far_off():
    """Of 64, four times its share at fourteen typical variances: more than a quarter; either alone is ordinary, and so
    are variances of heavy tails (Cauchy)."""
    rng = np.random.default_rng(6)
    variances, even = rng.gamma(50, 1 / 50, (64, 1)), np.full(64, 1 / 64)
    more = np.where(np.arange(64) == 3, 4.0, 1.0) / 67
    far = np.where(np.arange(64)[:, None] == 3, 14.0, variances)
    assert largest_share(far, more) > POOR_SHARE
    assert max(*largest_share(far, even), *largest_share(variances, more)) < POOR_SHARE
    heavy = (rng.standard_cauchy((64, 100, 50)) ** 2).mean(1)
    assert np.mean(largest_share(heavy, even) > POOR_SHARE) == 0
    np.testing.assert_array_equal(largest_share(np.zeros((64, 2)), even), 0)


def test_what_rests_on_one_particle_is_named():
    """One particle at eight standard deviations with the weight of a replicate: no effective sample size or k-hat
    tells, but the variance is half as large again."""

    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def guide(y):
        numpyro.sample("x", dist.Normal(0.5, 0.5**0.5))

    posterior = kayn.Importance(model, guide, 100, num_replicates=64).run(0, None, 1.0)
    assert not poor_fit.check(posterior)
    axis = posterior.problem.layout.axis_of("x").name
    values, weights = (np.array(v) for v in (posterior.draws.values["x"], posterior.axis_weights[axis]))
    values[5, 7], weights[5] = 0.5 + 8 * 0.5**0.5, weights[5] * 0.1
    weights[5, 7] = 0.9
    log_z = np.where(np.arange(64) == 5, np.log(3.0), 0.0).astype(np.float32) + np.asarray(posterior.log_evidences)
    draws = replace(posterior.draws, values={"x": values})
    moved = replace(posterior, draws=draws, axis_weights={axis: weights}, log_evidences=log_z)
    assert float(moved.std("x")) > 1.3 * float(posterior.std("x"))
    assert ["one replicate of 64" in text for text in poor_fit.check(moved)] == [True]
    assert not [*poor_fit.complaints(moved, uneven=False)]
    few = jax.tree.map(lambda v: v[:16], (moved.draws, moved.axis_weights, moved.log_evidences))
    assert not poor_fit.check(replace(moved, **dict(zip(("draws", "axis_weights", "log_evidences"), few, strict=True))))


def test_the_noise_of_tails_is_that_of_weights_given_the_value():
    """Smooth weights have none; lognormal noise of variance v has exp(v) - 1, within four standard errors (6e-5)."""
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1.3, (400, 50))
    smooth = np.exp(-0.5 * x**2 + 0.5 * (x / 1.3) ** 2)
    assert noise_of_tails(x, smooth / smooth.sum(1, keepdims=True)) < 0.01
    noisy = smooth * np.exp(np.where(x > 0.5, 0.5, 0.0) * rng.normal(size=x.shape))
    # some 1,500 weights lie in the tail
    assert abs(noise_of_tails(x, noisy) - np.expm1(0.25)) < 4 * 2 * np.expm1(0.25) / 1500**0.5


def test_tails_that_no_particle_of_a_vector_fits_are_named():
    """Twelve numbers on one particle, each of which the scale moves: a guide for its middle alone, and a wide one."""
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))[0].astype(np.float32)
    y = (turn @ np.linspace(-1.5, 1.5, 12)).astype(np.float32)

    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([12]).to_event(1))
        numpyro.sample("y", dist.Normal(scale * (turn @ z), 0.4).to_event(1), obs=y)

    def said_of(wide):
        def guide(y):
            numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
            numpyro.sample("z", dist.Normal(turn.T @ y / 1.16, wide * 0.37).to_event(1))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kayn.PoorFitWarning)
            posterior = kayn.Importance(model, guide, {"scale": 30, "z": 100}, num_replicates=64).run(3, None, y)
        axes = posterior.problem.layout
        return {n: list(poor_fit._missing_tails(posterior, axes.axis_of(n))) for n in ("scale", "z")}

    narrow, wide = (said_of(w) for w in (0.7, 1.3))
    (text,) = narrow.pop("scale")
    assert "latent 'scale': weights of nearly the same value" in text and "few particles of 'z'" in text
    assert (narrow, wide) == ({"z": []}, {"scale": [], "z": []})
