"""Chains as posteriors, and fits whose weights fail their checks.

Means are compared within five of the chains' own standard errors, 6e-7 false alarms a comparison; standard deviations
within a tenth, four of their errors at the effective sample sizes that are met."""

import sys
import warnings

import arviz_stats.base
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.inference.mcmc import escalate
from kayn.posterior import mixing

from .normals import SD, Y, normals, normals_exact

MEAN, COVARIANCE = normals_exact(SD, Y)
DEVIATION = np.diag(COVARIANCE) ** 0.5


def flat_of(chains, name):
    values = np.asarray(chains.draws.values[name])
    return values.reshape((*values.shape[:2], -1))


def compare(chains, name, mean, sd):
    found = mixing.diagnosed(flat_of(chains, name))
    assert (np.abs(np.ravel(chains.mean(name)) - mean) < 5 * found["MC error"]).all()
    np.testing.assert_allclose(np.ravel(chains.std(name)), sd, rtol=0.1)


@pytest.fixture(scope="module")
def fit():
    return kayn.fit(normals, (SD, Y), progress=False, num_steps=50)


@pytest.fixture(scope="module")
def chains(fit):
    return fit.mcmc(num_samples=1000, num_warmup=200, rng_key=1)


def test_a_fit_samples_from_where_it_is(chains):
    compare(chains, "mu", MEAN[:1], DEVIATION[:1])
    compare(chains, "theta", MEAN[1:], DEVIATION[1:])
    assert str(chains).startswith("Posterior of normals: 4 chains of 1000 draws")
    assert chains.check() == []


def test_chains_answer_what_weighed_particles_do(fit, chains):
    """Questions of joint draws against the closed form, within five errors of 1,000 independent draws and more."""
    weighed, error = fit.posterior(), 5 * DEVIATION / 1000**0.5
    np.testing.assert_allclose(chains.mean("twice"), 2 * chains.mean("theta"), rtol=1e-4)
    np.testing.assert_allclose(chains.std("twice"), 2 * chains.std("theta"), rtol=1e-4)
    product = chains.expectation(lambda mu, theta: mu * theta)
    spread = np.sqrt(DEVIATION[0] ** 2 * MEAN[1:] ** 2 + DEVIATION[1:] ** 2 * (MEAN[0] ** 2 + DEVIATION[0] ** 2)) + 0.1
    assert (np.abs(product - COVARIANCE[0, 1:] - MEAN[0] * MEAN[1:]) < 5 * spread / 1000**0.5 * 2).all()
    np.testing.assert_allclose(
        chains.covariance("mu", "theta"), product - chains.mean("mu") * chains.mean("theta"), atol=1e-3
    )
    np.testing.assert_allclose(chains.quantile("mu", [0.5]), MEAN[:1], atol=2 * error[0])
    assert (np.abs(chains["theta"].mean(0) - MEAN[1:]) < error[1:]).all()
    assert {n: v.shape for n, v in chains.sample(3, 10).items()} == {"mu": (10,), "theta": (10, 6), "twice": (10, 6)}
    assert chains.sample(0, 9000)["mu"].shape == (9000,)
    assert chains.predictive(0, 7)["y"].shape == (7, 6)
    other = (SD, Y + 0.1)
    ours, theirs = (p.log_predictive(0, 1000, *other).total for p in (chains, weighed))
    np.testing.assert_allclose(ours, theirs, atol=0.3)
    left_out = [p.loo() for p in (chains, weighed)]
    known = np.max([x.khat for x in left_out], 0) < 0.7  # others have no tolerance to name
    assert known.sum() >= 2
    ours, theirs = (x.pointwise[known] for x in left_out)
    np.testing.assert_allclose(ours, theirs, atol=0.15)
    assert np.isnan(chains.log_evidence)
    with pytest.raises(kayn.QueryError, match="these are draws of chains"):
        chains.mode()
    with pytest.raises(kayn.QueryError, match="no site of the model"):
        chains.summary(var_names=["nu"])


def test_elements_of_a_positive_vector_move_apart():
    """Gamma rates of groups as one event, and counts: Gamma again."""
    group, counts = np.repeat(np.arange(4), 3), np.array([0, 1, 0, 2, 3, 1, 7, 5, 6, 1, 0, 4])

    def model():
        rates = numpyro.sample("rates", dist.Gamma(2.0, 1.0).expand([4]).to_event(1))
        with numpyro.plate("rows", 12):
            numpyro.sample("y", dist.Poisson(rates[group]), obs=counts)

    chains = kayn.fit(model, num_steps=8, progress=False).mcmc(num_samples=1000, num_warmup=200, rng_key=1)
    shape = 2 + np.bincount(group, counts)
    compare(chains, "rates", shape / 4, shape**0.5 / 4)


def test_densities_that_lie_are_told_of_though_chains_are_the_answer(fit, chains, monkeypatch):
    monkeypatch.setattr(
        sys.modules["kayn.inference.settle"], "assured", lambda own, *given: (own, ("latent 'mu': poor",))
    )
    monkeypatch.setattr(escalate, "run_until_mixed", lambda *given: chains)
    monkeypatch.setattr("kayn.posterior.poor_fit.unsound", lambda *given: ["site 'y' lies"])
    with pytest.warns(kayn.NumericsWarning, match="'y' lies"):
        assert fit.posterior().draws is chains.draws


def test_evidence_after_sampling_is_of_the_guide_with_the_draws_moments(chains, monkeypatch):
    """Of a guide that has hardly been fitted: within five of its errors of the closed form, and exact to a hundredth;
    the guide's moments are those of the draws that it takes."""
    begun = kayn.fit(normals, (SD, Y), progress=False, num_steps=1)
    monkeypatch.setattr(
        sys.modules["kayn.inference.settle"], "assured", lambda own, *given: (own, ("latent 'mu': poor",))
    )
    monkeypatch.setattr(escalate, "run_until_mixed", lambda *given: chains)
    found = begun.posterior()
    exact = dist.MultivariateNormal(np.zeros(len(Y)), np.diag(np.asarray(SD) ** 2 + 1) + 4).log_prob(Y)
    assert found.log_evidence_error < 0.01
    assert abs(found.log_evidence - exact) < 5 * found.log_evidence_error
    assert "nats, from weights of the guide with these draws' moments" in str(found)
    draws = {n: np.moveaxis(v, 0, 1).reshape((-1, *v.shape[2:])) for n, v in chains.draws.values.items()}
    fitted = begun.sampler.fitted_to(draws)
    used = 4000 // begun.sampler.qem.blocks[0].size * begun.sampler.qem.blocks[0].size
    np.testing.assert_allclose(fitted.proposal["kayn:mu:loc"], draws["mu"][:used].mean(0), rtol=1e-3)


def test_particles_that_are_too_large_to_be_kept_leave_the_evidence_as_it_was(chains, monkeypatch):
    """The chains are the answer, with the log evidence of the weights that failed."""
    begun = kayn.fit(normals, (SD, Y), progress=False, num_steps=1)
    monkeypatch.setattr("kayn.inference.qem.KEPT_BYTES", 0)
    monkeypatch.setattr(
        sys.modules["kayn.inference.settle"], "assured", lambda own, *given: (own, ("latent 'mu': poor",))
    )
    monkeypatch.setattr(escalate, "run_until_mixed", lambda *given: chains)
    found, before = begun.posterior(), begun.posterior(escalate=False)
    assert found.draws is chains.draws
    np.testing.assert_allclose(found.evidence, (before.log_evidence, before.log_evidence_error))
    assert "from weights that failed a check" in str(found)


def test_a_sampler_that_breaks_leaves_the_weights(fit, monkeypatch):
    def broken(*given):
        raise KeyError("gone")

    monkeypatch.setattr(
        sys.modules["kayn.inference.settle"], "assured", lambda own, *given: (own, ("latent 'mu': poor",))
    )
    monkeypatch.setattr(escalate, "run_until_mixed", broken)
    with pytest.warns(kayn.PoorFitWarning, match="sampling ended in KeyError .*please report"):
        found = fit.posterior()
    np.testing.assert_array_equal(found.mean("mu"), fit.posterior(escalate=False).mean("mu"))
    assert "could not be sampled" in str(fit)


def test_summaries_of_chains_have_their_diagnostics(chains):
    summary = chains.summary(3, var_names=["mu", "theta", "twice"])
    table = summary.to_dataframe()
    assert list(table.index) == ["mu", *(f"{n}[{i}]" for n in ("theta", "twice") for i in range(3))]
    assert list(table.columns[-4:]) == ["MC error", "bulk ESS", "tail ESS", "R-hat"]
    np.testing.assert_allclose(table["bulk ESS"]["twice[1]"], table["bulk ESS"]["theta[1]"], rtol=1e-3)
    assert "log evidence not available" in str(summary)


def test_export_keeps_chains(chains):
    tree = chains.to_datatree(predictive=True, prior=True)
    assert tree["posterior"]["theta"].shape == (4, 1000, 6)
    np.testing.assert_array_equal(tree["posterior"]["theta"], chains.draws.values["theta"])
    assert tree["log_likelihood"]["y"].shape == tree["posterior_predictive"]["y"].shape == (4, 1000, 6)
    assert chains.to_datatree(num_samples=10)["posterior"]["mu"].shape == (4, 3)


def test_chains_are_read_back(chains, tmp_path):
    chains.save(tmp_path / "chains")
    again = kayn.load(tmp_path / "chains", normals)
    assert str(again) == str(chains)
    np.testing.assert_array_equal(again["twice"], chains["twice"])


def test_diagnostics_are_those_of_arviz():
    """Of autocorrelated, shifted, heavy-tailed and discrete draws; of such as do not move, none."""
    rng = np.random.default_rng(0)
    draws = np.empty((4, 500, 5))
    draws[..., 0] = rng.normal(size=(4, 500)).cumsum(1) / 10
    draws[..., 1] = rng.normal(size=(4, 500)) + np.arange(4)[:, None] / 3
    draws[..., 2] = rng.standard_cauchy((4, 500))
    draws[..., 3] = rng.integers(0, 3, (4, 500))
    draws[..., 4] = 1.0
    found, over = mixing.diagnosed(draws), {"chain_axis": 0, "draw_axis": 1}
    stats, moving = arviz_stats.base.array_stats, draws[..., :4]
    np.testing.assert_allclose(found["R-hat"][:4], stats.rhat(moving, **over), rtol=2e-3)
    np.testing.assert_allclose(found["bulk ESS"][:4], stats.ess(moving, method="bulk", **over), rtol=0.1)
    np.testing.assert_allclose(found["MC error"][:3], stats.mcse(moving, **over)[:3], rtol=0.1)
    tails = stats.ess(moving, method="tail", prob=(0.05, 0.95), **over)
    np.testing.assert_allclose(found["tail ESS"][1:3], tails[1:3], rtol=0.15)
    assert found["tail ESS"][0] < 1.15 * tails[0]
    assert all(np.isnan(v[4]) for v in found.values())


def product(y):
    """Two numbers of which the data know the product: no product of laws comes near their posterior."""
    a = numpyro.sample("a", dist.HalfNormal(3.0))
    b = numpyro.sample("b", dist.HalfNormal(3.0))
    numpyro.sample("y", dist.Normal(a * b, 0.1), obs=y)


def independent(y):
    for name in ("a", "b"):
        loc = numpyro.param(f"{name}_loc", 0.5)
        numpyro.sample(name, dist.LogNormal(loc, 0.3))


def test_fits_whose_weights_fail_are_sampled():
    grid = np.exp(np.linspace(-5, 3, 4001))
    # b is as good as y / a, whose density has a factor 1 / a, which steps of log a undo
    inside = np.exp(-0.5 * (grid / 3) ** 2 - 0.5 * (4 / grid / 3) ** 2)
    inside /= inside.sum()
    mean = inside @ grid
    sd = np.sqrt(inside @ grid**2 - mean**2)
    fit = kayn.fit(product, (jnp.array(4.0),), guide=independent, num_particles=5, num_steps=20, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", kayn.PoorFitWarning)
        posterior = fit.posterior()
    assert isinstance(posterior, kayn.Chains)
    compare(posterior, "a", [mean], [sd])
    assert "sampled, since: " in str(posterior)
    assert "targets met, since" in str(fit)
    assert np.isfinite(posterior.log_evidence)
    with pytest.warns(kayn.PoorFitWarning, match="latent '[ab]'.*chains have not mixed"):
        short = fit.posterior(max_seconds=0.01)
    assert short.check()
    with pytest.warns(kayn.PoorFitWarning):
        assert not isinstance(fit.posterior(escalate=False), kayn.Chains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.PoorFitWarning)
        assert not isinstance(fit.posterior(5), kayn.Chains)
