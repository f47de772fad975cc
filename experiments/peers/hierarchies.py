"""Hierarchical models and regressions of counts, after NumPyro's examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from scipy import stats
from scipy.special import logsumexp

from experiments.peers.cases import Exact, case, compare, figure, fitted, hermite, nodes, nuts, stack

TRIALS = np.array([45, 45, 45, 30, 60, 45])
HITS = np.array([18, 12, 15, 7, 14, 11])


@case("examples/baseball.py", quick=True)
def baseball_pooled() -> Any:
    def model(hits: Any) -> None:
        rate = numpyro.sample("rate", dist.Uniform(0, 1))
        with numpyro.plate("players", len(TRIALS)):
            numpyro.sample("hits", dist.Binomial(TRIALS, probs=rate), obs=hits)

    exact = Exact(lambda p: stats.binom.logpmf(HITS, TRIALS, p[:, None]).sum(-1), nodes(0, 1))
    return compare(fitted(model, HITS), exact.log_z, rate=exact.moments(exact.at[0]))


@case("examples/baseball.py")
def baseball_not_pooled() -> Any:
    def model(hits: Any) -> None:
        with numpyro.plate("players", len(TRIALS)):
            rate = numpyro.sample("rate", dist.Uniform(0, 1))
            numpyro.sample("hits", dist.Binomial(TRIALS, probs=rate), obs=hits)

    right = stats.beta(HITS + 1, TRIALS - HITS + 1)
    return compare(fitted(model, HITS), -np.log(TRIALS + 1).sum(), rate=(right.mean(), right.std()))


@case("examples/baseball.py")
def baseball_partially_pooled() -> Any:
    def model(hits: Any) -> None:
        mean = numpyro.sample("mean", dist.Uniform(0, 1))
        kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
        with numpyro.plate("players", len(TRIALS)):
            rate = numpyro.sample("rate", dist.Beta(mean * kappa, (1 - mean) * kappa))
            numpyro.sample("hits", dist.Binomial(TRIALS, probs=rate), obs=hits)

    def log_joint(mean: Any, log_kappa: Any) -> Any:
        kappa = np.exp(log_kappa)
        a, b = (mean * kappa)[..., None], ((1 - mean) * kappa)[..., None]
        likely = stats.betabinom.logpmf(HITS, TRIALS, a, b).sum(-1)
        return likely + stats.pareto.logpdf(kappa, 1.5) + log_kappa

    exact = Exact(log_joint, nodes(0, 1, 100), nodes(0, 12, 100))
    mean, log_kappa = exact.at
    a, b = mean * np.exp(log_kappa), (1 - mean) * np.exp(log_kappa)
    by_player = [
        exact.moments(stats.beta.mean(a + h, b + n - h), stats.beta.var(a + h, b + n - h))
        for h, n in zip(HITS, TRIALS, strict=True)
    ]
    return compare(fitted(model, HITS), exact.log_z, mean=exact.moments(mean), rate=stack(by_player))


@case("examples/baseball.py")
def baseball_partially_pooled_by_logits() -> Any:
    def model(hits: Any) -> None:
        loc = numpyro.sample("loc", dist.Normal(-1, 1))
        scale = numpyro.sample("scale", dist.HalfCauchy(1))
        with numpyro.plate("players", len(TRIALS)):
            skill = numpyro.sample("skill", dist.Normal(loc, scale))
            numpyro.sample("hits", dist.Binomial(TRIALS, logits=skill), obs=hits)

    z, log_w = hermite()

    def log_joint(loc: Any, log_scale: Any) -> Any:
        p = 1 / (1 + np.exp(-(loc[..., None] + np.exp(log_scale)[..., None] * z)))
        players = sum(
            logsumexp(stats.binom.logpmf(h, n, p) + log_w, axis=-1) for h, n in zip(HITS, TRIALS, strict=True)
        )
        return players + stats.norm.logpdf(loc, -1, 1) + stats.halfcauchy.logpdf(np.exp(log_scale)) + log_scale

    exact = Exact(log_joint, nodes(-3, 1), nodes(-10, 3))
    return compare(fitted(model, HITS), exact.log_z, loc=exact.moments(exact.at[0]))


EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def schools(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(ERRORS)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def schools_with_offsets(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(ERRORS)):
        offset = numpyro.sample("offset", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * offset)
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def schools_exactly() -> dict[str, Any]:
    def log_joint(mu: Any, log_tau: Any) -> Any:
        tau = np.exp(log_tau)
        spread = np.sqrt(tau[..., None] ** 2 + ERRORS**2)
        likely = stats.norm.logpdf(EFFECTS, mu[..., None], spread).sum(-1)
        return likely + stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5) + log_tau

    exact = Exact(log_joint, nodes(-20, 30, 120), nodes(-12, 6, 160))
    mu, tau = exact.at[0], np.exp(exact.at[1])
    theta = []
    for y, s in zip(EFFECTS, ERRORS, strict=True):
        share = tau**2 / (tau**2 + s**2)
        theta.append(exact.moments(mu + share * (y - mu), share * s**2))
    return {"log_z": exact.log_z, "mu": exact.moments(mu), "theta": stack(theta)}


@case("README (eight schools)")
def eight_schools_centred() -> Any:
    return compare(fitted(schools, EFFECTS), **schools_exactly())


@case("README (eight schools, LocScaleReparam)")
def eight_schools_reparameterised() -> Any:
    model = handlers.reparam(schools, config={"theta": LocScaleReparam(0)})
    return compare(fitted(model, EFFECTS), **schools_exactly())


@case("README (eight schools, TransformReparam)", quick=True)
def eight_schools_by_affine_transformation() -> Any:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("schools", len(ERRORS)), handlers.reparam(config={"theta": TransformReparam()}):
            moved = dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(mu, tau))
            theta = numpyro.sample("theta", moved)
            numpyro.sample("y", dist.Normal(theta, ERRORS), obs=y)

    return compare(fitted(model, EFFECTS), **schools_exactly())


@case("examples/minipyro.py and README (offsets by hand)")
def eight_schools_with_offsets() -> Any:
    return compare(fitted(schools_with_offsets, EFFECTS), **schools_exactly())


def funnel(y: Any, reparam: bool = False) -> None:
    config = {"x": LocScaleReparam(0)} if reparam else {}
    log_scale = numpyro.sample("log_scale", dist.Normal(0, 3))
    with numpyro.plate("dims", len(y)), handlers.reparam(config=config):
        x = numpyro.sample("x", dist.Normal(0, jnp.exp(log_scale / 2)))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


WIDTHS = np.array([0.3, -1.2, 2.0, 0.1])


def funnel_exactly() -> dict[str, Any]:
    def log_joint(log_scale: Any) -> Any:
        spread = np.sqrt(1 + np.exp(log_scale))[:, None]
        return stats.norm.logpdf(log_scale, 0, 3) + stats.norm.logpdf(WIDTHS, 0, spread).sum(-1)

    exact = Exact(log_joint, nodes(-16, 12, 200))
    share = 1 / (1 + np.exp(-exact.at[0]))
    x = stack([exact.moments(share * y, share) for y in WIDTHS])
    return {"log_z": exact.log_z, "log_scale": exact.moments(exact.at[0]), "x": x}


@case("examples/funnel.py", quick=True)
def funnel_with_data() -> Any:
    return compare(fitted(funnel, WIDTHS), **funnel_exactly())


@case("examples/funnel.py (reparam)")
def funnel_with_data_reparameterised() -> Any:
    return compare(fitted(lambda y: funnel(y, True), WIDTHS), **funnel_exactly())


@case("examples/funnel.py (no data)")
def funnel_without_data() -> Any:
    def model() -> None:
        log_scale = numpyro.sample("log_scale", dist.Normal(0, 3))
        with numpyro.plate("dims", 9):
            numpyro.sample("x", dist.Normal(0, jnp.exp(log_scale / 2)))

    return compare(fitted(model), 0.0, log_scale=(0.0, 3.0))


@case("examples/proportion_test.py", quick=True)
def proportion_test() -> Any:
    ads = np.tile([1.0, 0.0], 60)
    clicks = (np.random.default_rng(0).random(120) < 0.3 + 0.2 * ads).astype(int)

    def model(ads: Any, clicks: Any) -> None:
        base = numpyro.sample("base", dist.Normal(0, 1))
        effect = numpyro.sample("effect", dist.Normal(0, 2))
        logits = base + effect * ads
        numpyro.deterministic("lift", jax.nn.sigmoid(base + effect) - jax.nn.sigmoid(base))
        with numpyro.plate("visitors", len(ads)):
            numpyro.sample("clicks", dist.Bernoulli(logits=logits), obs=clicks)

    def log_joint(base: Any, effect: Any) -> Any:
        counts = [(clicks[ads == a].sum(), (ads == a).sum()) for a in (0, 1)]
        likely = sum(k * u - n * np.logaddexp(0, u) for (k, n), u in zip(counts, (base, base + effect), strict=True))
        return likely + stats.norm.logpdf(base) + stats.norm.logpdf(effect, 0, 2)

    exact = Exact(log_joint, nodes(-4, 4, 120), nodes(-6, 6, 160))
    base, effect = exact.at
    lift = exact.moments(1 / (1 + np.exp(-base - effect)) - 1 / (1 + np.exp(-base)))
    posterior = fitted(model, ads, clicks)
    return compare(posterior, exact.log_z, base=exact.moments(base), effect=exact.moments(effect), lift=lift)


@case("examples/ucbadmit.py")
def admissions_with_correlated_effects() -> Any:
    department, male = np.repeat(np.arange(4), 2), np.tile([0, 1], 4)
    applied = np.array([30, 40, 25, 35, 50, 20, 30, 30])
    admitted = np.array([20, 22, 15, 20, 18, 6, 5, 4])

    def model(admitted: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0, 1).expand([2]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1).expand([2]).to_event(1))
        root = numpyro.sample("root", dist.LKJCholesky(2, concentration=2))
        with numpyro.plate("departments", 4):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        effects = mean + z @ (sigma[:, None] * root).T
        logits = effects[department, 0] + effects[department, 1] * male
        with numpyro.plate("rows", 8):
            numpyro.sample("admitted", dist.Binomial(applied, logits=logits), obs=admitted)

    right = nuts(model, admitted, names=["mean"])
    posterior = fitted(model, admitted, count=10)
    return [
        figure("mean of mean", posterior.mean("mean"), right["mean"][0], 0.25 * right["mean"][1]),
        figure("sd of mean", posterior.std("mean"), right["mean"][1], 0.25 * right["mean"][1]),
    ]


@case("examples/mortality.py")
def nested_plates_of_counts() -> Any:
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.exp(1.0 + 0.4 * rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(3, 4))))

    def model(counts: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        with numpyro.plate("regions", 3, dim=-2):
            region = numpyro.sample("region", dist.Normal(1, scale))
            with numpyro.plate("areas", 4, dim=-1):
                area = numpyro.sample("area", dist.Normal(region, 0.3))
                numpyro.sample("counts", dist.Poisson(jnp.exp(area)), obs=counts)

    (r, wr), (z, log_w) = nodes(-3, 5, 160), hermite()
    rate = np.exp(r[:, None] + 0.3 * z)
    by_area = logsumexp(stats.poisson.logpmf(counts[:, :, None, None], rate) + log_w, axis=-1)  # [3, 4, nodes]

    def log_joint(scale: Any) -> Any:
        prior = stats.norm.logpdf(r, 1, scale[:, None])
        regions = logsumexp(by_area.sum(1) + prior[:, None] + np.log(wr), axis=-1).sum(-1)
        return stats.halfnorm.logpdf(scale) + regions

    exact = Exact(log_joint, nodes(0.02, 5, 100))
    return compare(fitted(model, counts), exact.log_z, scale=exact.moments(exact.at[0]))


@case("examples/covtype.py", quick=True)
def logistic_regression() -> Any:
    rng = np.random.default_rng(2)
    x = np.stack([np.ones(40), rng.normal(size=40)], 1)
    y = (rng.random(40) < 1 / (1 + np.exp(-x @ [0.5, -1.0]))).astype(int)

    def model(x: Any, y: Any) -> None:
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights).to_event(1), obs=y)

    def log_joint(a: Any, b: Any) -> Any:
        u = a[..., None] + b[..., None] * x[:, 1]
        return (y * u - np.logaddexp(0, u)).sum(-1) + stats.norm.logpdf(a) + stats.norm.logpdf(b)

    exact = Exact(log_joint, nodes(-4, 4), nodes(-4, 4))
    return compare(fitted(model, x, y), exact.log_z, weights=stack([exact.moments(v) for v in exact.at]))
