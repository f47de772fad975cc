"""Small amortised models with their guides, and their densities written down again in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI

import kayn

X = np.array([-0.7, 1.9], np.float32)


def mixture(x):
    """A categorical latent for every datum."""
    theta = numpyro.param("theta", jnp.array([0.3, -0.2, 0.1]))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(logits=theta))
        numpyro.sample("x", dist.Normal(kayn.lookup(jnp.array([-1.0, 0.5, 2.0]), z), 1.0), obs=x)


def mixture_guide(x):
    slope = numpyro.param("slope", jnp.array([-0.6, 0.1, 0.4]))
    offset = numpyro.param("offset", jnp.array([0.2, 0.0, -0.1]))
    numpyro.param("control", jnp.array([0.3, -0.4, 0.2, 0.7]))
    numpyro.param("level", jnp.array(-1.0))
    numpyro.param("rebar_scale", jnp.array(0.8))
    numpyro.param("rebar_temperature", jnp.array(0.6))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Categorical(logits=x[:, None] * slope + offset))


def network(x):
    """Two layers of one Bernoulli each for every datum, and a discrete observation,
    so that dreams can be enumerated."""
    top = numpyro.param("top", jnp.array(0.4))
    down = numpyro.param("down", jnp.array([-0.8, 1.1]))
    out = numpyro.param("out", jnp.array([0.9, -0.7, 0.2]))
    with numpyro.plate("data", x.shape[0]):
        a = numpyro.sample("a", dist.Bernoulli(logits=top))
        b = numpyro.sample("b", dist.Bernoulli(logits=down[0] + down[1] * a))
        numpyro.sample("x", dist.Bernoulli(logits=out[0] * a + out[1] * b + out[2]), obs=x)


def network_guide(x):
    up = numpyro.param("up", jnp.array([[0.5, -0.3], [-0.2, 0.6]]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("a", dist.Bernoulli(logits=up[0, 0] + up[0, 1] * x))
        numpyro.sample("b", dist.Bernoulli(logits=up[1, 0] + up[1, 1] * x))


def upward_guide(x):
    """The second layer is drawn given the first."""
    up = numpyro.param("up", jnp.array([[0.5, -0.3, 0.0], [-0.2, 0.6, 0.8]]))
    with numpyro.plate("data", x.shape[0]):
        a = numpyro.sample("a", dist.Bernoulli(logits=up[0, 0] + up[0, 1] * x))
        numpyro.sample("b", dist.Bernoulli(logits=up[1, 0] + up[1, 1] * x + up[1, 2] * a))


BITS = np.array([1.0, 0.0], np.float32)


def parameters(model, guide, x):
    svi = SVI(model, guide, numpyro.optim.Adam(1.0), kayn.RWS(2))
    return svi.get_params(svi.init(jax.random.key(0), x))


def gaussian(x):
    mean = numpyro.param("mean", jnp.array(0.3))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        y = numpyro.sample("y", dist.Normal(0.5 * z, 0.8))
        numpyro.sample("x", dist.Normal(z + y, 0.6), obs=x)


def gaussian_guide(x):
    weights = numpyro.param("weights", jnp.array([[0.4, 0.1], [0.2, -0.1]]))
    scales = numpyro.param("scales", jnp.array([0.9, 0.7]), constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(weights[0, 0] * x + weights[0, 1], scales[0]))
        numpyro.sample("y", dist.Normal(weights[1, 0] * x + weights[1, 1], scales[1]))


def mixture_tables(params, x):
    """log p(z, x) and log q(z | x): [N, 3]"""
    log_p = jax.nn.log_softmax(params["theta"]) + jax.scipy.stats.norm.logpdf(
        x[:, None], jnp.array([-1.0, 0.5, 2.0]), 1.0
    )
    return log_p, jax.nn.log_softmax(x[:, None] * params["slope"] + params["offset"], -1)


def network_tables(params, x, dependent=False):
    """log p(a, b, x) and log q(a, b | x): [N, 2, 2]"""
    a, b = jnp.arange(2.0)[:, None], jnp.arange(2.0)[None, :]

    def bernoulli(logits, value):
        return value * jax.nn.log_sigmoid(logits) + (1 - value) * jax.nn.log_sigmoid(-logits)

    x = x[:, None, None]
    out, down, up = params["out"], params["down"], params["up"]
    log_p = bernoulli(params["top"], a) + bernoulli(down[0] + down[1] * a, b)
    log_p = log_p + bernoulli(out[0] * a + out[1] * b + out[2], x)
    given_a = up[1, 2] * a if dependent else 0.0
    log_q = bernoulli(up[0, 0] + up[0, 1] * x, a) + bernoulli(up[1, 0] + up[1, 1] * x + given_a, b)
    return log_p, log_q
