"""Latents that share an index for every element of a plate: which they are, in which order their numbers lie, and a
posterior that is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import kayn
from kayn.axes.types import Axis
from kayn.inference.mcmc.together import apart, correlated, elements

from .sampling import compare, run

GROUP = np.repeat(np.arange(4), [6, 3, 2, 1])


def lines(x, y):
    with numpyro.plate("groups", 4):
        level = numpyro.sample("level", dist.Normal(0, 1))
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("unread", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(level[GROUP] + slope[GROUP] * x, 0.5), obs=y)


def test_intercepts_and_slopes_of_groups_share_an_index():
    rng = np.random.default_rng(0)
    x, y = 2 + rng.normal(size=12), rng.normal(size=12)
    kernel = kayn.MPGibbs(lines)
    args = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    assert str(kernel.passes(*args)).splitlines()[1:3] == [
        "  level + slope: 5 particles for every element of groups, local",
        "  unread: 5 particles for every element of groups, local",
    ]
    mcmc = run(kernel, *args)
    draws = mcmc.get_samples(group_by_chain=True)
    own = np.eye(4)[GROUP]
    design = np.hstack([own, own * x[:, None]])
    covariance = np.linalg.inv(np.eye(8) + design.T @ design / 0.25)
    both = np.concatenate([draws["level"], draws["slope"]], -1)
    compare(both, covariance @ design.T @ y / 0.25, np.diag(covariance) ** 0.5)
    # steps have learnt how level and slope of the largest group, whose rows are far from nought, hang together
    (learnt,) = mcmc.last_state.tuning.covariance.values()
    exact = covariance[np.ix_([0, 4], [0, 4])]
    found = np.asarray(learnt)[:, 0].mean(0)
    assert exact[0, 1] < -0.7 * np.sqrt(exact[0, 0] * exact[1, 1])
    np.testing.assert_allclose(found, exact, rtol=0.5)


def coefficients(x, y):
    level = numpyro.sample("level", dist.Normal(0, 1))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(level + slope * x, 0.5), obs=y)


def test_scalars_of_a_group_move_one_by_one_too():
    args = (jnp.arange(3.0), jnp.ones(3))
    assert "One number at a time" not in str(kayn.MPGibbs(coefficients).passes(*args))
    text = str(kayn.MPGibbs(coefficients, groups=[("level", "slope")]).passes(*args))
    assert text.splitlines()[-1] == "One number at a time: level, slope"


def test_elements_are_taken_apart_as_they_were_put_together():
    plates = {"u": (("p", 0), ("q", 1)), "v": (("q", 0), ("p", 1))}
    graph = SimpleNamespace(latent=lambda name: SimpleNamespace(plates=plates[name]))
    problem, axis = SimpleNamespace(graph=graph), Axis("k", ("u", "v"), ("q", "p"), 5)
    u, v = jnp.arange(30.0).reshape(2, 3, 5), 100 + jnp.arange(6.0).reshape(3, 2)
    found = elements(problem, axis, {"u": u, "v": v})
    assert found.shape == (2, 3, 6)
    np.testing.assert_array_equal(found[1, 2], np.r_[u[1, 2], v[2, 1]])
    back = apart(problem, axis, jnp.stack([found, -found]), {"u": u, "v": v}, 1)
    np.testing.assert_array_equal(back["u"], jnp.stack([u, -u]))
    np.testing.assert_array_equal(back["v"], jnp.stack([v, -v]))


def test_noise_has_the_covariance():
    """Of 20,000 draws: within 5 standard errors, 6e-7 false alarms a comparison."""
    covariance = np.array([[[4.0, -1.8], [-1.8, 1.0]], [[1.0, 0.0], [0.0, 9.0]]])
    noise = correlated(jax.random.normal(jax.random.key(0), (20_000, 2, 2)), jnp.asarray(covariance))
    found = np.einsum("ngi,ngj->gij", noise, noise) / len(noise)
    error = np.sqrt(np.einsum("gii,gjj->gij", covariance, covariance) * 2 / len(noise))
    assert (np.abs(found - covariance) < 5 * error + 1e-3).all()
