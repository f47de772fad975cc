"""Densities written as factors or distributions of one's own, circular data, volatility and smoothing,
and answers about discrete latents."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

from experiments.peers.cases import Exact, case, compare, figure, fitted, nodes, stack, states, weighed

MARK = {"enumerate": "parallel"}


def moons(x: Any, xp: Any) -> Any:
    """Two moons, side by side."""
    radius = xp.sqrt((x**2).sum(-1))
    bumps = [-0.5 * ((x[..., 0] + sign * 2) / 0.6) ** 2 for sign in (1, -1)]
    return xp.logaddexp(*bumps) - 0.5 * ((radius - 2) / 0.4) ** 2


def of_plane(log_density: Any) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    exact = Exact(lambda a, b: log_density(np.stack(np.broadcast_arrays(a, b), -1)), *[nodes(-5, 5, 160)] * 2)
    return exact.log_z, stack([exact.moments(v) for v in exact.at])


@case("examples/neutra.py (dual moon, as a factor)")
def two_moons_by_a_factor() -> Any:
    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.factor("moons", moons(x, jnp))

    log_z, x = of_plane(lambda x: moons(x, np) + stats.norm.logpdf(x, 0, 2).sum(-1))
    return compare(fitted(model), log_z, x=x)


@case("examples/neutra.py (dual moon, as a distribution)")
def two_moons_by_a_distribution() -> Any:
    class Moons(dist.Distribution):
        support = dist.constraints.real_vector

        def __init__(self) -> None:
            super().__init__(event_shape=(2,))

        def sample(self, key: Any, sample_shape: tuple = ()) -> Any:
            return 2.0 * dist.Normal(jnp.zeros(2), 1).sample(key, sample_shape)

        def log_prob(self, value: Any) -> Any:
            return moons(value, jnp)

    def model() -> None:
        numpyro.sample("x", Moons())

    log_z, x = of_plane(lambda x: moons(x, np))
    return compare(fitted(model), log_z, x=x)


@case("examples/neutra.py (improper prior and factor)", quick=True)
def two_moons_over_an_improper_prior() -> Any:
    def model() -> None:
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        numpyro.factor("moons", moons(x, jnp))

    log_z, x = of_plane(lambda x: moons(x, np))
    return compare(fitted(model), log_z, x=x)


@case("examples/gaussian_shells.py")
def gaussian_shells() -> Any:
    centres = np.array([[-2.0, 0.0], [2.0, 0.0]])

    def shells(x: Any, xp: Any) -> Any:
        return [-0.5 * ((xp.sqrt(((x - c) ** 2).sum(-1)) - 1) / 0.3) ** 2 for c in centres]

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0, 2).expand([2]).to_event(1))
        c = numpyro.sample("c", dist.Bernoulli(0.3), infer=MARK)
        first, second = shells(x, jnp)
        numpyro.factor("shell", jnp.where(c == 1, second, first))

    def log_density(x: Any) -> Any:
        first, second = shells(x, np)
        return np.logaddexp(np.log(0.7) + first, np.log(0.3) + second) + stats.norm.logpdf(x, 0, 2).sum(-1)

    log_z, x = of_plane(log_density)
    return compare(fitted(model), log_z, x=x)


ANGLES = np.array([-2.6, -2.1, 0.8, 1.1, 0.6])


@case("examples/ssbvm_mixture.py")
def circular_mixture() -> Any:
    def model(angles: Any) -> None:
        share = numpyro.sample("share", dist.Beta(2.0, 2.0))
        first = numpyro.sample("first", dist.VonMises(-2.0, 2.0))
        second = numpyro.sample("second", dist.VonMises(1.0, 2.0))
        with numpyro.plate("data", len(angles)):
            z = numpyro.sample("z", dist.Bernoulli(share), infer=MARK)
            numpyro.sample("angles", dist.VonMises(jnp.where(z == 1, second, first), 4.0), obs=angles)

    def log_joint(share: Any, first: Any, second: Any) -> Any:
        a = np.log1p(-share)[..., None] + stats.vonmises.logpdf(ANGLES, 4.0, first[..., None])
        b = np.log(share)[..., None] + stats.vonmises.logpdf(ANGLES, 4.0, second[..., None])
        priors = stats.vonmises.logpdf(first, 2.0, -2.0) + stats.vonmises.logpdf(second, 2.0, 1.0)
        return np.logaddexp(a, b).sum(-1) + stats.beta.logpdf(share, 2, 2) + priors

    circle = nodes(-np.pi, np.pi, 60)
    exact = Exact(log_joint, nodes(0, 1, 40), circle, circle)
    return compare(fitted(model, ANGLES), exact.log_z, share=exact.moments(exact.at[0]))


@case("docs (sine-skewed angles)")
def skewed_angles() -> Any:
    def model(pairs: Any) -> None:
        skew = numpyro.sample("skew", dist.Uniform(-0.5, 0.5))
        base = dist.SineBivariateVonMises(0.0, 0.0, 2.0, 2.0, correlation=0.5)
        with numpyro.plate("data", len(pairs)):
            law = dist.SineSkewed(base, jnp.stack([skew, jnp.zeros_like(skew)], -1))
            numpyro.sample("pairs", law, obs=pairs)

    pairs = np.stack([ANGLES, ANGLES[::-1]], 1)

    def kernel(a: Any, b: Any) -> Any:
        return 2 * np.cos(a) + 2 * np.cos(b) + 0.5 * np.sin(a) * np.sin(b)

    norm = Exact(kernel, *[nodes(-np.pi, np.pi, 100)] * 2).log_z
    base = (kernel(pairs[:, 0], pairs[:, 1]) - norm).sum()
    exact = Exact(lambda s: base + np.log1p(s[:, None] * np.sin(pairs[:, 0])).sum(-1), nodes(-0.5, 0.5))
    return compare(fitted(model, pairs), exact.log_z, skew=exact.moments(exact.at[0]))


RETURNS = np.array([0.3, -0.1, 0.8, -1.5, 0.4])


def volatility_exactly() -> Exact:
    """Step size s ~ Uniform(0.12, 2), log volatility h a walk of such steps from 0, returns N(0, exp(h)):
    states on a grid."""
    h, wh = nodes(-6, 6, 200)
    likely = stats.norm.pdf(RETURNS[:, None], 0, np.exp(h))  # [steps, nodes]

    def log_joint(s: Any) -> Any:
        found = []
        for step in s:
            move = stats.norm.pdf(h[:, None], h, step) * wh  # to, from
            alive = stats.norm.pdf(h, 0, step) * likely[0]
            for row in likely[1:]:
                alive = (move @ alive) * row
            found.append(np.log(alive @ wh))
        return np.array(found) - np.log(1.88)

    return Exact(log_joint, nodes(0.12, 2, 40))


@case("examples/stochastic_volatility.py (a walk as one site)")
def stochastic_volatility() -> Any:
    def model(r: Any) -> None:
        s = numpyro.sample("s", dist.Uniform(0.12, 2.0))
        h = numpyro.sample("h", dist.GaussianRandomWalk(scale=s, num_steps=len(r)))
        numpyro.sample("r", dist.Normal(0, jnp.exp(h)), obs=r)

    exact = volatility_exactly()
    return compare(fitted(model, RETURNS), exact.log_z, s=exact.moments(exact.at[0]))


@case("examples/stochastic_volatility.py (as a loop)")
def stochastic_volatility_in_a_loop() -> Any:
    def model(r: Any) -> None:
        s = numpyro.sample("s", dist.Uniform(0.12, 2.0))

        def step(h: Any, now: Any) -> Any:
            h = numpyro.sample("h", dist.Normal(h, s))
            numpyro.sample("r", dist.Normal(0, jnp.exp(h)), obs=now)
            return h, None

        scan(step, jnp.array(0.0), r)

    exact = volatility_exactly()
    return compare(fitted(model, RETURNS), exact.log_z, s=exact.moments(exact.at[0]))


@case("examples/holt_winters.py")
def smoothing_of_level_and_trend() -> Any:
    y = np.array([1.0, 1.4, 1.5, 2.2, 2.4, 3.1])

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Beta(2.0, 2.0))
        b = numpyro.sample("b", dist.Beta(1.0, 3.0))

        def step(carry: Any, now: Any) -> Any:
            level, trend = carry
            now = numpyro.sample("y", dist.Normal(level + trend, 0.4), obs=now)
            new = a * now + (1 - a) * (level + trend)
            return (new, b * (new - level) + (1 - b) * trend), None

        scan(step, (y[0], 0.0), y[1:])

    def log_joint(a: Any, b: Any) -> Any:
        level, trend, total = y[0], 0.0, 0.0
        for now in y[1:]:
            total = total + stats.norm.logpdf(now, level + trend, 0.4)
            new = a * now + (1 - a) * (level + trend)
            level, trend = new, b * (new - level) + (1 - b) * trend
        return total + stats.beta.logpdf(a, 2, 2) + stats.beta.logpdf(b, 1, 3)

    exact = Exact(log_joint, nodes(0, 1), nodes(0, 1))
    return compare(fitted(model, y), exact.log_z, a=exact.moments(exact.at[0]), b=exact.moments(exact.at[1]))


SEEN = np.array([0.2, 1.4, 0.9, -0.5])


@case("test_infer_discrete.py (means, draws and the mode of a chain)", quick=True)
def discrete_answers_of_a_chain() -> Any:
    move = np.array([[0.7, 0.3], [0.4, 0.6]])

    def model(y: Any) -> None:
        def step(x: Any, now: Any) -> Any:
            x = numpyro.sample("x", dist.Categorical(jnp.asarray(move)[x]), infer=MARK)
            numpyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=now)
            return x, None

        scan(step, jnp.array(0), y)

    paths = states(2, 2, 2, 2)
    before = np.concatenate([np.zeros((16, 1), int), paths[:, :-1]], 1)
    terms = np.log(move[before, paths]).sum(1) + stats.norm.logpdf(SEEN, 2.0 * paths, 1).sum(1)
    p = np.exp(terms - logsumexp(terms))
    posterior = weighed(model, SEEN, guide=lambda y: None)
    drawn = np.asarray(posterior.sample(0, 20_000)["x"])
    shares = np.bincount(drawn @ [8, 4, 2, 1], minlength=16) / 20_000
    return [
        *compare(posterior, logsumexp(terms), x=(p @ paths, None)),
        figure("shares of drawn paths", shares, p, 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4),
        figure("most probable path", posterior.mode()["x"], paths[np.argmax(p)], 1e-6),
    ]


@case("test_infer_discrete.py (rows that share a latent)")
def discrete_answers_in_plates() -> Any:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Bernoulli(0.3), infer=MARK)
        with numpyro.plate("data", 4):
            b = numpyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a), infer=MARK)
            numpyro.sample("y", dist.Normal(2.0 * b, 1.0), obs=y)

    values = states(2, 2, 2, 2, 2)
    a, b = values[:, :1], values[:, 1:]
    rate = 0.2 + 0.5 * a
    terms = np.log(np.where(b, rate, 1 - rate)).sum(1) + np.log(np.where(a, 0.3, 0.7))[:, 0]
    terms = terms + stats.norm.logpdf(SEEN, 2.0 * b, 1).sum(1)
    p = np.exp(terms - logsumexp(terms))
    posterior = weighed(model, SEEN, guide=lambda y: None)
    mode = posterior.mode()
    return [
        *compare(posterior, logsumexp(terms), a=((p @ a)[0], None), b=(p @ b, None)),
        figure("most probable", np.r_[mode["a"], mode["b"]], values[np.argmax(p)], 1e-6),
    ]


@case("test_funsor.py (mixture as MixtureSameFamily)", quick=True)
def mixture_as_one_distribution() -> Any:
    def model(y: Any) -> None:
        share = numpyro.sample("share", dist.Beta(1.0, 1.0))
        mixing = dist.Categorical(probs=jnp.stack([1 - share, share], -1))
        with numpyro.plate("data", 4):
            parts = dist.Normal(jnp.array([0.0, 2.0]), 1.0)
            numpyro.sample("y", dist.MixtureSameFamily(mixing, parts), obs=y)

    def log_joint(s: Any) -> Any:
        s = s[:, None]
        return np.log((1 - s) * stats.norm.pdf(SEEN) + s * stats.norm.pdf(SEEN, 2)).sum(-1)

    exact = Exact(log_joint, nodes(0, 1))
    return compare(fitted(model, SEEN), exact.log_z, share=exact.moments(exact.at[0]))
