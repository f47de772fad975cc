"""A guide whose vectors follow the model given its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions.transforms import ExpTransform, IdentityTransform

from kayn.guides.curvature import upper_root
from kayn.guides.laplace import BEGIN, LOC, NOISE, NUMBERS, TRIL, VOLUME, WIDTH, LaplaceGuide, Unconstrained

SIZE = 4
A = np.random.default_rng(0).normal(size=(6, SIZE))
Y = np.random.default_rng(1).normal(size=6)


def linear(u):
    """log p(z, y | s) of y = s A z + noise, up to what does not depend on z."""
    z, s = u["z"], jnp.exp(u["s"])
    return -0.5 * jnp.sum(z**2) - 0.5 * jnp.sum((Y - s * A @ z) ** 2) + dist.Normal(0, 1).log_prob(u["s"])


def guide(density=linear):
    start = {LOC: jnp.array([0.3]), TRIL: jnp.array([[0.5]]), BEGIN: jnp.zeros(SIZE), WIDTH: jnp.array(1.1)}
    return LaplaceGuide(
        [Unconstrained("s", (), ExpTransform())], [Unconstrained("z", (SIZE,), IdentityTransform())], density, start
    )


@pytest.mark.parametrize("at", [-2.0, 0.0, 1.5])
def test_of_a_linear_model_mode_and_curvature_are_exact(at):
    """The conditional Normal in closed form, for every value of the scale."""
    mode, upper = guide().mode(jnp.array([at]), jnp.zeros(SIZE))
    s = np.exp(at)
    precision = np.eye(SIZE) + s**2 * A.T @ A
    np.testing.assert_allclose(upper @ upper.T, precision, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mode, s * np.linalg.solve(precision, A.T @ Y), rtol=1e-3, atol=1e-5)
    assert np.all(np.tril(upper, -1) == 0)


def test_newtons_method_comes_back_from_afar():
    """Counts whose rate is an exponential: a whole step from zero overshoots by far."""

    def counts(u):
        return jnp.sum(9.0 * u["z"] - jnp.exp(u["z"])) - 0.5 * jnp.sum(u["z"] ** 2) / 100

    mode, upper = guide(counts).mode(jnp.zeros(1), -5 * jnp.ones(SIZE))
    gradient = 9 - np.exp(mode) - mode / 100
    np.testing.assert_allclose(gradient, 0, atol=0.05)
    np.testing.assert_allclose(np.diag(upper) ** 2, np.exp(mode) + 0.01, rtol=0.05)


def test_numbers_without_a_density_still_have_a_law():
    """As of a kernel that rounding has made singular: a fixed one, so that weights stay right."""
    mode, upper = guide(lambda u: jnp.nan * jnp.sum(u["z"] ** 2)).mode(jnp.zeros(1), jnp.ones(SIZE))
    np.testing.assert_array_equal(mode, np.ones(SIZE))
    np.testing.assert_array_equal(upper, np.eye(SIZE))


@pytest.mark.parametrize("kind", ["positive", "flat", "saddle", "zero"])
def test_roots_are_of_the_matrix_or_of_something_positive(kind):
    values = {"positive": [3.0, 1.0, 0.2], "flat": [3.0, 1.0, 0.0], "saddle": [3.0, 1.0, -2.0], "zero": [0.0] * 3}[kind]
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    matrix = turn @ np.diag(values) @ turn.T
    upper = upper_root(jnp.asarray(matrix))
    assert np.isfinite(upper).all() and np.all(np.diag(upper) > 0) and np.all(np.tril(upper, -1) == 0)
    if kind == "positive":
        np.testing.assert_allclose(upper @ upper.T, matrix, atol=1e-5)


def test_the_density_of_its_draws_is_that_of_the_change_of_variables():
    """NumPyro's own count of a run, by the noise that placed the vectors."""
    own = guide()
    trace = handlers.trace(handlers.seed(own, jax.random.key(3))).get_trace()
    claimed = sum(float(jnp.sum(s["fn"].log_prob(s["value"]))) for s in trace.values() if s["type"] == "sample")
    number = trace[NUMBERS]["value"]
    mode, upper = own.mode(number, jnp.zeros(SIZE))
    law = dist.MultivariateNormal(mode, 1.1**2 * jnp.linalg.inv(upper @ upper.T))
    s = trace["s"]["value"]
    right = dist.Logistic(0.3, 0.5 * 3**0.5 / np.pi).log_prob(jnp.log(s)) - jnp.log(s)
    right += law.log_prob(trace["z"]["value"])
    np.testing.assert_allclose(claimed, right, rtol=1e-4)


def test_particles_drawn_together_have_the_law_of_single_runs():
    """Means and deviations of 4,096 even draws within five standard errors of independent ones'; vectors by their
    noise."""
    own = guide()
    found = own.draw_particles(jax.random.key(4), 4096, {})
    assert set(found) == {NUMBERS, NOISE, VOLUME, "s", "z"}
    for drawn, mean, sd in ((jnp.log(found["s"]), 0.3, 0.5), (found[NOISE], 0.0, 1.0)):
        np.testing.assert_allclose(jnp.mean(drawn, 0), mean, atol=5 * sd / 64)
        np.testing.assert_allclose(jnp.std(drawn, 0), sd, rtol=5 / 70)
    mode, upper = own.mode(found[NUMBERS][7], jnp.zeros(SIZE))
    z = mode + 1.1 * jnp.linalg.solve(upper.T, found[NOISE][7])
    np.testing.assert_allclose(found["z"][7], z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[VOLUME][7], -jnp.sum(jnp.log(jnp.diagonal(upper) / 1.1)), rtol=1e-3)
