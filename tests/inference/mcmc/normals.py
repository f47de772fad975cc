"""A hierarchy of Normals, and its posterior."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

Y = jnp.array([1.8, -0.4, 0.9, 2.7, 0.1, 1.1])
SD = jnp.array([0.5, 1.0, 0.7, 1.5, 0.4, 2.0])


def normals(sd, y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("groups", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(theta, sd), obs=y)
    numpyro.deterministic("twice", 2 * theta)


def normals_exact(sd, y):
    """Mean and covariance of mu and theta."""
    n = len(y)
    precision = np.zeros((n + 1, n + 1))
    precision[0, 0] = 1 / 4 + n
    precision[0, 1:] = precision[1:, 0] = -1
    precision[1:, 1:] = np.diag(1 + 1 / np.asarray(sd) ** 2)
    covariance = np.linalg.inv(precision)
    return covariance @ np.r_[0, np.asarray(y) / np.asarray(sd) ** 2], covariance
