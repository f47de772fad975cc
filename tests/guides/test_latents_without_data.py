"""Latents that no data lie below follow their prior: against closed forms."""

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import kayn
from kayn import FactorisedGuide
from kayn.axes.request import make_request
from kayn.errors import DataWarning, PoorFitWarning
from kayn.evidence.dataless import is_prior, without_data
from kayn.evidence.problem import build_problem


def funnel(y=None, masked=False):
    width = numpyro.sample("width", dist.Normal(0, 3))
    with numpyro.plate("dims", 4):
        x = numpyro.sample("x", dist.Normal(0, jnp.exp(width / 2)))
        if masked:
            with handlers.mask(mask=jnp.zeros(4, bool)):
                numpyro.sample("y", dist.Normal(x, 1), obs=y)


@pytest.mark.parametrize("masked", [False, True])
def test_a_funnel_without_data_is_its_prior(masked):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PoorFitWarning)
        warnings.simplefilter("ignore", DataWarning)
        fit = kayn.fit(funnel, (np.zeros(4), True) if masked else (), progress=False, num_steps=24)
        posterior = fit.posterior(num_replicates=100)
    # z-scores within 4: 6e-5 a comparison; sds of 3,000 correlated draws are known to a few per cent
    assert abs(posterior.log_evidence) < 4 * posterior.log_evidence_error + 1e-3
    assert abs(posterior.mean("width")) < 4 * 3 / 3000**0.5
    assert posterior.std("width") == pytest.approx(3, rel=0.1)
    # the median of |x|, from 10^6 draws in NumPy
    draws = posterior.sample(1, 20_000)
    assert np.median(np.abs(draws["x"])) == pytest.approx(0.576, rel=0.05)


def grouped(y):
    """Rows of one group are data; another group's level, and the width of its prior, have none."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    width = numpyro.sample("width", dist.Normal(0, 2))
    new = numpyro.sample("new", dist.Normal(mu, jnp.exp(width / 2)))
    numpyro.deterministic("double", 2 * new)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_a_part_without_data_leaves_the_rest_as_it_is():
    y = np.array([0.4, 1.3, 2.2])
    fit = kayn.fit(grouped, (y,), progress=False)
    posterior = fit.posterior(num_replicates=200, escalate=False)
    precision = 1 + len(y)
    mean, variance = y.sum() / precision, 1 / precision
    covariance = np.eye(3) + 1
    exact = dist.MultivariateNormal(jnp.zeros(3), jnp.asarray(covariance)).log_prob(y)
    assert posterior.log_evidence == pytest.approx(float(exact), abs=4 * float(posterior.log_evidence_error) + 0.01)
    assert posterior.mean("mu") == pytest.approx(mean, abs=0.02)
    assert posterior.std("mu") == pytest.approx(variance**0.5, rel=0.05)
    assert posterior.mean("width") == pytest.approx(0, abs=4 * 2 / 6000**0.5)
    assert posterior.std("width") == pytest.approx(2, rel=0.05)
    # E e^width = e^2, of few large values: half of what its digits may be off
    assert posterior.std("new") == pytest.approx((variance + np.exp(2)) ** 0.5, rel=0.15)
    assert posterior.mean("double") == pytest.approx(2 * mean, abs=0.3)
    assert fit.guide.below.names == ("width", "new")
    assert set(fit.params) == {"kayn:mu:loc", "kayn:mu:scale"}


def problem_of(model, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        guide = FactorisedGuide.from_model(model, args)
        return build_problem(model, guide, args, {}, guide.start, make_request(4, "parallel", (), None))


def named(inner):
    return lambda: inner(numpyro.sample("top", dist.Normal(0, 1)))


def seen(top):
    numpyro.sample("z", dist.Normal(top, 1))
    numpyro.sample("y", dist.Normal(top, 1), obs=0.3)


def scaled(top):
    with handlers.scale(scale=2.0):
        numpyro.sample("z", dist.Normal(top, 1))


def masked(top):
    with handlers.mask(mask=jnp.array(False)):
        numpyro.sample("z", dist.Normal(top, 1))


def weighed(top):
    z = numpyro.sample("z", dist.Normal(top, 1))
    numpyro.factor("pull", -(z**2))


def below_states(top):
    state = numpyro.sample("state", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    numpyro.sample("z", dist.Normal(top + state, 1))


CASES = {seen: ("z",), scaled: (), masked: (), weighed: (), below_states: ()}


@pytest.mark.parametrize("inner", CASES, ids=lambda f: f.__name__)
def test_what_counts_as_without_data(inner):
    problem = problem_of(named(inner))
    assert without_data(problem, ["top", "z"]) == CASES[inner]
    assert not is_prior(problem)
    assert is_prior(problem_of(funnel))


def rows_of_groups(group):
    with numpyro.plate("groups", 3):
        level = numpyro.sample("level", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(level, 1), obs=jnp.arange(3.0))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("new", dist.Normal(level[group], 1))


def test_latents_keep_particles_of_their_own():
    qem = kayn.QEM(rows_of_groups, num_particles=5)
    qem.init(0, np.array([0, 2, 1, 1]))
    scopes = {a.latents: a.scope for a in qem.problem.layout.axes}
    assert scopes == {("level",): ("groups",), ("new",): ("rows",)}


def test_a_guide_that_does_not_reach_the_prior_is_named():
    with pytest.warns(DataWarning):
        fit = kayn.fit(funnel, method="rws", num_steps=24, progress=False)
    with pytest.warns(PoorFitWarning, match="log evidence is 0.*'width', 'x'"):
        fit.posterior(num_replicates=50, escalate=False)


def test_elements_without_data_beside_others_are_named():
    """One of nine elements has data: their common width is missed at its wide end, though most weights are even."""

    def model():
        width = numpyro.sample("width", dist.Normal(0, 3))
        with numpyro.plate("dims", 9):
            x = numpyro.sample("x", dist.Normal(0, jnp.exp(width / 2)))
        with numpyro.plate("rows", 1):
            numpyro.sample("y", dist.Normal(x[np.array([0])], 1.0), obs=0.3)

    fit = kayn.fit(model, num_particles=30, progress=False)
    with pytest.warns(PoorFitWarning, match="'width'.*(k-hat|wider guide)"):
        posterior = fit.posterior(num_replicates=200, escalate=False)
    # by quadrature: -1.40
    assert posterior.mean("width") < -1.7, "it comes out right: the warning can go"


class Halved(dist.Normal):
    """Half the density of a law that is narrower than its draws."""

    def log_prob(self, value):
        return dist.Normal(self.loc, self.scale / 2).log_prob(value) - np.log(2)


@pytest.mark.parametrize("data", [False, True])
def test_a_distribution_of_a_users_own_is_its_log_density(data):
    def model():
        z = numpyro.sample("z", Halved(0.0, 1.0))
        numpyro.sample("w", dist.Normal(z, 1))
        if data:
            numpyro.sample("y", dist.Normal(0, 1), obs=0.0)

    assert without_data(problem_of(model), ["z", "w"]) == ("w",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        posterior = kayn.fit(model, progress=False).posterior(num_replicates=200)
    exact = -np.log(2) - data * 0.5 * np.log(2 * np.pi)
    # z-scores within 4: 6e-5 a comparison; 6,000 draws
    assert abs(posterior.log_evidence - exact) < 4 * posterior.log_evidence_error + 1e-3
    assert posterior.std("z") == pytest.approx(0.5, rel=4 / 12_000**0.5)
    assert posterior.std("w") == pytest.approx(1.25**0.5, rel=0.05)
