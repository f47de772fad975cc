"""Equations with triangular matrices: exact, and no wide calls of LAPACK for short vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import kayn
from kayn.densities.log_prob import log_density
from kayn.densities.triangular import SMALL, solved
from kayn.xla.jit import inner_jaxprs


def factor(size, seed=0):
    root = np.tril(np.random.default_rng(seed).normal(size=(size, size)), -1)
    return root + np.diag(np.linspace(0.5, 2.0, size))


@pytest.mark.parametrize("size", [1, 2, SMALL, SMALL + 1])
def test_solutions_solve(size):
    rng = np.random.default_rng(1)
    tril, right = np.stack([factor(size, s) for s in range(3)]), rng.normal(size=(5, 3, size))
    found = solved(jnp.asarray(tril), jnp.asarray(right))
    exact = np.linalg.solve(tril, right[..., None])[..., 0]
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-4 * np.abs(exact).max())
    np.testing.assert_allclose(
        solved(jnp.asarray(tril[0]), jnp.asarray(right)),
        np.linalg.solve(tril[0], right[..., None])[..., 0],
        rtol=2e-4,
        atol=2e-4 * np.abs(exact).max(),
    )


def test_a_matrix_of_few_digits_costs_the_right_side_none(x64):
    tril, right = factor(3).astype(np.float32), np.random.default_rng(1).normal(size=(5, 3))
    exact = np.linalg.solve(tril.astype(float), right.T).T
    np.testing.assert_allclose(solved(jnp.asarray(tril), jnp.asarray(right)), exact, rtol=1e-12)


@pytest.mark.parametrize("correlation", [0.0, -0.9, 0.9999])
def test_the_density_of_short_vectors(correlation):
    """Scales that differ by 1e5, nearly collinear coordinates: to the digits that rounding leaves."""
    scale = np.array([1e-3, 1e2])
    root = scale[:, None] * np.array([[1.0, 0.0], [correlation, (1 - correlation**2) ** 0.5]])
    values = np.random.default_rng(2).normal(size=(20, 2)) @ root.T + [0.0, 1.0]
    root, values = root.astype(np.float32), values.astype(np.float32)
    law = dist.MultivariateNormal(jnp.array([0.0, 1.0]), scale_tril=jnp.asarray(root))
    apart = np.linalg.solve(root.astype(float), (values.astype(float) - [0.0, 1.0]).T)
    exact = scipy.stats.norm.logpdf(apart).sum(0) - np.log(np.diag(root.astype(float))).sum()
    np.testing.assert_allclose(log_density(law, jnp.asarray(values)), exact, rtol=2e-4, atol=2e-4)


def widest(jaxpr):
    """Right sides of a matrix, at most, in the triangular equations of a program; zero without any."""
    solves = [e for e in jaxpr.eqns if e.primitive.name == "triangular_solve"]
    own = [e.invars[1].aval.shape[-1 if e.params["left_side"] else -2] for e in solves]
    return max([0, *own, *(widest(inner) for e in jaxpr.eqns for inner in inner_jaxprs(e))])


@pytest.mark.parametrize(
    "law", [dist.MultivariateNormal, lambda loc, scale_tril: dist.MultivariateStudentT(4.0, loc, scale_tril)]
)
def test_particles_of_short_vectors_are_no_columns(law):
    """One call of LAPACK for thousands of columns waits for its threads a hundred times as long as it computes."""

    def density(tril, x):
        return log_density(law(jnp.zeros((29, 3)), scale_tril=tril), x)

    every = jax.vmap(jax.vmap(density, (None, 0)), (0, None))
    jaxpr = jax.make_jaxpr(every)(jnp.broadcast_to(jnp.eye(3), (100, 3, 3)), jnp.zeros((10, 29, 3)))
    assert 0 < widest(jaxpr.jaxpr) <= 3


@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("given", ["covariance_matrix", "scale_tril", "precision_matrix"])
def test_a_location_that_is_one_number_stands_for_all_entries(size, given):
    """`MultivariateNormal(mu, ...)`, as users write it: the evidence of a vector of means, for one key."""
    matrix = np.eye(size) + 0.4
    matrix = np.tril(matrix).astype(np.float32) if given == "scale_tril" else matrix.astype(np.float32)

    def evidence(whole):
        def model(y):
            mu = numpyro.sample("mu", dist.Normal(0, 1))
            scale = numpyro.sample("scale", dist.HalfNormal(1))
            loc = jnp.full(size, mu) if whole else mu
            z = numpyro.sample("z", dist.MultivariateNormal(loc, **{given: (0.5 + scale) * matrix}))
            numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

        y = jnp.linspace(0.3, 2, size)
        return kayn.Importance(model, num_particles=20, num_replicates=2).run(0, {}, y).log_evidence

    np.testing.assert_allclose(evidence(False), evidence(True), rtol=1e-5)


def test_a_guides_location_that_is_one_number_is_fitted_for_all_entries():
    """QEM from `MultivariateNormal(0.0, ...)`: the closed form's means within .05, and the same as from a vector."""

    def model(y):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    def fitted(loc):
        def guide(y):
            numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=jnp.eye(3)))

        return kayn.QEM(model, guide, num_particles=30).run(0, 60, y).params["kayn:z:loc"]

    y = jnp.array([0.3, 1.0, 2.0])
    assert dist.MultivariateNormal(0.0, scale_tril=jnp.eye(3)).event_shape == (3,)
    np.testing.assert_array_equal(fitted(0.0), fitted(jnp.zeros(3)))
    np.testing.assert_allclose(fitted(0.0), 0.8 * y, atol=0.05)
