"""The posterior against closed forms.

Keys are fixed, so a run always gives the same verdict. Bounds are five standard errors of the estimate or more: if the
random stream changed, a check of one number would fail with probability below 1e-6, a check of a dozen below 1e-5.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import kayn
from kayn import Importance, PoorFitWarning, StructureWarning
from kayn.factors import by_terms
from kayn.posterior.diagnostics import efficiency

J = 3
COUNTY = np.array([0, 0, 0, 1, 1, 2], np.int32)
Y = np.array([0.9, 1.4, 0.3, -0.6, -1.1, 2.2])
NEW_COUNTY = np.array([2, 0, 1], np.int32)
NEW_Y = np.array([1.0, 0.5, -1.5])


def hierarchy(county, y=None, groups=J):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("counties", groups):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    numpyro.deterministic("twice", 2 * alpha)
    numpyro.deterministic("gap", alpha - mu)
    numpyro.deterministic("total", alpha.sum())
    with numpyro.plate("rows", len(county)):
        numpyro.sample("y", dist.Normal(alpha[county], 1), obs=y)


def gaussian(county, y, groups=J):
    """Posterior mean and covariance of (mu, alpha), and the log evidence."""
    size = 1 + groups
    prior = np.ones((size, size)) + np.diag([0.0, *np.ones(groups)])
    read = np.zeros((len(y), size))
    read[np.arange(len(y)), 1 + county] = 1
    marginal = read @ prior @ read.T + np.eye(len(y))
    gain = prior @ read.T @ np.linalg.inv(marginal)
    return gain @ y, prior - gain @ read @ prior, multivariate_normal(np.zeros(len(y)), marginal).logpdf(y)


MEAN, COVARIANCE, LOG_EVIDENCE = gaussian(COUNTY, Y)
SD = np.sqrt(np.diag(COVARIANCE))


def mean_field(widen=1.3, shift=0.0):
    """The posterior's marginals, somewhat wider, as an independent guide."""

    def guide(county, y=None, groups=J):
        numpyro.sample("mu", dist.Normal(MEAN[0], widen * SD[0]))
        with numpyro.plate("counties", groups):
            numpyro.sample("alpha", dist.Normal(MEAN[1:] + shift, widen * SD[1:]))

    return guide


@pytest.fixture(scope="module")
def posterior():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PoorFitWarning)
        return Importance(hierarchy, mean_field(), num_particles=100, num_replicates=40).run(0, None, COUNTY, Y)


# -- evidence, weights, moments


def test_log_evidence_and_its_error(posterior):
    error = float(posterior.log_evidence_error)
    assert 1e-5 < error < 0.01
    assert abs(posterior.log_evidence - LOG_EVIDENCE) < 5 * error
    # estimates from 40 replicates of others scatter by it: 50 of them, and 40 replicates, know it within 15 %
    others = Importance(hierarchy, mean_field(), num_particles=100, num_replicates=2000).run(2, None, COUNTY, Y)
    scatter = np.std(logsumexp(np.reshape(others.log_evidences, (50, 40)), 1) - np.log(40))
    assert abs(np.log(error / scatter)) < 4 * 0.15
    np.testing.assert_allclose(others.log_evidence_error, error / 50**0.5, rtol=4 * 0.12)
    single = Importance(hierarchy, mean_field(), num_particles=100).run(1, None, COUNTY, Y)
    assert np.isnan(single.log_evidence_error)


def test_shapes_and_normalisation(posterior):
    pooled = 100 * 40
    assert posterior.particles["mu"].shape == (pooled,)
    assert posterior.particles["alpha"].shape == (pooled, J)
    assert posterior.weights("mu").shape == (pooled,)
    assert posterior.weights("alpha").shape == (pooled, J)
    for name in ("mu", "alpha"):
        weights = np.asarray(posterior.weights(name))
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-4)
        assert posterior.ess(name).shape == weights.shape[1:] == posterior.khat(name).shape
        assert ((posterior.ess(name) > 0.3 * pooled) & (posterior.ess(name) < pooled)).all()
        assert (posterior.khat(name) < 0.7).all()
    assert posterior.check() == []


def test_moments(posterior):
    # standard error of a mean about sd / sqrt(40 * ESS of one replicate), at most 0.02
    np.testing.assert_allclose([posterior.mean("mu"), *posterior.mean("alpha")], MEAN, atol=0.1)
    np.testing.assert_allclose([posterior.std("mu"), *posterior.std("alpha")], SD, rtol=0.12)


def test_covariance_and_joint_expectations(posterior):
    np.testing.assert_allclose(posterior.covariance("mu", "alpha"), COVARIANCE[0, 1:], atol=0.08)
    np.testing.assert_allclose(posterior.expectation(lambda m: m**2, "mu"), COVARIANCE[0, 0] + MEAN[0] ** 2, atol=0.08)
    joint = posterior.expectation(lambda m, a: jnp.stack([m * a, a**2]), "mu", "alpha")
    exact = [COVARIANCE[0, 1:] + MEAN[0] * MEAN[1:], SD[1:] ** 2 + MEAN[1:] ** 2]
    np.testing.assert_allclose(joint, exact, atol=0.2)


def test_expectations_do_not_depend_on_how_they_are_asked(posterior):
    mean = posterior.mean("alpha")
    np.testing.assert_allclose(posterior.expectation(lambda a: a, "alpha"), mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(posterior.expectation(lambda alpha: alpha), mean, rtol=1e-3, atol=1e-4)
    sd = posterior.std("alpha")
    variance = posterior.expectation(lambda a: (a - mean) ** 2, "alpha")
    np.testing.assert_allclose(jnp.sqrt(variance), sd, rtol=1e-3)


def test_functions_of_one_axis_take_its_weights(monkeypatch):
    """Latents that share particles, alone and over a plate: sums over particles, and nothing is contracted."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("groups", 2):
            a = numpyro.sample("a", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(a + slope, 1), obs=y)

    importance = Importance(model, num_particles=20, num_replicates=3, groups=[("mu", "slope")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFitWarning)
        found = importance.run(0, {}, np.array([0.3, 1.2]))
    monkeypatch.setattr("kayn.evidence.expectation.Expectation.moments", None)
    mu, slope, a = (np.asarray(found.particles[n], float) for n in ("mu", "slope", "a"))
    weights = np.asarray(found.weights("mu"), float)
    covariance = (weights * mu * slope).sum() - (weights * mu).sum() * (weights * slope).sum()
    np.testing.assert_allclose(found.covariance("mu", "slope"), covariance, rtol=1e-4, atol=1e-6)
    square = (np.asarray(found.weights("a"), float) * a**2).sum(0)
    np.testing.assert_allclose(found.expectation(lambda a: a**2, "a"), square, rtol=1e-5)


def test_deterministic_sites(posterior):
    np.testing.assert_allclose(posterior.mean("twice"), 2 * posterior.mean("alpha"), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(posterior.std("twice"), 2 * posterior.std("alpha"), rtol=2e-3)
    contrast = np.hstack([-np.ones((J, 1)), np.eye(J)])
    np.testing.assert_allclose(posterior.mean("gap"), contrast @ MEAN, atol=0.12)
    np.testing.assert_allclose(posterior.std("gap"), np.sqrt(np.diag(contrast @ COVARIANCE @ contrast.T)), rtol=0.15)


def test_a_site_that_mixes_elements_falls_back_to_draws(posterior):
    ones = np.array([0.0, *np.ones(J)])
    with pytest.warns(StructureWarning, match=r"total.*joint draws"):
        mean = posterior.mean("total")
    with pytest.warns(StructureWarning, match=r"alpha.*joint draws"):
        largest = posterior.expectation(lambda a: a.max(), "alpha")
    # 2000 draws from 40 sets of particles
    assert abs(mean - ones @ MEAN) < 0.25
    exact = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 100_000)[:, 1:].max(1).mean()
    assert abs(largest - exact) < 0.2


# -- the exact posterior as guide


def pair(x, y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        b = numpyro.sample("b", dist.Normal(1, 2))
        numpyro.sample("y", dist.Normal(b, 1), obs=y)
    numpyro.sample("x", dist.Normal(a, 0.5), obs=x)


def pair_guide(x, y):
    numpyro.sample("a", dist.Normal(x / 0.25 / 5, 5**-0.5))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("b", dist.Normal((0.25 + y) / 1.25, 1.25**-0.5))


def pair_evidence(x, y):
    return norm(0, np.sqrt(1.25)).logpdf(x) + norm(1, np.sqrt(5)).logpdf(y).sum()


@pytest.mark.parametrize("key", [0, 1, 2])
def test_exact_factorised_guide(x64, key):
    x, y = np.float64(0.7), np.array([0.3, -2.0, 4.0, 1.0])
    exact = Importance(pair, pair_guide, num_particles={"a": 5, "": 7}).run(key, None, x, y)
    np.testing.assert_allclose(exact.log_evidence, pair_evidence(x, y), rtol=1e-12)
    np.testing.assert_allclose(exact.ess("a"), 5, rtol=1e-10)
    np.testing.assert_allclose(exact.ess("b"), 7, rtol=1e-10)
    np.testing.assert_allclose(exact.weights("b"), 1 / 7, rtol=1e-10)


def pair_of_chain(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    theta = numpyro.sample("theta", dist.Normal(mu, 1))
    numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def chain_guide(y):
    mu = numpyro.sample("mu", dist.Normal(y / 3, jnp.sqrt(2 / 3)))
    numpyro.sample("theta", dist.Normal((mu + y) / 2, jnp.sqrt(0.5)))


def hierarchy_guide(county, y=None, groups=J):
    mu = numpyro.sample("mu", dist.Normal(MEAN[0], SD[0]))
    count, total = np.bincount(county, minlength=groups), np.bincount(county, y, minlength=groups)
    with numpyro.plate("counties", groups):
        numpyro.sample("alpha", dist.Normal((mu + total) / (1 + count), (1 + count) ** -0.5))


@pytest.mark.parametrize("key", [0, 1])
def test_exact_structured_guide(x64, key):
    """`mean_l (mean_k q(theta_l | mu_k)) / (mean_k q(theta_l | mu_k))` is one whatever the particles are."""
    exact = Importance(pair_of_chain, chain_guide, num_particles=6).run(key, None, 1.3)
    np.testing.assert_allclose(exact.log_evidence, norm(0, np.sqrt(3)).logpdf(1.3), rtol=1e-12)
    np.testing.assert_allclose(exact.ess("theta"), 6, rtol=1e-10)
    assert 1 < exact.ess("mu") < 6


@pytest.mark.parametrize("options", [{"strategy": "global"}, {"groups": [("mu", "alpha")]}], ids=["global", "groups"])
def test_exact_structured_guide_on_one_axis(x64, options):
    """Joint draws of the exact posterior all have the same weight."""
    exact = Importance(hierarchy, hierarchy_guide, num_particles=6, **options).run(0, None, COUNTY.copy(), Y.copy())
    np.testing.assert_allclose(exact.log_evidence, LOG_EVIDENCE, rtol=1e-12)
    for name in ("mu", "alpha"):
        np.testing.assert_allclose(exact.ess(name), 6, rtol=1e-10)


def test_structured_guide_needs_few_particles():
    """Mixture and paired denominators are both right; the posterior's own conditionals leave little to correct."""
    for denominator, bound in (("mixture", 0.15), ("paired", 0.6)):
        found = Importance(hierarchy, hierarchy_guide, num_particles=30, num_replicates=20, denominator=denominator)
        assert abs(found.run(3, None, COUNTY, Y).log_evidence - LOG_EVIDENCE) < bound


# -- warnings


def test_bad_guides_are_called_bad():
    with pytest.warns(PoorFitWarning, match=r"latent 'alpha'.*(effective sample size|k-hat)"):
        far = Importance(hierarchy, mean_field(widen=0.3, shift=2.0), num_particles=50).run(0, None, COUNTY, Y)
    assert any("'alpha'" in c for c in far.check())
    assert float(jnp.min(far.ess("alpha"))) < 10

    def tight(x, y):
        numpyro.sample("a", dist.Normal(x / 0.25 / 5, 0.2 * 5**-0.5))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("b", dist.Normal((0.25 + y) / 1.25, 1.25**-0.5))

    y = np.array([0.3, -2.0])
    with pytest.warns(PoorFitWarning) as found:
        narrow = Importance(pair, tight, num_particles=200, num_replicates=4).run(0, None, 0.7, y)
    assert [str(w.message).split(":")[0] for w in found if w.category is PoorFitWarning] == ["latent 'a'"]
    assert narrow.khat("a") > 0.7
    assert np.isnan(narrow.khat("b")).all()  # equal weights have no tail
    assert "warning: latent 'a'" in str(narrow.summary())


def test_a_poor_vector_is_told_how_to_get_more_particles():
    def model(y):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(12), 1).to_event(1))
        s = numpyro.sample("s", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z + s, 0.1), obs=y)

    def guide(y):
        numpyro.sample("z", dist.Normal(jnp.zeros(12), 1).to_event(1))
        numpyro.sample("s", dist.Normal(0, 1))

    with pytest.warns(PoorFitWarning) as found:
        Importance(model, guide, num_particles=50).run(0, None, jnp.ones(12))
    by_latent = {str(w.message).split(":")[0]: str(w.message) for w in found}
    assert "The 12 coordinates of 'z' share one particle" in by_latent["latent 'z'"]
    assert "control_flow.scan" in by_latent["latent 'z'"]
    assert "coordinates" not in by_latent.get("latent 's'", "")


def test_impossible_replicates_are_left_out():
    """A replicate whose particles are all impossible says nothing, and must not pull estimates towards zero."""

    def model():
        u = numpyro.sample("u", dist.Uniform(1.0, 2.0))
        numpyro.deterministic("double", 2 * u)
        numpyro.factor("rare", jnp.where(u < 1.2, 0.0, -jnp.inf))

    def guide():
        numpyro.sample("u", dist.Uniform(1.0, 2.0))

    with pytest.warns(PoorFitWarning, match=r"\d+ of 60 replicates hold no possible combination"):
        rare = Importance(model, guide, num_particles=4, num_replicates=60).run(0, None)
    assert not np.isfinite(rare.log_evidences).all()
    np.testing.assert_allclose(np.exp(rare.log_evidence), 0.2, atol=0.13)
    np.testing.assert_allclose(rare.weights("u").sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(rare.mean("u"), 1.1, atol=0.05)
    np.testing.assert_allclose(rare.mean("double"), 2.2, atol=0.1)
    np.testing.assert_allclose(rare.expectation(lambda u: u, "u"), 1.1, atol=0.05)
    assert rare.std("u") < 0.1
    assert (rare.sample(1, 200)["u"] < 1.2).all()


def test_impossible_replicates_predict_nothing():
    """With one particle each, the density of held-out rows is its average over the possible ones by their evidence."""

    def model(y):
        u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
        numpyro.factor("rare", jnp.where(u < 0.5, 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(u, 1.0).expand([len(y)]).to_event(1), obs=y)

    def guide(y):
        numpyro.sample("u", dist.Uniform(0.0, 1.0))

    y, other = np.array([0.2, 0.9], np.float32), np.array([0.7, -0.4, 1.5], np.float32)
    with pytest.warns(PoorFitWarning, match="hold no possible combination"):
        rare = Importance(model, guide, num_particles=1, num_replicates=40).run(0, None, y)
    possible = np.isfinite(rare.log_evidences)
    assert 5 < possible.sum() < 35
    rows = norm(np.asarray(rare.draws.values["u"])[possible], 1.0).logpdf(other).sum(-1)
    found = rare.log_predictive(1, 500, other).joint
    before = np.asarray(rare.log_evidences)[possible]
    np.testing.assert_allclose(found, logsumexp(rows + before) - logsumexp(before), rtol=1e-5)


def test_efficiency_is_one_for_equal_weights_and_zero_for_one_particle():
    equal, one, half = np.full(4, 0.25), np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(efficiency(np.stack([equal, one, half], 1)[None]), [1.0, 0.0, 1 / 3])
    np.testing.assert_allclose(efficiency(np.stack([equal, one])), 0.5)


# -- draws and the mode


@pytest.fixture(scope="module")
def draws(posterior):
    return posterior.sample(7, 4000)


def test_joint_draws(draws):
    assert {n: v.shape for n, v in draws.items()} == {
        "mu": (4000,), "alpha": (4000, J), "twice": (4000, J), "gap": (4000, J), "total": (4000,),
    }  # fmt: skip
    joint = np.column_stack([draws["mu"], draws["alpha"]])
    np.testing.assert_allclose(joint.mean(0), MEAN, atol=0.15)
    np.testing.assert_allclose(np.cov(joint.T), COVARIANCE, atol=0.12)
    np.testing.assert_allclose(draws["total"], draws["alpha"].sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draws["gap"], draws["alpha"] - draws["mu"][:, None], rtol=1e-5, atol=1e-5)


def test_draws_are_reproducible(posterior, draws):
    again, other = posterior.sample(7, 4000), posterior.sample(8, 4000)
    np.testing.assert_array_equal(again["mu"], draws["mu"])
    assert not np.array_equal(other["mu"], draws["mu"])
    assert posterior.sample(7, 3)["alpha"].shape == (3, J)


def test_mode_is_no_worse_than_any_draw():
    few = Importance(hierarchy, mean_field(), num_particles=5).run(2, None, COUNTY, Y)

    def log_weight(values):
        latents = {n: values[n] for n in ("mu", "alpha")}
        log_p = log_density(hierarchy, (COUNTY, Y), {}, latents)[0]
        return log_p - log_density(mean_field(), (COUNTY, Y), {}, latents)[0]

    best = few.mode()
    assert best["alpha"].shape == (J,)
    seen = jax.vmap(log_weight)(few.sample(0, 200))
    assert log_weight(best) >= seen.max() - 1e-4
    assert log_weight(best) < seen.max() + 3


# -- discrete latents

Z_Y = np.array([2.5, -1.0, 0.9])


def mixture(infer):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer=infer)
            numpyro.sample("y", dist.Normal(mu + 2 * z, 1), obs=y)

    return model


def mixture_exact(y):
    mu = np.linspace(-6, 6, 4001)
    joint = np.stack([0.7 * norm(mu[:, None], 1).pdf(y), 0.3 * norm(mu[:, None] + 2, 1).pdf(y)])
    density = norm(0, 1).pdf(mu) * joint.sum(0).prod(-1)
    one = ((joint[1] / joint.sum(0)) * density[:, None]).sum(0) / density.sum()
    return one, np.log(density.sum() * (mu[1] - mu[0])), (mu * density).sum() / density.sum()


@pytest.mark.parametrize("enumerated", [True, False])
def test_probabilities_of_discrete_latents(enumerated):
    def guide(y):
        numpyro.sample("mu", dist.Normal(0.3, 0.9))
        if not enumerated:
            with numpyro.plate("rows", len(y)):
                numpyro.sample("z", dist.Bernoulli(0.5))

    model = mixture({"enumerate": "parallel"} if enumerated else {})
    found = Importance(model, guide, num_particles=60, num_replicates=40).run(0, None, Z_Y)
    one, log_evidence, mu = mixture_exact(Z_Y)
    table = found.probabilities("z")
    assert sorted(table) == [0, 1]
    np.testing.assert_allclose(table[0] + table[1], 1, rtol=1e-4)
    np.testing.assert_allclose(table[1], one, atol=0.05)
    np.testing.assert_allclose(found.mean("z"), table[1], rtol=1e-4)
    np.testing.assert_allclose(found.log_evidence, log_evidence, atol=0.05)
    np.testing.assert_allclose(found.mean("mu"), mu, atol=0.1)
    z = found.sample(1, 4000)["z"]
    assert set(np.unique(z)) == {0, 1}
    np.testing.assert_allclose(z.mean(0), one, atol=0.07)


def test_probabilities_of_discrete_vectors():
    y = np.array([0.2, 1.4, 0.9], np.float32)

    def model():
        z = numpyro.sample("z", dist.Bernoulli(jnp.full(3, 0.4)).to_event(1))
        numpyro.sample("y", dist.Normal(1.0 * z, 0.7).to_event(1), obs=y)

    def guide():
        numpyro.sample("z", dist.Bernoulli(jnp.array([0.2, 0.7, 0.5])).to_event(1))

    table = Importance(model, guide, num_particles=400, num_replicates=30).run(0, None).probabilities("z")
    density = np.stack([0.6 * norm(0, 0.7).pdf(y), 0.4 * norm(1, 0.7).pdf(y)])
    assert table[0].shape == (3,)
    np.testing.assert_allclose(table[0] + table[1], 1, rtol=1e-5)
    np.testing.assert_allclose(
        table[1], density[1] / density.sum(0), atol=0.02
    )  # five standard errors, and the seed is fixed


# -- prediction


def test_prediction_of_the_rows_in_sample(posterior):
    found = posterior.predictive(3, 4000)
    np.testing.assert_allclose(found["alpha"].mean(0), MEAN[1:], atol=0.15)
    np.testing.assert_allclose(found["gap"], found["alpha"] - found["mu"][:, None], rtol=1e-5, atol=1e-5)
    assert {n: v.shape for n, v in found.items()} == {
        "mu": (4000,), "alpha": (4000, J), "twice": (4000, J), "gap": (4000, J), "total": (4000,), "y": (4000, len(Y)),
    }  # fmt: skip
    np.testing.assert_allclose(found["y"].mean(0), MEAN[1 + COUNTY], atol=0.2)
    np.testing.assert_allclose(found["y"].std(0), np.sqrt(SD[1 + COUNTY] ** 2 + 1), rtol=0.08)


def test_prediction_of_new_rows(posterior):
    found = posterior.predictive(3, 4000, NEW_COUNTY)["y"]
    assert found.shape == (4000, 3)
    np.testing.assert_allclose(found.mean(0), MEAN[1 + NEW_COUNTY], atol=0.2)
    joint = COVARIANCE[np.ix_(1 + NEW_COUNTY, 1 + NEW_COUNTY)] + np.eye(3)
    np.testing.assert_allclose(np.cov(found.T), joint, atol=0.2)


def test_prediction_of_a_grown_plate(posterior):
    found = posterior.predictive(3, 4000, np.array([3, 0]), groups=4)
    assert found["alpha"].shape == (4000, 4)
    np.testing.assert_allclose(found["alpha"][:, :3].mean(0), MEAN[1:], atol=0.15)
    np.testing.assert_allclose(found["y"].mean(0), [MEAN[0], MEAN[1]], atol=0.25)
    np.testing.assert_allclose(found["y"].std(0), np.sqrt([SD[0] ** 2 + 2, SD[1] ** 2 + 1]), rtol=0.08)
    # a new county knows the old ones only through mu
    np.testing.assert_allclose(np.cov(found["mu"], found["alpha"][:, 3])[0, 1], SD[0] ** 2, atol=0.12)


def test_prediction_of_new_plate_elements(posterior):
    found = posterior.predictive(3, 4000, np.array([0, 1]), groups=2, new_plates=("counties",))
    assert found["alpha"].shape == (4000, 2)
    np.testing.assert_allclose(found["alpha"].mean(0), MEAN[0], atol=0.2)
    np.testing.assert_allclose(found["alpha"].std(0), np.sqrt(SD[0] ** 2 + 1), rtol=0.08)
    np.testing.assert_allclose(np.cov(found["alpha"].T)[0, 1], SD[0] ** 2, atol=0.15)
    named = posterior.predictive(3, 4000, np.array([0, 1]), groups=2, new_plates="counties")
    np.testing.assert_array_equal(named["alpha"], found["alpha"])


def test_log_predictive_density(posterior):
    held_out = posterior.log_predictive(4, 4000, NEW_COUNTY, NEW_Y)
    at = 1 + NEW_COUNTY
    joint = multivariate_normal(MEAN[at], COVARIANCE[np.ix_(at, at)] + np.eye(3)).logpdf(NEW_Y)
    single = norm(MEAN[at], np.sqrt(SD[at] ** 2 + 1)).logpdf(NEW_Y)
    assert held_out.pointwise["y"].shape == (3,)
    np.testing.assert_allclose(held_out.pointwise["y"], single, atol=0.12)
    np.testing.assert_allclose(held_out.joint, joint, atol=0.2)
    np.testing.assert_allclose(held_out.total, single.sum(), atol=0.25)


@pytest.mark.parametrize("count", [30, 200, 250])
def test_log_predictive_density_is_the_same_in_batches(posterior, monkeypatch, count):
    whole = posterior.log_predictive(4, count, NEW_COUNTY, NEW_Y)
    monkeypatch.setattr("kayn.posterior.predict.BATCH", 60)
    parts = posterior.log_predictive(4, count, NEW_COUNTY, NEW_Y)
    np.testing.assert_allclose(parts.joint, whole.joint, rtol=1e-5)
    np.testing.assert_allclose(parts.pointwise["y"], whole.pointwise["y"], rtol=1e-5)


def rows_model(x, count):
    with numpyro.plate("rows", count):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.3), obs=x)


def test_joint_densities_factorise_where_the_model_does():
    """Independent latents, x ~ N(z, 0.3), 300 rows; closed form. Draws would be nats too low."""
    x = np.random.default_rng(0).normal(size=300)
    found = kayn.fit(rows_model, args=(x, 300), num_particles=30, progress=False).posterior()
    joint = found.log_predictive(0, 500, x + 0.1, 300)
    variance, mean = 0.09 / 1.09, x / 1.09
    np.testing.assert_allclose(joint.joint, norm.logpdf(x + 0.1, mean, (variance + 0.09) ** 0.5).sum(), atol=0.5)
    assert joint.joint_ess is None


def test_joint_densities_that_rest_on_few_draws_are_reported():
    """A new element of every plate is drawn from the model, by draws only."""
    x = np.random.default_rng(0).normal(size=300)
    found = kayn.fit(rows_model, args=(x, 300), num_particles=10, progress=False).posterior()
    with pytest.warns(PoorFitWarning, match=r"joint log predictive density rests on [\d.]+ of 500 draws"):
        poor = found.log_predictive(0, 500, x, 300, new_plates=("rows",))
    assert poor.joint_ess < 10
    assert poor.joint < poor.total - 1.0


def test_joint_densities_are_those_of_all_combinations():
    """Ragged groups, two replicates of three particles: 100,000 draws have the contraction's value within five standard
    errors."""

    def model(group, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        with numpyro.plate("groups", 4):
            a = numpyro.sample("a", dist.Normal(mu, sd))
            on = numpyro.sample("on", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        with numpyro.plate("rows", group.shape[0]):
            numpyro.sample("y", dist.Normal(a[group] + on[group], 1.0), obs=y)

    rng = np.random.default_rng(1)
    group, new = np.array([0, 0, 1, 2, 2, 2]), np.array([3, 0, 2, 2])
    posterior = kayn.fit(model, args=(group, rng.normal(size=6)), num_particles=3, progress=False).posterior(
        num_replicates=2
    )
    y = rng.normal(size=4)
    found = posterior.log_predictive(0, 10, new, y)
    assert found.joint_ess is None
    draws = posterior.sample(3, 100_000)
    density = np.exp(norm.logpdf(y, np.asarray(draws["a"])[:, new] + np.asarray(draws["on"])[:, new]).sum(1))
    assert abs(density.mean() - np.exp(found.joint)) < 5 * density.std() / 100_000**0.5


def test_held_out_data_are_weighed_in_the_forms_of_training_data(monkeypatch):
    """By the terms of their predictor, where that is cheaper, as row by row."""

    def model(group, other, x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", 3):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("others", 2):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(group)):
            numpyro.sample("y", dist.Normal(a[group] + b[other] + slope * x, 1.0), obs=y)

    rng = np.random.default_rng(1)
    group, other, x, y = rng.integers(0, 3, 8), rng.integers(0, 2, 8), *rng.normal(size=(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFitWarning)
        posterior = Importance(model, num_particles=8).run(0, {}, group, other, x, y)
    new = (group[:4], other[::-1][:4], *rng.normal(size=(2, 4)))
    by_rows = posterior.log_predictive(0, 10, *new).joint
    taken = []

    def counted(task):
        groups = choose(task)
        taken.extend([task.name] * (groups is not None))
        return groups

    choose = by_terms.choose
    monkeypatch.setattr(by_terms, "MIN_WORK", 1)
    monkeypatch.setattr(by_terms, "choose", counted)
    by_their_terms = posterior.log_predictive(0, 10, *new).joint
    assert len(set(taken)) == 2, taken  # training and held-out data
    np.testing.assert_allclose(by_their_terms, by_rows, rtol=1e-4)


def test_factors_and_scales_of_the_model_do_not_count_as_held_out_data():
    """A factor over the latent is part of the prior: the joint density is that of the posterior's draws of the same
    particles."""

    def model(x):
        with numpyro.plate("groups", 3):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            numpyro.factor("penalty", -2.0 * a**2)
            with numpyro.handlers.scale(scale=2.0):
                numpyro.sample("x", dist.Normal(a, 1.0), obs=x)

    x, new = np.array([0.3, 1.0, -0.5]), np.array([0.6, 0.2, 0.1])
    posterior = kayn.fit(model, args=(x,), num_particles=5, progress=False).posterior(num_replicates=2)
    found = posterior.log_predictive(0, 10, new)
    assert found.joint_ess is None
    density = np.exp(norm.logpdf(new, np.asarray(posterior.sample(3, 100_000)["a"])).sum(1))
    assert abs(density.mean() - np.exp(found.joint)) < 5 * density.std() / 100_000**0.5


def test_joint_densities_of_rows_that_tie_groups_together_come_from_draws():
    def model(x, together):
        with numpyro.plate("groups", 3):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            if not together:
                numpyro.sample("x", dist.Normal(a, 1.0), obs=x)
        if together:
            numpyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)

    found = kayn.fit(model, args=(np.array([0.3, 1.0, -0.5]), False), num_particles=10, progress=False).posterior()
    assert found.log_predictive(0, 200, 0.4, True).joint_ess > 10


def test_log_predictive_density_of_new_elements(posterior):
    new = posterior.log_predictive(4, 4000, np.array([0, 0, 1]), NEW_Y, groups=2, new_plates=("counties",))
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    covariance = SD[0] ** 2 + same + np.eye(3)
    np.testing.assert_allclose(new.joint, multivariate_normal(np.full(3, MEAN[0]), covariance).logpdf(NEW_Y), atol=0.25)
    single = norm(MEAN[0], np.sqrt(SD[0] ** 2 + 2)).logpdf(NEW_Y)
    np.testing.assert_allclose(new.pointwise["y"], single, atol=0.15)


def test_log_likelihood(posterior):
    found = posterior.log_likelihood(5, 500)
    assert list(found) == ["y"]
    assert found["y"].shape == (500, len(Y))
    assert (found["y"] <= norm.logpdf(0) + 1e-5).all()
    lppd = jax.nn.logsumexp(found["y"], axis=0) - np.log(500)
    np.testing.assert_allclose(lppd, norm(MEAN[1 + COUNTY], np.sqrt(SD[1 + COUNTY] ** 2 + 1)).logpdf(Y), atol=0.2)


# -- export


def test_datatree(posterior):
    names = ["north", "middle", "south"]
    tree = posterior.to_datatree(0, 400, coords={"counties": names})
    assert set(tree.children) >= {"posterior", "log_likelihood", "observed_data"}
    assert tree["posterior"]["alpha"].dims == ("chain", "draw", "counties")
    assert tree["posterior"]["gap"].dims == ("chain", "draw", "counties")
    assert tree["posterior"]["mu"].shape == tree["posterior"]["total"].shape == (4, 100)
    assert list(tree["posterior"].coords["counties"].values) == names
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(tree["observed_data"]["y"], Y, rtol=1e-6)
    np.testing.assert_allclose(tree["posterior"].attrs["log_evidence"], posterior.log_evidence, rtol=1e-6)
    south = tree["posterior"]["alpha"].sel(counties="south")
    np.testing.assert_allclose(south.mean(), MEAN[3], atol=0.3)


def test_arviz_reads_the_datatree(posterior):
    arviz = pytest.importorskip("arviz")
    tree = posterior.to_datatree(0, 500, coords={"counties": ["north", "middle", "south"]})
    # before its version 1, ArviZ had a container of its own
    data = arviz.InferenceData.from_datatree(tree) if arviz.__version__.startswith("0.") else tree
    table = arviz.summary(data, var_names=["mu", "alpha"], round_to="none")
    assert list(table.index) == ["mu", "alpha[north]", "alpha[middle]", "alpha[south]"]
    np.testing.assert_allclose(table["mean"].astype(float), MEAN, atol=0.25)
    loo = arviz.loo(data)
    exact = 0.0
    for i in range(len(Y)):
        rest = np.arange(len(Y)) != i
        mean, covariance, _ = gaussian(COUNTY[rest], Y[rest])
        exact += norm(mean[1 + COUNTY[i]], np.sqrt(covariance[1 + COUNTY[i], 1 + COUNTY[i]] + 1)).logpdf(Y[i])
    np.testing.assert_allclose(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo, exact, atol=0.6)


def test_summary(posterior):
    summary = posterior.summary()
    assert [r.name for r in summary.rows] == ["mu", *(f"alpha[{j}]" for j in range(J))]
    np.testing.assert_allclose([r.mean for r in summary.rows], MEAN, atol=0.1)
    low, middle, high = np.array([r.quantiles for r in summary.rows]).T
    np.testing.assert_allclose(middle, MEAN, atol=0.15)
    np.testing.assert_allclose(high - low, 2 * 1.645 * SD, rtol=0.15)
    assert "log evidence" in str(summary)
    assert "3 more elements" not in str(summary)
    assert "(2 more elements of alpha)" in str(posterior.summary(max_rows=1))


# -- transformations, precision, subsampling


def test_run_under_jit_and_vmap():
    importance = Importance(hierarchy, mean_field(), num_particles=20, num_replicates=2)

    def run(key):
        found = importance.run(key, None, COUNTY, Y)
        return found.log_evidence, found.mean("alpha"), found.std("mu"), found.sample(key, 5)["alpha"]

    keys = jax.random.split(jax.random.key(0), 3)
    eager = importance.run(keys[1], None, COUNTY, Y)
    many = jax.jit(jax.vmap(run))(keys)
    assert [x.shape for x in many] == [(3,), (3, J), (3,), (3, 5, J)]
    expected = eager.log_evidence, eager.mean("alpha"), eager.std("mu"), eager.sample(keys[1], 5)["alpha"]
    for batched, single in zip(many, expected, strict=True):
        np.testing.assert_allclose(batched[1], single, rtol=1e-3, atol=1e-4)
    assert len(np.unique(np.asarray(many[0]))) == 3


def test_a_posterior_passes_through_jit():
    importance = Importance(hierarchy, mean_field(), num_particles=20)
    found = jax.jit(lambda key: importance.run(key, None, COUNTY, Y))(jax.random.key(4))
    plain = importance.run(4, None, COUNTY, Y)
    np.testing.assert_allclose(found.mean("alpha"), plain.mean("alpha"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_evidence, plain.log_evidence, rtol=1e-5)


def test_data_as_jit_arguments():
    importance = Importance(hierarchy, mean_field(), num_particles=20)
    run = jax.jit(lambda county, y: importance.run(0, None, county, y).log_evidence)
    plain = importance.run(0, None, COUNTY, Y).log_evidence
    np.testing.assert_allclose(run(COUNTY, Y), plain, rtol=1e-5)
    assert abs(run(COUNTY[::-1], Y[::-1]) - plain) < 1e-4
    assert abs(run(COUNTY[::-1], Y) - plain) > 0.1


def test_float64(x64):
    found = Importance(hierarchy, mean_field(), num_particles=50, num_replicates=2)
    found = found.run(0, None, COUNTY.copy(), Y.copy())
    assert found.log_evidences.dtype == found.weights("alpha").dtype == found.mean("mu").dtype == jnp.float64
    np.testing.assert_allclose(found.weights("alpha").sum(0), 1, rtol=1e-12)


def test_no_nan_on_the_way():
    """With `jax_debug_nans` any NaN in any intermediate is an error;
    a particle of -inf likelihood must not make one."""

    def model(y):
        u = numpyro.sample("u", dist.HalfNormal(1.0))
        numpyro.factor("cut", jnp.where(u < 0.5, -jnp.inf, 0.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(u, 1), obs=y)

    with jax.debug_nans(True):
        found = Importance(model, num_particles=30, num_replicates=2).run(0, None, Y)
        values = found.log_evidence, found.mean("u"), found.std("u"), found.sample(0, 4)["u"], found.mode()["u"]
    assert all(np.isfinite(v).all() for v in values)
    assert (values[3] >= 0.5).all()


def test_subsampled_plates():
    """The data of a subsample count as often as the plate is larger: a tempered likelihood, known in closed form."""
    y = np.linspace(-1, 2, 8)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 8, subsample_size=4) as rows:
            numpyro.sample("y", dist.Normal(mu, 1), obs=y[rows])

    def guide(y):
        numpyro.sample("mu", dist.Normal(y.mean(), 0.5))

    found = Importance(model, guide, num_particles=400, num_replicates=3).run(0, None, jnp.asarray(y))
    rows = np.asarray(found.draws.subsample["rows"])
    assert rows.shape == (3, 4)
    assert all(len(set(r)) == 4 for r in rows)
    mu = np.linspace(-5, 5, 4001)
    for chosen, log_z in zip(rows, found.log_evidences, strict=True):
        log_joint = norm.logpdf(mu) + 2 * norm(mu[:, None], 1).logpdf(y[chosen]).sum(1)
        exact = np.log(np.exp(log_joint).sum() * (mu[1] - mu[0]))
        assert abs(log_z - exact) < 0.2
    np.testing.assert_allclose(found.weights("mu").sum(), 1, rtol=1e-5)


def test_fitted_posterior_agrees():
    """The default guide in unconstrained space gets there too, without a hand-written guide."""
    fitted = kayn.fit(hierarchy, (COUNTY, Y), num_particles=30, num_steps=96, progress=False)
    found = fitted.posterior()
    assert abs(found.log_evidence - LOG_EVIDENCE) < 0.15
    np.testing.assert_allclose([found.mean("mu"), *found.mean("alpha")], MEAN, atol=0.12)
    np.testing.assert_allclose([found.std("mu"), *found.std("alpha")], SD, rtol=0.12)


def test_a_warning_names_the_line_that_mixes_elements_and_a_remedy():
    """Rows that read sums of sums of running sums: all groups share one particle, and the weights show it."""
    group = np.repeat(np.arange(30), 4)
    y = (np.random.default_rng(0).random(group.size) < 0.3).astype(int)

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.5))
        with numpyro.plate("groups", 30):
            z = numpyro.sample("z", dist.Normal(mean, 1.0))
        logits = jnp.cumsum(jnp.cumsum(jnp.cumsum(z)))[group]
        with numpyro.plate("rows", group.size):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    with pytest.warns(kayn.PoorFitWarning) as told:
        kayn.Importance(model, num_particles=10, num_replicates=2).run(0, None, y)
    (about_z,) = [str(w.message) for w in told if str(w.message).startswith("latent 'z'")]
    line = model.__code__.co_firstlineno + 4
    for part in ("'z' over groups", f"test_posterior.py line {line}: logits = ", "z[group]"):
        assert part in about_z
