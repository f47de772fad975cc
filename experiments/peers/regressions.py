"""Regressions and processes: shrinkage, networks, Gaussian processes, ordinal, inflated,
censored and incomplete data, after NumPyro's examples."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro.contrib.hsgp.approximation import hsgp_squared_exponential
from scipy import stats

from experiments.peers.cases import Exact, case, compare, fitted, nodes, stack

X = np.array([-1.5, -0.8, -0.1, 0.4, 1.1, 1.7])
Y = np.array([-0.9, -1.1, 0.2, 0.3, 1.4, 0.8])


def marginal(cov: Any, y: Any) -> Any:
    """Log density of a centred normal: cov [..., n, n]."""
    root = np.linalg.cholesky(cov)
    white = np.linalg.solve(root, np.broadcast_to(y[:, None], (*cov.shape[:-1], 1)))[..., 0]
    half_log_det = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    return -0.5 * (white**2).sum(-1) - half_log_det - len(y) / 2 * np.log(2 * np.pi)


def cauchy_on_log(v: Any, scale: float = 1.0) -> Any:
    """Log density of the logarithm of a half-Cauchy number."""
    return stats.halfcauchy.logpdf(np.exp(v), scale=scale) + v


DESIGN = np.stack([X, np.cos(3 * X)], 1)


@case("examples/horseshoe_regression.py")
def horseshoe_regression() -> Any:
    def model(y: Any) -> None:
        width = numpyro.sample("width", dist.HalfCauchy(1.0))
        with numpyro.plate("columns", 2):
            local = numpyro.sample("local", dist.HalfCauchy(1.0))
            z = numpyro.sample("z", dist.Normal(0, 1))
        beta = numpyro.deterministic("beta", width * local * z)
        numpyro.sample("y", dist.Normal(DESIGN @ beta, 0.5).to_event(1), obs=y)

    outer = DESIGN[:, None] * DESIGN[None]  # [n, n, columns]

    def cov(width: Any, *local: Any) -> Any:
        spread = [np.exp(2 * (width + v)) for v in local]
        return 0.25 * np.eye(6) + sum(s[..., None, None] * outer[..., i] for i, s in enumerate(spread))

    def log_joint(*logs: Any) -> Any:
        return marginal(cov(*logs), Y) + sum(cauchy_on_log(v) for v in logs)

    exact = Exact(log_joint, *[nodes(-9, 7, 36)] * 3)
    inverse = np.linalg.inv(cov(*exact.at))
    gain = np.einsum("...ij,j->...i", inverse, Y) @ DESIGN
    beta = []
    for i, local in enumerate(exact.at[1:]):
        spread = np.exp(2 * (exact.at[0] + local))
        explained = np.einsum("i,...ij,j->...", DESIGN[:, i], inverse, DESIGN[:, i])
        beta.append(exact.moments(spread * gain[..., i], spread - spread**2 * explained))
    return compare(fitted(model, Y), exact.log_z, beta=stack(beta))


@case("examples/sparse_regression.py")
def sparse_regression_with_interactions() -> Any:
    def kernel(first: Any, second: Any, eta: Any, xp: Any) -> Any:
        a, b = first[..., None, None] * DESIGN[:, 0], second[..., None, None] * DESIGN[:, 1]
        dot = xp.swapaxes(a, -1, -2) * a + xp.swapaxes(b, -1, -2) * b
        return 0.5 * (eta[..., None, None] * (1 + dot)) ** 2 + dot + 0.25 * np.eye(6)

    def model(y: Any) -> None:
        local = numpyro.sample("local", dist.HalfCauchy(1.0).expand([2]).to_event(1))
        eta = numpyro.sample("eta", dist.HalfNormal(1.0))
        cov = kernel(local[..., 0], local[..., 1], eta, jnp)
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(6), covariance_matrix=cov), obs=y)

    def log_joint(first: Any, second: Any, eta: Any) -> Any:
        shape = np.broadcast_shapes(first.shape, second.shape, eta.shape)
        first_, second_, eta_ = (np.broadcast_to(v, shape) for v in (first, second, eta))
        likely = marginal(kernel(np.exp(first_), np.exp(second_), eta_, np), Y)
        return likely + cauchy_on_log(first) + cauchy_on_log(second) + stats.halfnorm.logpdf(eta)

    exact = Exact(log_joint, *[nodes(-9, 7, 40)] * 2, nodes(0, 5, 30))
    return compare(fitted(model, Y), exact.log_z, eta=exact.moments(exact.at[2]))


@case("examples/bnn.py", quick=True)
def tiny_network() -> Any:
    """One unit, whose weights may change signs together."""

    def model(x: Any, y: Any) -> None:
        inner = numpyro.sample("inner", dist.Normal(0, 1))
        outer = numpyro.sample("outer", dist.Normal(0, 1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(outer * jnp.tanh(inner * x), 0.5), obs=y)

    def log_joint(inner: Any, outer: Any) -> Any:
        mean = outer[..., None] * np.tanh(inner[..., None] * X)
        return stats.norm.logpdf(Y, mean, 0.5).sum(-1) + stats.norm.logpdf(inner) + stats.norm.logpdf(outer)

    exact = Exact(log_joint, nodes(-5, 5, 120), nodes(-5, 5, 120))
    right = {"inner": exact.moments(exact.at[0]), "outer": exact.moments(exact.at[1])}
    return compare(fitted(model, X, Y), exact.log_z, **right)


@case("examples/gp.py", quick=True)
def gaussian_process() -> Any:
    apart = (X[:, None] - X) ** 2

    def model(y: Any) -> None:
        variance = numpyro.sample("variance", dist.LogNormal(0, 1))
        length = numpyro.sample("length", dist.LogNormal(0, 1))
        noise = numpyro.sample("noise", dist.LogNormal(-1, 0.5))
        cov = variance * jnp.exp(-0.5 * apart / length**2) + (noise + 1e-6) * jnp.eye(6)
        numpyro.sample("y", dist.MultivariateNormal(loc=jnp.zeros(6), covariance_matrix=cov), obs=y)

    def log_joint(*logs: Any) -> Any:
        v, length, noise = (np.exp(u)[..., None, None] for u in logs)
        likely = marginal(v * np.exp(-0.5 * apart / length**2) + (noise + 1e-6) * np.eye(6), Y)
        priors = [stats.norm.logpdf(logs[0]), stats.norm.logpdf(logs[1]), stats.norm.logpdf(logs[2], -1, 0.5)]
        return likely + sum(priors)

    exact = Exact(log_joint, nodes(-5, 5, 40), nodes(-5, 5, 40), nodes(-4, 2, 30))
    names = ("variance", "length", "noise")
    right = {n: exact.moments(np.exp(v)) for n, v in zip(names, exact.at, strict=True)}
    return compare(fitted(model, Y), exact.log_z, **right)


@case("examples/hsgp.py")
def gaussian_process_by_basis_functions() -> Any:
    def model(x: Any, y: Any) -> None:
        alpha = numpyro.sample("alpha", dist.LogNormal(0, 0.5))
        length = numpyro.sample("length", dist.LogNormal(0, 0.5))
        f = hsgp_squared_exponential(x=x, alpha=alpha, length=length, ell=3.0, m=4)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(f, 0.5), obs=y)

    root = np.arange(1, 5) * np.pi / 6
    basis = np.sin(root * (X[:, None] + 3)) / np.sqrt(3)

    def log_joint(log_alpha: Any, log_length: Any) -> Any:
        alpha, length = np.exp(log_alpha)[..., None], np.exp(log_length)[..., None]
        spectrum = alpha * np.sqrt(2 * np.pi) * length * np.exp(-0.5 * (length * root) ** 2)
        cov = np.einsum("im,...m,jm->...ij", basis, spectrum, basis) + 0.25 * np.eye(6)
        return marginal(cov, Y) + stats.norm.logpdf(log_alpha, 0, 0.5) + stats.norm.logpdf(log_length, 0, 0.5)

    exact = Exact(log_joint, nodes(-3, 3), nodes(-3, 3))
    right = {"alpha": exact.moments(np.exp(exact.at[0])), "length": exact.moments(np.exp(exact.at[1]))}
    return compare(fitted(model, X, Y), exact.log_z, **right)


@case("docs (ordinal regression)", quick=True)
def ordinal_regression() -> Any:
    y = np.array([0, 0, 1, 1, 2, 2])

    def model(x: Any, y: Any) -> None:
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        shares = dist.TransformedDistribution(
            dist.Dirichlet(jnp.array([2.0, 2.0, 2.0])), dist.transforms.SimplexToOrderedTransform(0.0)
        )
        cuts = numpyro.sample("cuts", shares)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)

    def log_joint(slope: Any, a: Any, b: Any) -> Any:
        """a: the first share, b: the second's part of the rest."""
        first, second = np.log(a / (1 - a)), np.log((a + (1 - a) * b) / ((1 - a) * (1 - b)))
        low = np.stack(np.broadcast_arrays(-np.inf, first, second), -1)[..., y]
        high = np.stack(np.broadcast_arrays(first, second, np.inf), -1)[..., y]
        mean = slope[..., None] * X
        likely = np.log(stats.logistic.cdf(high - mean) - stats.logistic.cdf(low - mean)).sum(-1)
        return likely + stats.norm.logpdf(slope) + stats.beta.logpdf(a, 2, 4) + stats.beta.logpdf(b, 2, 2)

    exact = Exact(log_joint, nodes(-3, 6), nodes(0, 1, 60), nodes(0, 1, 60))
    return compare(fitted(model, X, y), exact.log_z, slope=exact.moments(exact.at[0]))


@case("examples/zero_inflated_poisson.py", quick=True)
def counts_with_too_many_zeros() -> Any:
    y = np.array([0, 0, 3, 0, 5, 2, 0, 4])

    def model(y: Any) -> None:
        gate = numpyro.sample("gate", dist.Beta(1.0, 1.0))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.ZeroInflatedPoisson(gate, rate), obs=y)

    def log_joint(gate: Any, rate: Any) -> Any:
        p = (1 - gate[..., None]) * stats.poisson.pmf(y, rate[..., None]) + gate[..., None] * (y == 0)
        return np.log(p).sum(-1) + stats.gamma.logpdf(rate, 2, scale=2)

    exact = Exact(log_joint, nodes(0, 1), nodes(0, 20, 120))
    right = {"gate": exact.moments(exact.at[0]), "rate": exact.moments(exact.at[1])}
    return compare(fitted(model, y), exact.log_z, **right)


@case("examples/ode.py")
def predators_and_prey() -> Any:
    times, start = np.linspace(0, 4, 9), np.array([2.0, 1.0])
    rng = np.random.default_rng(5)

    def flow(z: Any, grow: Any, die: Any, xp: Any) -> Any:
        u, v = z
        return xp.stack([grow * u - 0.8 * u * v, -die * v + 0.6 * u * v])

    def solved(grow: Any, die: Any, fine: int = 40) -> np.ndarray:
        """Populations by Runge and Kutta's rule: [times, 2, ...]"""
        grow, die = np.broadcast_arrays(grow, die)
        z = np.broadcast_to(start.reshape(2, *(1,) * grow.ndim), (2, *grow.shape))
        h, found = (times[1] - times[0]) / fine, [z]
        for _ in times[1:]:
            for _ in range(fine):
                a = flow(z, grow, die, np)
                b = flow(z + h / 2 * a, grow, die, np)
                c = flow(z + h / 2 * b, grow, die, np)
                d = flow(z + h * c, grow, die, np)
                z = z + h / 6 * (a + 2 * b + 2 * c + d)
            found.append(z)
        return np.stack(found)

    y = np.exp(np.log(solved(np.array(1.0), np.array(0.9))) + 0.3 * rng.normal(size=(9, 2)))

    def model(y: Any) -> None:
        grow = numpyro.sample("grow", dist.LogNormal(0, 0.3))
        die = numpyro.sample("die", dist.LogNormal(0, 0.3))
        z = odeint(lambda z, t, g, d: flow(z, g, d, jnp), jnp.asarray(start), jnp.asarray(times), grow, die)
        numpyro.sample("y", dist.LogNormal(jnp.log(z), 0.3).to_event(2), obs=y)

    def log_joint(log_grow: Any, log_die: Any) -> Any:
        z = np.moveaxis(solved(np.exp(log_grow), np.exp(log_die)), (0, 1), (-2, -1))
        likely = stats.norm.logpdf(np.log(y), np.log(z), 0.3) - np.log(y)
        return likely.sum((-1, -2)) + stats.norm.logpdf(log_grow, 0, 0.3) + stats.norm.logpdf(log_die, 0, 0.3)

    exact = Exact(log_joint, nodes(-1.2, 1.2, 40), nodes(-1.2, 1.2, 40))
    right = {"grow": exact.moments(np.exp(exact.at[0])), "die": exact.moments(np.exp(exact.at[1]))}
    return compare(fitted(model, jnp.asarray(y)), exact.log_z, **right)


@case("examples (correlations by LKJ)", quick=True)
def correlated_pairs() -> Any:
    pairs = np.stack([X, Y], 1)

    def model(pairs: Any) -> None:
        root = numpyro.sample("root", dist.LKJCholesky(2, concentration=2.0))
        numpyro.deterministic("rho", root[1, 0])
        with numpyro.plate("data", len(pairs)):
            numpyro.sample("pairs", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root), obs=pairs)

    def log_joint(rho: Any) -> Any:
        cov = np.eye(2) + rho[:, None, None] * (1 - np.eye(2))
        likely = sum(marginal(cov, pair) for pair in pairs)
        return likely + stats.beta.logpdf((rho + 1) / 2, 2, 2) - np.log(2)

    exact = Exact(log_joint, nodes(-1, 1, 200))
    return compare(fitted(model, pairs), exact.log_z, rho=exact.moments(exact.at[0]))
