"""Score functions and paths: gradients of drawn latents beside exact ones,
after NumPyro's tests of `TraceGraph_ELBO`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp

import kayn
from experiments.peers.cases import Exact, case, gradient, nodes
from experiments.peers.losses import INNER, MARK, OUTER, bernoulli, bound, bound_of_two, no_guide


def network() -> None:
    u, v = numpyro.param("u", jnp.array(0.4)), numpyro.param("v", jnp.array([-0.8, 1.1]))
    a = numpyro.sample("a", dist.Bernoulli(logits=u))
    b = numpyro.sample("b", dist.Bernoulli(logits=v[0] + v[1] * a))
    numpyro.sample("x", dist.Normal(a - 1.5 * b, 1.0), obs=OUTER)


def network_guide(dependent: bool = False) -> Callable:
    def guide() -> None:
        g = numpyro.param("g", jnp.array([0.5, -0.3, 0.7]))
        a = numpyro.sample("a", dist.Bernoulli(logits=g[0]))
        numpyro.sample("b", dist.Bernoulli(logits=g[1] + (g[2] * a if dependent else 0.0)))

    return guide


def network_p(p: Any, a: int, b: int) -> float:
    return bernoulli(p["u"], a) + bernoulli(p["v"][0] + p["v"][1] * a, b) + stats.norm.logpdf(OUTER, a - 1.5 * b, 1)


def dependent_q(p: Any, a: int, b: int) -> float:
    return bernoulli(p["g"][0], a) + bernoulli(p["g"][1] + p["g"][2] * a, b)


@case("test_svi.py, test_gradient.py (TraceGraph_ELBO, dependent Bernoulli guide)", quick=True)
def score_gradient_of_a_dependent_guide() -> Any:
    exact = bound(2, 2, p=network_p, q=dependent_q)
    return gradient(kayn.Reinforce(1), network, network_guide(True), (), exact, draws=20_000)


@case("test_gradient.py (TraceGraph_ELBO, two particles)")
def score_gradient_with_two_particles() -> Any:
    exact = bound_of_two(2, 2, p=network_p, q=lambda p, i, v: bernoulli(p["g"][i], v))
    return gradient(kayn.Reinforce(2), network, network_guide(), (), exact, draws=40_000)


@case("test_gradient.py (baselines)", quick=True)
def leave_one_out_gradient_with_two_particles() -> Any:
    exact = bound_of_two(2, 2, p=network_p, q=lambda p, i, v: bernoulli(p["g"][i], v))
    return gradient(kayn.VIMCO(2), network, network_guide(), (), exact, draws=20_000)


@case("test_gradient.py (baselines, dependent guide)")
def leave_one_out_gradient_of_a_dependent_guide() -> Any:
    return gradient(kayn.VIMCO(2), network, network_guide(True), (), bound(2, 2, p=network_p, q=dependent_q))


@case("test_gradient.py (control variates)")
def relaxed_control_variate_gradient() -> Any:
    exact = bound_of_two(2, 2, p=network_p, q=lambda p, i, v: bernoulli(p["g"][i], v))

    def guide() -> None:
        numpyro.param("rebar_scale", 1.0)
        numpyro.param("rebar_temperature", 0.5, constraint=dist.constraints.positive)
        network_guide()()

    found = gradient(kayn.REBAR(2), network, guide, (), exact, draws=20_000)
    return [f for f in found if "rebar" not in f.what]  # whose gradient is that of the variance


@case("test_gradient.py (control variates without their parameters)", quick=True)
def relaxed_control_variate_without_parameters() -> Any:
    exact = bound_of_two(2, 2, p=network_p, q=lambda p, i, v: bernoulli(p["g"][i], v))
    return gradient(kayn.REBAR(2), network, network_guide(), (), exact)


@case("test_gradient.py (categorical, in a plate)")
def score_gradient_in_a_plate() -> Any:
    def model() -> None:
        u = numpyro.param("u", jnp.array([0.3, -0.2, 0.1]))
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Categorical(logits=u))
            numpyro.sample("x", dist.Normal(jnp.array([-1.0, 0.5, 2.0])[z], 1.0), obs=INNER)

    def guide() -> None:
        g = numpyro.param("g", jnp.array([[0.5, -0.3, 0.7], [0.0, 0.2, -0.4]]))
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Categorical(logits=g))

    def exact(p: Any) -> float:
        total = 0.0
        for x, g in zip(INNER, p["g"], strict=True):
            log_q = log_softmax(g)
            total += np.exp(log_q) @ (log_q - log_softmax(p["u"]) - stats.norm.logpdf(x, [-1.0, 0.5, 2.0], 1))
        return total

    return gradient(kayn.Reinforce(1), model, guide, (), exact, draws=20_000)


@case("test_svi.py (Beta and Bernoulli)", quick=True)
def gradient_of_a_beta_guide() -> Any:
    data = np.array([1.0, 1, 0, 1])

    def model() -> None:
        with_rate = numpyro.sample("rate", dist.Beta(2.0, 2.0))
        with numpyro.plate("data", 4):
            numpyro.sample("x", dist.Bernoulli(with_rate), obs=data)

    def guide() -> None:
        g = numpyro.param("g", jnp.array([0.8, 0.5]))
        numpyro.sample("rate", dist.Beta(jnp.exp(g[0]), jnp.exp(g[1])))

    x, w = nodes(0, 1, 400)

    def exact(p: Any) -> float:
        q = stats.beta(*np.exp(p["g"]))
        log_p = stats.beta.logpdf(x, 2, 2) + 3 * np.log(x) + np.log1p(-x)
        return float(w @ (q.pdf(x) * (q.logpdf(x) - log_p)))

    return gradient(kayn.VI(1), model, guide, (), exact, draws=20_000)


@case("test_gradient.py (normal latents that follow each other)")
def score_gradient_of_normal_latents() -> Any:
    def model() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("x", dist.Normal(b, 1.0), obs=OUTER)

    def guide() -> None:
        g = numpyro.param("g", jnp.array([0.2, 0.1, 0.6]))
        a = numpyro.sample("a", dist.Normal(g[0], 0.8))
        numpyro.sample("b", dist.Normal(g[1] + g[2] * a, 0.7))

    def exact(p: Any) -> float:
        m, c, s = p["g"]
        mean_b, var_b = c + s * m, 0.49 + s**2 * 0.64
        entropy = 0.5 * np.log(2 * np.pi * np.e * 0.64) + 0.5 * np.log(2 * np.pi * np.e * 0.49)
        squares = m**2 + 0.64 + (mean_b - m) ** 2 + 0.49 + (s - 1) ** 2 * 0.64 + (OUTER - mean_b) ** 2 + var_b
        return 0.5 * squares + 1.5 * np.log(2 * np.pi) - entropy

    plain = gradient(kayn.Reinforce(1), model, guide, (), exact, draws=20_000)
    return plain + gradient(kayn.VI(1), model, guide, (), exact, draws=20_000)


@case("test_gradient.py (latents with and without a path)", quick=True)
def gradient_of_mixed_latents() -> Any:
    def model() -> None:
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Normal(2.0 * a, 1.0))
        numpyro.sample("x", dist.Normal(b, 1.0), obs=OUTER)

    def guide() -> None:
        g = numpyro.param("g", jnp.array([0.2, 0.5]))
        numpyro.sample("a", dist.Bernoulli(logits=g[0]))
        numpyro.sample("b", dist.Normal(g[1], 0.8))

    def exact(p: Any) -> float:
        on, m = expit(p["g"][0]), p["g"][1]
        prior = on * np.log(on / 0.4) + (1 - on) * np.log((1 - on) / 0.6)
        squares = on * (m - 2) ** 2 + (1 - on) * m**2 + 0.64 + (OUTER - m) ** 2 + 0.64
        return prior + 0.5 * squares + np.log(2 * np.pi) - 0.5 * np.log(2 * np.pi * np.e * 0.64)

    return gradient(kayn.Reinforce(1), model, guide, (), exact, draws=20_000)


ROWS = np.array([0.6, -0.4, 1.2, 0.2])


@case("examples/vae.py (minibatches)")
def gradient_of_an_autoencoder_in_minibatches() -> Any:
    def model(x: Any) -> None:
        w = numpyro.param("w", jnp.array([0.7, 0.2]))
        with numpyro.plate("data", 4, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(w[0] * z + w[1], 1.0), obs=x[rows])

    def guide(x: Any) -> None:
        v = numpyro.param("v", jnp.array([0.4, -0.1]))
        with numpyro.plate("data", 4, subsample_size=2) as rows:
            numpyro.sample("z", dist.Normal(v[0] * x[rows] + v[1], 0.8))

    def exact(p: Any) -> float:
        m = p["v"][0] * ROWS + p["v"][1]
        w, c = p["w"]
        squares = m**2 + 0.64 + (ROWS - w * m - c) ** 2 + w**2 * 0.64
        return float(np.sum(0.5 * squares + np.log(2 * np.pi) - 0.5 * np.log(2 * np.pi * np.e * 0.64)))

    return gradient(kayn.VI(1, "local"), model, guide, (jnp.asarray(ROWS),), exact, draws=20_000)


@case("test_enum_elbo.py (subsampled plates)", quick=True)
def loss_of_enumerated_latents_in_minibatches() -> Any:
    def model() -> None:
        u, locs = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("locs", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", 4, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Categorical(logits=u), infer=MARK)
            numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=jnp.asarray(ROWS)[rows])

    def exact(p: Any) -> float:
        return -float(sum(logsumexp(log_softmax(p["u"]) + stats.norm.logpdf(x, p["locs"], 1)) for x in ROWS))

    return gradient(kayn.VI(1), model, no_guide, (), exact)


@case("examples/ss_vae (labels enumerated where unknown)")
def loss_of_labels_known_in_part() -> Any:
    labels = np.array([1, 0, -1, -1])

    def model() -> None:
        u, locs = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("locs", jnp.array([-1.0, 1.0]))
        with numpyro.plate("known", 2):
            y = numpyro.sample("y", dist.Categorical(logits=u), obs=labels[:2])
            numpyro.sample("x", dist.Normal(locs[y], 1.0), obs=ROWS[:2])
        with numpyro.plate("unknown", 2):
            y = numpyro.sample("guessed", dist.Categorical(logits=u), infer=MARK)
            numpyro.sample("seen", dist.Normal(locs[y], 1.0), obs=ROWS[2:])

    def exact(p: Any) -> float:
        tables = [log_softmax(p["u"]) + stats.norm.logpdf(x, p["locs"], 1) for x in ROWS]
        return -float(sum(t[y] if y >= 0 else logsumexp(t) for t, y in zip(tables, labels, strict=True)))

    return gradient(kayn.VI(1), model, no_guide, (), exact, draws=2)


@case("examples/minipyro.py", quick=True)
def gradient_of_a_normal_mean() -> Any:
    def model(x: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0, 10))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mean, 1), obs=x)

    def guide(x: Any) -> None:
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.0), scale))

    def exact(p: Any) -> float:
        m, s = p["loc"], p["scale"]
        cross = Exact(lambda v: stats.norm.logpdf(v, m, s), nodes(m - 12 * s, m + 12 * s, 200))
        log_p = stats.norm.logpdf(cross.at[0], 0, 10) + stats.norm.logpdf(ROWS[:, None], cross.at[0]).sum(0)
        return -cross.mean(log_p) - 0.5 * np.log(2 * np.pi * np.e * s**2)

    return gradient(kayn.VI(1), model, guide, (ROWS,), exact, draws=20_000)
