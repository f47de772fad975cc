"""A model is read once: how often the programs of a user run, by what is asked."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import kayn

RUNS = {"model": 0, "guide": 0}


def model(covariate, y=None):
    RUNS["model"] += 1
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(covariate)):
        at = numpyro.deterministic("at", mu + covariate)
        numpyro.sample("y", dist.Normal(at, 1.0), obs=y)


def guide(covariate, y=None):
    RUNS["guide"] += 1
    loc = numpyro.param("loc", 0.0)
    numpyro.sample("mu", dist.Normal(loc, 1.0))


X, Y = np.float32([0.0, 1.0, 2.0]), np.float32([0.5, 0.8, 2.5])
FIT = {"num_particles": 4, "num_steps": 8, "progress": False}


def runs(function, *args, **kwargs):
    """How often model and guide run, and the result."""
    before = dict(RUNS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.KaynWarning)
        out = function(*args, **kwargs)
    return (RUNS["model"] - before["model"], RUNS["guide"] - before["guide"]), out


def test_reading_a_model():
    """Its sites and a trace; draws from its prior, which kayn's own guide starts from."""
    assert runs(kayn.analyze, model, X, Y)[0] == (3, 0)
    assert runs(kayn.Importance(model, num_particles=4).run, 0, None, X, Y)[0] == (3, 0)
    assert runs(kayn.fit, model, (X, Y), **FIT)[0] == (3, 0)


def test_reading_a_guide():
    """Its sites, a trace of its density and one of its sampler, and for even draws which noise that takes, twice."""
    params = {"loc": 0.0}
    assert runs(kayn.analyze, model, X, Y, guide=guide, params=params)[0] == (2, 3)
    assert runs(kayn.Importance(model, guide, 4).run, 0, params, X, Y)[0] == (2, 5)
    assert runs(kayn.fit, model, (X, Y), guide=guide, **FIT)[0] == (2, 5)


def test_questions_run_no_program_but_for_predictions():
    _, fitted = runs(kayn.fit, model, (X, Y), **FIT)
    count, posterior = runs(fitted.posterior)
    assert count == (0, 0)
    for question in (
        lambda: posterior.mean("mu"),
        lambda: posterior.std("at"),
        lambda: posterior.expectation(jnp.tanh, "mu"),
        lambda: posterior.covariance("mu", "mu"),
        lambda: posterior.sample(0, 200),
        posterior.mode,
        posterior.summary,
        posterior.check,
    ):
        assert runs(question)[0] == (0, 0)
    assert runs(fitted.posterior, 3)[0] == (2, 0)
    # once given a draw
    assert runs(posterior.predictive, 0, 250)[0] == (1, 0)
    assert runs(posterior.log_likelihood, 0, 250)[0] == (1, 0)
    # and read before, under arguments of their own
    assert runs(posterior.predictive, 0, 250, X[:2])[0] == (3, 0)
    assert runs(posterior.log_predictive, 0, 250, X[:2], Y[:2])[0] == (3, 0)


def test_a_loop_is_read_once_more():
    """How many steps back it reads is known once it has been read. NumPyro's loops run their bodies often;
    the model is counted."""

    def walk(y):
        RUNS["model"] += 1

        def step(z, y):
            z = numpyro.sample("z", dist.Normal(z, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        scan(step, 0.0, y)

    assert runs(kayn.analyze, walk, Y)[0] == (4, 0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_held_out_data_count_once_whatever_scales_the_training_data(scale):
    """The exact posterior as guide: the joint predictive density of held-out rows has a closed form."""

    def scaled(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=scale), numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    precision = 1 + scale * len(Y)
    loc = scale * Y.sum() / precision
    exact = kayn.Importance(
        scaled, lambda y: numpyro.sample("mu", dist.Normal(loc, precision**-0.5)), 2000, num_replicates=4
    )
    held_out = np.float32([1.0, -0.5])
    found = exact.run(0, None, Y).log_predictive(0, 20, held_out).joint
    covariance = np.eye(2) + 1 / precision
    # an average of 8,000 even draws, whose ratios vary by less than their mean: an error of 1e-2 at most
    np.testing.assert_allclose(
        found, dist.MultivariateNormal(loc * np.ones(2), covariance).log_prob(held_out), atol=0.02
    )
    assert jax.numpy.ndim(found) == 0
