"""Guides of whole numbers: a Normal in unconstrained space, rounded down."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import kayn
from kayn.guides.whole import Line, RoundedNormal, Whole

S = numpyro.sample
LINES = {
    "counts": Line(0, math.inf),
    "from three on": Line(3, math.inf),
    "between": Line(2, 9),
    "all": Line(-math.inf, math.inf),
}
PLACES = {
    "counts": np.arange(60),
    "from three on": np.arange(3, 60),
    "between": np.arange(2, 10),
    "all": np.arange(-40, 41),
}


@pytest.mark.parametrize("name", LINES)
def test_probabilities_are_those_of_intervals(name):
    line, at = LINES[name], PLACES[name]
    loc, scale = 0.4, 0.7

    def u(x):
        with np.errstate(divide="ignore"):
            return {
                "counts": lambda: np.log(x),
                "from three on": lambda: np.log(x - 3.0),
                "between": lambda: np.log(x - 2.0) - np.log(10.0 - x),
                "all": lambda: x,
            }[name]()

    want = stats.norm.cdf(u(at + 1.0), loc, scale) - stats.norm.cdf(u(at * 1.0), loc, scale)
    found = np.exp(RoundedNormal(loc, scale, line).log_prob(at))
    np.testing.assert_allclose(found, want, atol=2e-6)
    assert found.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", LINES)
def test_a_number_lies_in_its_own_interval(name):
    line, at = LINES[name], jnp.asarray(PLACES[name], float)
    np.testing.assert_array_equal(line.number(line.middle(at)[0]), PLACES[name])


@pytest.mark.parametrize("name", LINES)
def test_probabilities_have_finite_gradients(name):
    def total(loc, scale):
        return RoundedNormal(loc, scale, LINES[name]).log_prob(PLACES[name]).sum()

    assert np.all(np.isfinite(jax.grad(total, (0, 1))(0.4, 0.7)))


def test_large_numbers_keep_their_digits():
    """The interval of a number around 100,000 is a millionth of its place on the line."""
    at, scale = 100_000, 0.01
    found = RoundedNormal(math.log(at), scale, Line(0, math.inf)).log_prob(at)
    assert found == pytest.approx(-math.log(at * scale * math.sqrt(2 * math.pi)), abs=1e-3)


def test_a_latent_that_is_certain_keeps_its_neighbours():
    family = Whole()
    values, weights = jnp.full((5, 2), jnp.array([0, 7])), jnp.full((5, 2), 0.2)
    params = family.from_moments(family.expect(values, weights))
    near = np.exp(family.distribution(params).log_prob(jnp.array([[0, 6], [1, 7], [2, 8]])))
    assert near.min() > 0.005


def counted(y):
    rate = S("rate", dist.Gamma(4.0, 0.5))
    with numpyro.plate("places", 2):
        n = S("n", dist.Poisson(rate))
        S("y", dist.Binomial(n, 0.5), obs=y)


def thinned(y):
    """The same with the counts summed out: the binomial share of a Poisson count is Poisson."""
    grid = np.linspace(1e-3, 60, 20_001)
    log_p = stats.gamma.logpdf(grid, 4, scale=2) + stats.poisson.logpmf(np.asarray(y)[:, None], grid / 2).sum(0)
    weight = np.exp(log_p - log_p.max())
    area = np.trapezoid(weight, grid)
    rate = np.trapezoid(weight * grid, grid) / area
    return log_p.max() + np.log(area), rate


def test_counts_without_end_are_answered():
    """Z-scores within 4 of their own standard errors: 1e-4 in all."""
    y = jnp.array([3, 8])
    log_z, rate = thinned(y)
    fit = kayn.fit(counted, (y,), progress=False)
    posterior = fit.posterior(num_replicates=200)
    assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_error + 1e-3
    assert posterior.log_evidence_error < 0.01
    assert posterior.mean("rate") == pytest.approx(rate, rel=0.01)
    # given the rate, what was not seen is Poisson with half of it
    np.testing.assert_allclose(posterior.mean("n"), np.asarray(y) + rate / 2, rtol=0.01)
    shares = posterior.probabilities("n")
    np.testing.assert_allclose(sum(shares.values()), 1, rtol=1e-4)
    assert all(share[0] == 0 for value, share in shares.items() if value < 3)
    draws = posterior.sample(1, 50)["n"]
    assert draws.dtype.kind == "i"
    assert np.all(draws >= y)
    assert posterior.to_datatree(2, 20).posterior["n"].shape[-1] == 2
    assert posterior.predictive(3, 10)["y"].shape == (10, 2)
