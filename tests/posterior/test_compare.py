"""Models side by side, data left out, and draws before any data: against closed forms of a Normal model."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import kayn
from kayn import QueryError

Y = np.array([0.9, 1.4, 0.3, -0.6, -1.1, 2.2])
N = len(Y)


def model(y, prior=1.0):
    mu = numpyro.sample("mu", dist.Normal(0, prior))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def weighed(prior, y=Y):
    """The posterior with the exact one as guide: Normal with precision N + 1 / prior^2."""
    precision = N + prior**-2

    def guide(y, prior):
        numpyro.sample("mu", dist.Normal(Y.sum() / precision, precision**-0.5))

    return kayn.Importance(model, guide, 100, num_replicates=20).run(0, None, y, prior)


def left_out(prior):
    """Exact log densities of every datum given the others."""
    precision = N - 1 + prior**-2
    mean = (Y.sum() - Y) / precision
    return norm(mean, np.sqrt(1 + 1 / precision)).logpdf(Y)


def evidence(prior):
    covariance = np.eye(N) + prior**2
    return -0.5 * (Y @ np.linalg.solve(covariance, Y) + np.linalg.slogdet(covariance)[1] + N * np.log(2 * np.pi))


@pytest.fixture(scope="module")
def posteriors():
    return {"narrow": weighed(0.1), "wide": weighed(1.0)}


def test_data_left_out(posteriors):
    """From 2000 independent draws; a pointwise density has a standard error below 0.01, bounds are five of them."""
    found = posteriors["wide"].loo(0, 2000)
    np.testing.assert_allclose(found.pointwise, left_out(1.0), atol=0.05)
    np.testing.assert_allclose(found.elpd, left_out(1.0).sum(), atol=0.1)
    np.testing.assert_allclose(found.se, np.sqrt(N * left_out(1.0).var()), atol=0.1)
    assert found.poor == 0
    np.testing.assert_array_equal(found.data["y"], Y.astype(np.float32))
    assert str(found).startswith(f"elpd_loo {found.elpd:.2f} +- ")


def test_draws_that_repeat_have_weights_without_a_tail():
    found = kayn.Importance(model, None, 3).run(0, None, Y, 1.0).loo(0, 500)
    assert np.isfinite(found.pointwise).all()
    assert np.isnan(found.khat).all()


def test_models_side_by_side(posteriors):
    found = kayn.compare(posteriors)
    table = found.to_dataframe()
    assert list(table.index) == ["narrow", "wide"]
    exact = np.array([evidence(0.1), evidence(1.0)])
    # all weights are equal
    np.testing.assert_allclose(table["log_evidence"], exact, atol=1e-4)
    np.testing.assert_allclose(table["log_bayes_factor"], exact - exact[0], atol=1e-4)
    np.testing.assert_allclose(table["probability"], np.exp(exact) / np.exp(exact).sum(), atol=1e-4)
    apart = left_out(1.0) - left_out(0.1)
    np.testing.assert_allclose(table["elpd_diff"], [0, apart.sum()], atol=0.1)
    np.testing.assert_allclose(table["dse"], [0, np.sqrt(N * apart.var())], atol=0.1)
    assert repr(found).split("\n")[2].split()[0] == "narrow"


def test_models_of_other_data_are_not_compared(posteriors):
    for y, why in ((Y + 1, "other values"),):
        with pytest.raises(QueryError, match=f"'wide' and 'other' are of different data \\({why}\\)"):
            kayn.compare({"wide": posteriors["wide"], "other": weighed(1.0, y)})
    with pytest.raises(QueryError, match=r"models\['a'\] is 3"):
        kayn.compare({"a": 3})


def test_draws_before_any_data():
    """Of 4000 independent draws: five standard errors."""
    found = kayn.prior_predictive(model, (Y,), {"prior": 0.5}, num_samples=4000)
    assert {n: v.shape for n, v in found.items()} == {"mu": (4000,), "twice": (4000,), "y": (4000, N)}
    np.testing.assert_array_equal(found["twice"], 2 * found["mu"])
    np.testing.assert_allclose(np.std(found["mu"]), 0.5, atol=5 * 0.5 / np.sqrt(8000))
    np.testing.assert_allclose(np.var(found["y"], 0), 1.25, atol=5 * 1.25 * np.sqrt(2 / 4000))
    np.testing.assert_allclose(np.cov(found["y"][:, 0], found["y"][:, 1])[0, 1], 0.25, atol=0.12)


def test_improper_priors_draw_nothing():
    def improper(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.raises(QueryError, match="nothing can be drawn from the prior"):
        kayn.prior_predictive(improper, (Y[0],))


def test_draws_that_repeat_do_not_count():
    """Effective sample sizes as ArviZ has them, of 20,000 draws from 20 sets of 30 particles, which are worth 600."""
    from arviz_stats.base import array_stats

    def proposal(y, prior):
        numpyro.sample("mu", dist.Normal(Y.sum() / (N + 1), (N + 1) ** -0.5))

    few = kayn.Importance(model, proposal, 30, num_replicates=20).run(0, None, Y, 1.0)
    with pytest.warns(kayn.PoorFitWarning, match=r"20000 draws are worth 600 independent ones \(of latent 'mu'\)"):
        tree = few.to_datatree(0, 20_000)
    mu = tree["posterior"]["mu"]
    assert mu.shape == (4, 5000)
    assert mu.attrs["effective_sample_size"] == pytest.approx(600, rel=1e-3)
    assert 450 <= array_stats.ess(mu.values, chain_axis=0, draw_axis=1, method="mean") < 700
    # sets of particles stay in one chain
    assert len(set.intersection(*(set(np.unique(chain)) for chain in mu.values))) == 0
    # as exact as 600 draws: five standard errors
    np.testing.assert_allclose(mu.mean(), Y.sum() / (N + 1), atol=5 * (N + 1) ** -0.5 / np.sqrt(600))


def test_a_guide_that_misses_is_seen_by_r_hat():
    from arviz_stats.base import array_stats

    def proposal(y, prior):
        numpyro.sample("mu", dist.Normal(-0.6, 0.2))

    with pytest.warns(kayn.PoorFitWarning):
        tree = kayn.Importance(model, proposal, 30, num_replicates=8).run(0, None, Y, 1.0).to_datatree(0, 1000)
    assert array_stats.rhat(tree["posterior"]["mu"].values, chain_axis=0, draw_axis=1) > 1.01


def test_predictions_are_in_the_tree_and_arviz_finds_them(posteriors):
    tree = posteriors["wide"].to_datatree(0, 400, coords={"rows": list("abcdef")}, predictive=True, prior=True)
    groups = {"posterior", "log_likelihood", "observed_data", "posterior_predictive", "prior", "prior_predictive"}
    assert set(tree.children) == groups
    for group in ("posterior_predictive", "prior_predictive"):
        assert tree[group]["y"].dims == ("chain", "draw", "rows")
        assert tree[group]["y"].shape == (4, 100, N)
        assert list(tree[group].coords["rows"].values) == list("abcdef")
    assert tree["prior"]["twice"].shape == (4, 100)
    # given its own draw, a prediction is a standard Normal about it: five standard errors of 1200
    noise = tree["posterior_predictive"]["y"] - tree["posterior"]["mu"]
    np.testing.assert_allclose([noise.mean(), noise.var()], [0, 1], atol=0.21)
    arviz = pytest.importorskip("arviz")
    if arviz.__version__.startswith("0."):
        pytest.importorskip("matplotlib").use("agg")
        data = arviz.InferenceData.from_datatree(tree)
        assert arviz.plot_ppc(data, num_pp_samples=5) is not None
        assert arviz.plot_ppc(data, group="prior", num_pp_samples=5) is not None
        other = arviz.InferenceData.from_datatree(posteriors["narrow"].to_datatree(0, 400))
        assert list(arviz.compare({"wide": data, "narrow": other}).index) == ["narrow", "wide"]
