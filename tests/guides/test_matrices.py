"""Latents that are matrices: their entries share a particle, and so have a covariance."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import norm

import kayn


def test_entries_of_a_matrix_have_a_joint_covariance():
    """Only their sum is known: entries are correlated by -1 / 3 nearly, and the evidence is exact."""

    def model(total):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([2, 2]).to_event(2))
        numpyro.sample("total", dist.Normal(jnp.sum(b), 0.1), obs=total)

    posterior = kayn.fit(model, (3.0,), progress=False).posterior()
    share = 1 / 4.01
    np.testing.assert_allclose(posterior.mean("b"), np.full((2, 2), 3.0 * share), atol=0.1)
    np.testing.assert_allclose(posterior.std("b"), np.full((2, 2), (1 - share) ** 0.5), rtol=0.1)
    assert abs(float(posterior.log_evidence) - norm(0, 4.01**0.5).logpdf(3.0)) < 0.05
    assert float(posterior.ess("b")) > 0.7 * len(posterior.weights("b"))


def test_factorisations_count_for_what_they_take():
    """A Cholesky factor for each of 27,000 combinations of particles takes too long: latents share an axis."""
    x = np.linspace(0, 1, 30)

    def model(y):
        width, length, noise = (numpyro.sample(n, dist.LogNormal(0, 1)) for n in ("width", "length", "noise"))
        kernel = width * jnp.exp(-((x[:, None] - x) ** 2) / length**2) + (noise + 1e-5) * jnp.eye(30)
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(30), kernel), obs=y)

    found = str(kayn.analyze(model, np.sin(x)))
    assert "share one particle axis (a step would take" in found
    assert "operations)" in found
