"""Missing outcomes: left out or drawn, as exact conditional distributions have it; what is refused, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

import kayn
from kayn import DataError, DataWarning
from kayn.programs.missing_outcomes import Gaps, with_gaps

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 1.0, 30)
Y = 2.0 * X + RNG.normal(size=30)
GAPS = np.isin(np.arange(30), (3, 9, 20))
SETTINGS = {"progress": False, "num_steps": 48}


def line(x, y=None):
    """An outcome that nothing reads."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def chain(x=None, y=None):
    """An outcome, `x`, that another is computed from."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 30):
        x = numpyro.sample("x", dist.Normal(level, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=y)


def normal(mean, covariance, at):
    """Log density of a Normal vector, by hand."""
    left = at - mean
    return -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + left @ np.linalg.solve(covariance, left))


@pytest.mark.parametrize("how", ["drop", "impute"])
def test_rows_are_left_out_of_an_outcome_that_nothing_reads(how, tmp_path):
    y = np.ma.masked_array(Y, GAPS) if how == "impute" else np.where(GAPS, np.nan, Y)
    fit = kayn.fit(line, (X, y), missing=how, **SETTINGS)
    posterior = fit.posterior()
    x = X[~GAPS]
    # the guide is the exact posterior in the end, up to a moment's noise
    exact = normal(0.0, np.eye(x.size) + 4.0 * np.outer(x, x), Y[~GAPS])
    assert_allclose(posterior.log_evidence, exact, atol=0.02)
    drawn = np.asarray(posterior.imputed()["y"])
    assert_allclose(drawn[:, ~GAPS], np.broadcast_to(Y[~GAPS], (1000, x.size)), rtol=1e-6)
    # 1000 draws of variance above 1: 5 standard errors of three means, false alarms 2e-6
    assert_allclose(drawn[:, GAPS].mean(0), float(posterior.mean("slope")) * X[GAPS], atol=5 * 1.2 / np.sqrt(1000))
    fit.save(tmp_path / "fit.npz")
    again = kayn.load(tmp_path / "fit.npz", line).posterior()
    assert float(again.log_evidence) == float(posterior.log_evidence)


def test_an_outcome_that_others_read_is_a_latent_where_it_is_missing():
    x = np.where(GAPS, np.nan, X)
    with pytest.raises(DataError, match=r"site 'x' has 3 missing values, at 3, 9, 20, and the model computes other"):
        kayn.fit(chain, (x, Y), missing="drop")
    posterior = kayn.fit(chain, (x, Y), missing="impute", **SETTINGS).posterior()
    # all numbers are Normal: x = level + e, y = 2 x + e
    base = 1.0 + np.eye(30)
    both = np.block([[base, 2 * base], [2 * base, 4 * base + np.eye(30)]])
    there = np.concatenate([~GAPS, np.ones(30, bool)])
    data = np.concatenate([X, Y])[there]
    exact = normal(0.0, both[there][:, there], data)
    assert_allclose(posterior.log_evidence, exact, atol=max(0.02, 4 * float(posterior.log_evidence_error)))
    gain = both[~there][:, there] @ np.linalg.inv(both[there][:, there])
    spread = np.sqrt(np.diag(both[~there][:, ~there] - gain @ both[~there][:, there].T))
    drawn = np.asarray(posterior.imputed()["x"])
    assert_allclose(drawn[:, ~GAPS], np.broadcast_to(X[~GAPS], (1000, 27)), rtol=1e-6)
    assert_allclose(drawn[:, GAPS].mean(0), gain @ data, atol=0.25 * spread.max())
    assert_allclose(drawn[:, GAPS].std(0), spread, rtol=0.15)


def test_whole_numbers_come_as_floats_where_some_are_missing():
    def counts(y=None):
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 4):
            numpyro.sample("y", dist.Categorical(logits=jnp.array([0.0, 1.0, 2.0]) * rate), obs=y)

    y = np.array([0.0, np.nan, 2.0, 1.0])
    program = with_gaps(counts, (y,), {}, {}, "drop")
    found = log_density(program, (y,), {}, {"rate": 0.3})[0]
    law = jax.nn.log_softmax(jnp.array([0.0, 1.0, 2.0]) * 0.3)
    assert_allclose(found, law.sum() + dist.Normal().log_prob(0.3), rtol=1e-6)


def test_programs_stay_as_they_are_where_nothing_is_missing():
    assert with_gaps(line, (X, Y), {}, {}, "impute") is line
    assert with_gaps(line, (X, None), {}, {}, "impute") is line
    program = with_gaps(line, (X, np.where(GAPS, np.nan, Y)), {}, {}, "drop")
    assert isinstance(program, Gaps)
    # rows of another table: nothing is missing, nothing changes
    args = (X[:4], Y[:4])
    assert log_density(program, args, {}, {"slope": 1.0})[0] == log_density(line, args, {}, {"slope": 1.0})[0]


def test_what_is_missing_in_part_is_told():
    def pairs(y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.MultivariateNormal(level * jnp.ones(2), jnp.eye(2)), obs=y)

    y = np.array([[0.0, 1.0], [np.nan, 1.0], [np.nan, np.nan]])
    with pytest.raises(DataError, match=r"'y' has rows that are missing in part, at 1, .*missing='drop'"):
        with_gaps(pairs, (y,), {}, {}, "impute")
    with pytest.warns(DataWarning, match=r"'y': 1 rows are missing in part, at 1, and left out whole"):
        program = with_gaps(pairs, (y,), {}, {}, "drop")
    found = log_density(program, (y,), {}, {"level": 0.0})[0]
    assert_allclose(found, dist.Normal().log_prob(jnp.array([0.0, 0.0, 1.0])).sum(), rtol=1e-6)


def test_a_loop_is_told_of():
    def walk(y):
        def step(level, y):
            level = numpyro.sample("level", dist.Normal(level, 1.0))
            return level, numpyro.sample("y", dist.Normal(level, 1.0), obs=y)

        scan(step, 0.0, y)

    with pytest.raises(DataError, match=r"site 'y' has NaN at 1 and stands in a loop.*handlers\.mask"):
        kayn.fit(walk, (np.array([0.0, np.nan, 1.0]),), missing="drop")


def test_what_is_missing_elsewhere_is_refused_by_name():
    with pytest.raises(DataError, match=r"argument 'x' of the model has 3 NaN .* at 3, 9, 20"):
        kayn.fit(line, (np.where(GAPS, np.nan, X), Y), missing="drop")
    with pytest.raises(DataError, match=r"site 'y' has 3 NaN .*pass missing='drop' to kayn\.fit"):
        kayn.fit(line, (X, np.where(GAPS, np.nan, Y)))
