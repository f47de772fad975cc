"""Units: shifting or rescaling a latent together with its data changes the units of the answer and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import kayn
from kayn.guides.factorised import FactorisedGuide

S = numpyro.sample
UNITS = [(0.0, 1e-8), (0.0, 1e8), (1e4, 1.0), (-3e4, 10.0)]
"""Shift and scale; float32 tells values apart down to a few millionths of the shift."""


def normal(shift, scale):
    z = S("z", dist.Normal(shift, scale))
    S("x", dist.Normal(z, 0.5 * scale), obs=shift + 0.7 * scale)


def lognormal(shift, scale):
    z = S("z", dist.LogNormal(jnp.log(scale), 1.0))
    S("x", dist.LogNormal(jnp.log(z), 0.5), obs=1.5 * scale)


def cauchy(shift, scale):
    z = S("z", dist.HalfCauchy(scale))
    with numpyro.plate("rows", 4):
        S("x", dist.Normal(shift, z), obs=shift + scale * jnp.array([-1.0, 0.4, 2.0, -0.3]))


def interval(shift, scale):
    z = S("z", dist.Uniform(shift - scale, shift + 2 * scale))
    S("x", dist.Normal(z, 0.4 * scale), obs=shift + 0.7 * scale)


def vector(shift, scale):
    covariance = scale**2 * jnp.array([[1.0, 0.6], [0.6, 1.0]])
    z = S("z", dist.MultivariateNormal(jnp.full(2, shift), covariance_matrix=covariance))
    S("x", dist.Normal(z, 0.5 * scale).to_event(1), obs=shift + scale * jnp.array([0.7, -0.2]))


MODELS = {"normal": normal, "lognormal": lognormal, "cauchy": cauchy, "interval": interval, "vector": vector}
DATA = {"cauchy": 4, "vector": 2}


def answers(name, shift, scale):
    """Log evidence up to the units of the data, mean and sd in units of `scale` from `shift`, and the flag."""
    fit = kayn.fit(MODELS[name], (shift, scale), progress=False)
    posterior = fit.posterior()
    at = 0.0 if name in ("lognormal", "cauchy") else shift
    mean = (np.asarray(posterior.mean("z"), np.float64) - at) / scale
    log_z = float(posterior.log_evidence) + DATA.get(name, 1) * np.log(scale)
    return log_z, mean, np.asarray(posterior.std("z"), np.float64) / scale, fit.converged


@pytest.fixture(scope="module")
def in_plain_units():
    return {name: answers(name, 0.0, 1.0) for name in MODELS}


@pytest.mark.parametrize(("shift", "scale"), UNITS)
@pytest.mark.parametrize("name", MODELS)
def test_units_change_nothing_else(name, shift, scale, in_plain_units):
    """The same key draws the same particles in other units, so answers agree up to rounding,
    which shifts make coarser."""
    if shift and name in ("lognormal", "cauchy"):
        pytest.skip("a positive latent has no other origin")
    log_z, mean, sd, converged = answers(name, shift, scale)
    expected = in_plain_units[name]
    tolerance = 2e-3 + 3e-7 * abs(shift) / scale
    np.testing.assert_allclose(log_z, expected[0], atol=5 * tolerance)
    np.testing.assert_allclose(mean, expected[1], atol=tolerance * np.max(expected[2]))
    np.testing.assert_allclose(sd, expected[2], rtol=2 * tolerance)
    assert converged == expected[3]


@pytest.mark.parametrize(
    ("centre", "scale", "at", "noise"), [(0.0, 1e6, 5.0, 0.1), (0.0, 1e3, 5.0, 0.1), (0.0, 1e6, 7e5, 1e3)]
)
def test_vague_priors(centre, scale, at, noise):
    """A prior far wider than the posterior: found both where users mean "near zero" and where they mean the prior's
    extent."""

    def model():
        z = S("z", dist.Normal(centre, scale))
        S("x", dist.Normal(z, noise), obs=at)

    posterior = kayn.fit(model, progress=False).posterior()
    precision = scale**-2 + noise**-2
    mean = (centre * scale**-2 + at * noise**-2) / precision
    assert abs(float(posterior.mean("z")) - mean) < 0.05 * precision**-0.5
    assert abs(float(posterior.std("z")) * precision**0.5 - 1) < 0.05
    exact = stats.norm(centre, np.hypot(scale, noise)).logpdf(at)
    assert abs(float(posterior.log_evidence) - exact) < 0.05


def test_steps_that_chose_a_start_are_not_taken_again():
    """They are the first ones of the fit, bit for bit."""
    qem = kayn.QEM(narrow, num_particles=10)
    begun = qem.init(0, 1e3, 0.1, 5.0)
    known, log_z = qem.advance(begun, 8)
    again, found = qem.advance(jax.device_put(begun), 8)
    assert qem.advance(begun, 8)[0] is known
    assert again is not known
    np.testing.assert_array_equal(found, log_z)
    for name, moments in again.moments.items():
        jax.tree.map(np.testing.assert_array_equal, moments, known.moments[name])


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_importance_starts_in_the_priors_units(scale):
    """The default guide of a model that is not fitted: even draws make the evidence exact to a few hundredths."""
    found = kayn.Importance(normal, None, 300).run(0, None, 1e3 * scale, scale).log_evidence
    np.testing.assert_allclose(found, stats.norm(0, 1.25**0.5).logpdf(0.7) - np.log(scale), atol=0.02)


@pytest.mark.parametrize("prior", [dist.InverseGamma(0.001, 0.001), dist.LogNormal(0.0, 10.0), dist.HalfCauchy(25.0)])
def test_heavy_tails_start_where_floats_are(prior):
    guide = FactorisedGuide.from_model(lambda: S("z", prior))
    (site,) = guide.sites
    assert abs(float(site.start["loc"])) <= 10
    assert 0.1 <= float(site.start["scale"]) <= 3


def narrow(sd, noise, at):
    z = S("z", dist.Normal(0.0, sd))
    S("x", dist.Normal(z, noise), obs=at)


def test_what_was_not_found_has_not_converged():
    """A posterior of a hundred-millionth of the prior's width, far from zero: the log evidence looks flat,
    but one particle has all the weight."""
    fit = kayn.fit(narrow, (1e6, 0.01, 7e5), progress=False)
    with pytest.warns(kayn.PoorFitWarning, match="'z'"):
        sd = float(fit.posterior(escalate=False).std("z"))
    assert not fit.converged or abs(sd - 0.01) < 0.001


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_what_a_thousand_steps_did_not_find_the_guide_fitted_again_does():
    """A ten-millionth of the prior's width, to two hundredths: four errors of 32 times 28 effective draws are nine."""
    fit = kayn.fit(narrow, (1e6, 0.1, 7e5), progress=False)
    assert not fit.converged
    assert abs(float(fit.posterior().std("z")) / 0.1 - 1) < 0.02


@pytest.mark.parametrize(
    ("sd", "noise", "at"), [(1.0, 1e-2, 0.3), (1.0, 1e-3, 2.5), (1e6, 1e3, 2.5e6), (1.0, 1e-4, 0.3), (1e6, 0.1, 5.0)]
)
def test_posteriors_far_narrower_than_the_prior(sd, noise, at):
    fit = kayn.fit(narrow, (sd, noise, at), progress=False)
    posterior = fit.posterior()
    assert fit.converged
    assert abs(float(posterior.mean("z")) - at) < 0.05 * noise
    assert abs(float(posterior.std("z")) / noise - 1) < 0.05
    assert fit.params["kayn:z:scale"] < 3 * noise, "the guide sees the posterior with a few particles only"


def test_means_far_from_zero_are_exact_to_the_last_digit():
    """Means of latents, and of deterministic sites, beside sums in float64."""

    def model():
        z = S("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.deterministic("far", z + 1e4)
        S("x", dist.Normal(z, 1.0).to_event(1), obs=jnp.array([0.7, -0.2]))

    posterior = kayn.Importance(model, None, 300, num_replicates=8).run(0, None)
    close = np.asarray(posterior.mean("z"))
    assert (abs(np.asarray(posterior.mean("far")) - 1e4 - close) < 1.5e-3).all()  # float32 next to 1e4
    np.testing.assert_allclose(posterior.std("far"), posterior.std("z"), rtol=1e-3)
