"""Quantiles and shortest intervals: of weighted values against enumeration, of a posterior against closed forms."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import kayn
from kayn import QueryError
from kayn.posterior.spread import shortest_interval, weighted_quantiles

Y = np.array([0.4, -0.3, 1.2])


@pytest.mark.parametrize("seed", range(5))
def test_weighted_values_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=9), rng.dirichlet(np.ones(9))
    levels = np.array([0.0, 0.1, 0.5, 0.97])
    least = [min(v for v in values if weights[values <= v].sum() >= q) for q in levels]
    np.testing.assert_array_equal(weighted_quantiles(values, weights, levels), least)
    pairs = [*combinations(np.sort(values), 2), *((v, v) for v in values)]
    enough = [(b - a, a, b) for a, b in pairs if weights[(values >= a) & (values <= b)].sum() >= 0.6]
    np.testing.assert_array_equal(shortest_interval(values, weights, 0.6), min(enough)[1:])


def test_equal_weights_may_be_left_to_the_last_by_rounding():
    values, weights = np.arange(10.0), np.full(10, 0.1, np.float32)
    np.testing.assert_array_equal(shortest_interval(values, weights, 0.5), [0, 4])
    np.testing.assert_array_equal(shortest_interval(values, weights, 0.999), [0, 9])


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)
    numpyro.sample("seen", dist.Normal(mu, 1), obs=jnp.array(1.0))


def guide(y):
    numpyro.sample("mu", dist.Normal(0.5, 0.5**0.5))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("a", dist.Normal(y / 2, 0.5**0.5))


@pytest.fixture(scope="module")
def posterior():
    """With the exact posterior as guide, so that all weights are equal; 1000 particles."""
    return kayn.Importance(model, guide, 50, num_replicates=20).run(0, None, Y)


def test_answers_have_shapes_and_are_those_of_the_normal(posterior):
    """Quantiles of 1000 independent draws have a standard error of 0.04 sd at 5%: within 0.25, six of them."""
    sd = 0.5**0.5
    levels = [0.05, 0.5, 0.95]
    found = posterior.quantile("a", levels)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found, Y / 2 + sd * norm.ppf(levels)[:, None], atol=0.2)
    assert posterior.quantile("mu", 0.5).shape == ()
    interval = posterior.hdi("a", 0.9)
    assert interval.shape == (3, 2)
    np.testing.assert_allclose(interval, Y[:, None] / 2 + 1.645 * sd * np.array([-1, 1]), atol=0.3)
    np.testing.assert_allclose(posterior.quantile("twice", 0.9), 1 + 2 * sd * norm.ppf(0.9), atol=0.4)


def test_without_a_name_all_latents_are_meant(posterior):
    for ask in (posterior.mean, posterior.std, posterior.quantile, posterior.hdi):
        found = ask()
        assert set(found) == {"mu", "a"}
        np.testing.assert_array_equal(found["a"], ask("a"))


def test_draws_by_name_are_joint_draws(posterior):
    assert posterior["a"].shape == (1000, 3)
    np.testing.assert_array_equal(posterior["twice"], 2 * posterior["mu"])
    np.testing.assert_array_equal(posterior["a"], posterior.sample()["a"])
    with pytest.raises(QueryError, match="'b' is no site of the model"):
        posterior["b"]


def test_predictions_need_no_arguments(posterior):
    assert posterior.predictive()["y"].shape == (1000, 3)


def test_the_summary_as_a_table(posterior):
    table = posterior.to_dataframe(var_names=["a", "twice"], quantiles=[0.025, 0.5], hdi_prob=0.8)
    assert list(table.index) == ["a[0]", "a[1]", "a[2]", "twice"]
    assert list(table.columns) == ["mean", "sd", "2.5%", "50%", "hdi_10%", "hdi_90%", "ESS", "k-hat"]
    np.testing.assert_allclose(table["mean"], [*posterior.mean("a"), posterior.mean("twice")], rtol=1e-6)
    np.testing.assert_allclose(table["50%"], [*posterior.quantile("a", 0.5), posterior.quantile("twice", 0.5)])
    np.testing.assert_allclose(table.loc["a[1]", ["hdi_10%", "hdi_90%"]], posterior.hdi("a", 0.8)[1])
    np.testing.assert_allclose(table["ESS"][:3], 1000, rtol=1e-3)
    assert np.isnan(table.loc["twice", "ESS"])
    with pytest.raises(QueryError, match="'y' is an observed site"):
        posterior.summary(var_names="y")
    with pytest.raises(QueryError, match="hdi_prob is 94"):
        posterior.summary(hdi_prob=94)
