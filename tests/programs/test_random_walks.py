"""Random walks that are one site of the model: as loops, against closed forms, carried on, with guides of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import multivariate_normal

import kayn
from kayn.errors import GuideError, QueryError

WALK = np.array([0.3, 0.1, 0.8, 1.2, 0.9, 1.6, 1.4, 2.1])


def one_site(y, steps=8):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    z = numpyro.sample("z", dist.GaussianRandomWalk(scale, num_steps=steps))
    numpyro.sample("y", dist.Normal(z, 0.4), obs=y)


def as_a_loop(y, steps=8):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(z, scale))
        numpyro.sample("y", dist.Normal(z, 0.4), obs=y)
        return z, None

    scan(step, 0.0, y, length=steps)


@pytest.fixture(scope="module")
def fitted():
    return kayn.fit(one_site, args=(WALK,), progress=False).posterior()


def test_a_random_walk_is_read_as_a_loop():
    analysis = kayn.analyze(one_site, WALK)
    assert analysis.graph.latent("z").plate_names == ("time",)
    found, same = (
        kayn.fit(m, args=(WALK,), progress=False, num_particles=12).posterior() for m in (one_site, as_a_loop)
    )
    np.testing.assert_allclose(found.log_evidence, same.log_evidence, rtol=1e-5)
    for name in ("scale", "z"):
        np.testing.assert_allclose(found.mean(name), same.mean(name), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.std(name), same.std(name), rtol=1e-3, atol=1e-3)


def test_random_walks_have_their_evidence():
    """Without unknown scales in closed form; where a walk is read as a whole, its particles are whole paths."""
    summed = np.tril(np.ones((8, 8)))

    def evidence(covariance, y=WALK):
        return multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(y)

    def two(y):
        a, b = (numpyro.sample(n, dist.GaussianRandomWalk(s, num_steps=8)) for n, s in (("a", 0.3), ("b", 0.2)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    def whole(y):
        z = numpyro.sample("z", dist.GaussianRandomWalk(0.3, num_steps=8))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y[0])

    def batch(y):
        with numpyro.plate("walks", 2):
            z = numpyro.sample("z", dist.GaussianRandomWalk(0.3, num_steps=8))
        numpyro.sample("y", dist.Normal(z, 1.0).to_event(2), obs=jnp.stack([y, -y]))

    unit = np.eye(8)
    cases = {
        two: evidence(summed @ summed.T * 0.13 + unit),
        whole: evidence(np.array([[0.09 * (np.arange(1, 9) ** 2).sum() + 1.0]]), WALK[:1]),
        batch: 2 * evidence(summed @ summed.T * 0.09 + unit),
    }
    for model, exact in cases.items():
        posterior = kayn.fit(model, args=(WALK,), progress=False).posterior(num_replicates=100)
        # z-score below 4: 6e-5 a comparison
        assert abs(posterior.log_evidence - exact) < 4 * posterior.log_evidence_error + 1e-3, model.__name__


def test_random_walks_are_carried_on(fitted):
    """Three further steps: the known ones are the posterior's, and increments have the walk's scale."""
    drawn = fitted.predictive(0, 4000, None, 11)
    assert drawn["z"].shape == drawn["y"].shape == (4000, 11)
    np.testing.assert_allclose(drawn["z"][:, :8].mean(0), fitted.mean("z"), atol=5 * 0.4 / 4000**0.5)
    standard = (drawn["z"][:, 8:] - drawn["z"][:, 7:-1]) / drawn["scale"][:, None]
    assert abs(standard.mean()) < 4 / 12_000**0.5
    assert abs(standard.std() - 1) < 4 / (2 * 12_000) ** 0.5
    scores = fitted.log_predictive(0, 500, np.append(WALK, [2.2, 2.4, 2.5]), 11)
    assert scores.pointwise["y"].shape == (11,)
    assert fitted.predictive(0, 3, new_plates="time")["z"].shape == (3, 8)
    with pytest.raises(QueryError, match=r"time series 'z' has shape \(8,\) in the posterior but \(5,\)"):
        fitted.predictive(0, 3, None, 5)


def many(y, steps=8, rows=None):
    """A walk of each of several series, in a plate or in one of some of its rows."""
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    with numpyro.plate("series", 3, subsample_size=rows) as own:
        z = numpyro.sample("z", dist.GaussianRandomWalk(scale, num_steps=steps))
        numpyro.sample("y", dist.Normal(z, 0.4).to_event(1), obs=None if y is None else jnp.asarray(y)[own])


def at_once(y):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    with numpyro.plate("series", 3):
        z = numpyro.sample("z", dist.GaussianRandomWalk(scale * jnp.ones(3), num_steps=8))
    numpyro.sample("y", dist.Normal(z, 0.4).to_event(2), obs=y)


def event(y):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    z = numpyro.sample("z", dist.GaussianRandomWalk(scale * jnp.ones(3), num_steps=8).to_event(1))
    numpyro.sample("y", dist.Normal(z, 0.4).to_event(2), obs=y)


def loops(y):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))

    def step(z, y):
        with numpyro.plate("series", 3):
            z = numpyro.sample("z", dist.Normal(z, scale))
            numpyro.sample("y", dist.Normal(z, 0.4), obs=y)
        return z, None

    scan(step, jnp.zeros(3), y.T)


WALKS = np.stack([WALK, -WALK, 0.5 * WALK])


def test_walks_in_a_plate_are_a_loop_each():
    found = [
        kayn.fit(m, args=(WALKS,), progress=False, num_particles=12).posterior() for m in (loops, many, at_once, event)
    ]
    assert all(len(p.problem.layout.axis_of("z").scope) == 2 for p in found)
    same = found[0]
    for posterior in found[1:]:
        np.testing.assert_allclose(posterior.log_evidence, same.log_evidence, rtol=1e-4)
        np.testing.assert_allclose(posterior.mean("z"), same.mean("z").T, atol=1e-3)
        np.testing.assert_allclose(posterior.mean("scale"), same.mean("scale"), rtol=1e-3)
    posterior = found[1]
    # three further steps, and new walks
    drawn = posterior.predictive(0, 2000, None, 11)
    assert drawn["z"].shape == drawn["y"].shape == (2000, 3, 11)
    np.testing.assert_allclose(drawn["z"][..., :8].mean(0), posterior.mean("z"), atol=5 * 0.4 / 2000**0.5)
    standard = (drawn["z"][..., 8:] - drawn["z"][..., 7:-1]) / drawn["scale"][:, None, None]
    assert abs(standard.std() - 1) < 4 / (2 * 18_000) ** 0.5
    # an estimate from a part of the walks, of guides that draw these one by one or as paths
    for guide in (kayn.FactorisedGuide.from_model(many, (WALKS,)), AutoNormal(many)):
        svi = SVI(many, guide, numpyro.optim.Adam(0.03), kayn.VI(20))
        losses = svi.run(jax.random.key(0), 400, WALKS, progress_bar=False).losses[-100:]
        assert -0.2 < float(losses.mean()) + posterior.log_evidence < 1.5, guide
    part = kayn.FactorisedGuide.from_model(many, (WALKS, 8, 2))
    svi = SVI(many, part, numpyro.optim.Adam(0.03), kayn.VI(20))
    losses = svi.run(jax.random.key(0), 600, WALKS, 8, 2, progress_bar=False).losses[-200:]
    assert -0.2 < float(losses.mean()) + posterior.log_evidence < 1.5


@pytest.mark.parametrize("loss", [kayn.VI, kayn.RWS, kayn.VIMCO])
def test_guides_for_random_walks(loss, fitted):
    """Independent Normals, kayn's and NumPyro's: both estimate the evidence from below."""
    exact = fitted.log_evidence
    for guide in (kayn.FactorisedGuide.from_model(one_site, (WALK,)), AutoNormal(one_site)):
        svi = SVI(one_site, guide, numpyro.optim.Adam(0.03), loss(20))
        losses = svi.run(jax.random.key(0), 400, WALK, progress_bar=False).losses[-100:]
        assert -0.2 < float(losses.mean()) + exact < 1.5, guide


def test_joint_guides_of_random_walks():
    """A guide that draws the walk as one vector makes its particles whole paths;
    the posterior itself weighs them all the same."""

    def fixed(y):
        z = numpyro.sample("z", dist.GaussianRandomWalk(0.5, num_steps=8))
        numpyro.sample("y", dist.Normal(z, 0.4), obs=y)

    summed = np.tril(np.ones((8, 8)))
    prior = 0.25 * summed @ summed.T
    covariance = np.linalg.inv(np.linalg.inv(prior) + np.eye(8) / 0.16)

    def joint(y):
        numpyro.sample("z", dist.MultivariateNormal(jnp.asarray(covariance @ y / 0.16), jnp.asarray(covariance)))

    exact = multivariate_normal(np.zeros(8), prior + 0.16 * np.eye(8)).logpdf(WALK)
    found = kayn.Importance(fixed, joint, num_particles=7, num_replicates=3).run(0, None, WALK)
    np.testing.assert_allclose(found.log_evidences, exact, rtol=1e-4)
    with pytest.raises(
        GuideError, match=r"'z' is one MultivariateNormal over elements .* batch shape \(8,\); QEM fits one"
    ):
        kayn.QEM(fixed, joint).init(0, WALK)


def test_a_random_walk_as_guide():
    """The prior as guide, which is a walk too: its steps are drawn one given the other,
    and the evidence is unbiased."""

    def vague(y):
        z = numpyro.sample("z", dist.GaussianRandomWalk(0.3, num_steps=8))
        numpyro.sample("y", dist.Normal(z, 2.0), obs=y)

    def prior(y):
        numpyro.sample("z", dist.GaussianRandomWalk(0.3, num_steps=8))

    summed = np.tril(np.ones((8, 8)))
    exact = multivariate_normal(np.zeros(8), 0.09 * summed @ summed.T + 4 * np.eye(8)).logpdf(WALK)
    found = kayn.Importance(vague, prior, num_particles=10, num_replicates=2000).run(0, None, WALK)
    assert found.log_evidences.std() < 1.0
    # z-score below 4: 6e-5
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error
