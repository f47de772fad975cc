"""Censored lives, missing covariates and interventions, after NumPyro's tutorials."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from scipy import stats

from experiments.peers.cases import Exact, case, compare, fitted, nodes
from experiments.peers.regressions import Y

TIMES, ENDED = np.array([0.5, 1.2, 2.0, 0.7, 2.0]), np.array([1, 1, 0, 1, 0])


@case("docs (censored survival by a factor)")
def censored_lives() -> Any:
    def model(times: Any, ended: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        law = dist.Exponential(rate)
        with numpyro.plate("data", len(times)):
            numpyro.factor("likely", jnp.where(ended == 1, law.log_prob(times), jnp.log1p(-law.cdf(times))))

    right = stats.gamma(2 + ENDED.sum(), scale=1 / (1 + TIMES.sum()))
    log_z = stats.gamma.logpdf(1, 2) - right.logpdf(1) - TIMES.sum()
    return compare(fitted(model, TIMES, ENDED), log_z, rate=(right.mean(), right.std()))


@case("docs (censored survival by masks)", quick=True)
def censored_lives_by_masks() -> Any:
    def model(times: Any, ended: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", len(times)):
            with handlers.mask(mask=ended == 1):
                numpyro.sample("ended", dist.Exponential(rate), obs=times)
            with handlers.mask(mask=ended == 0):
                numpyro.sample("going", dist.Bernoulli(jnp.exp(-rate * times)), obs=jnp.ones(len(times)))

    right = stats.gamma(2 + ENDED.sum(), scale=1 / (1 + TIMES.sum()))
    log_z = stats.gamma.logpdf(1, 2) - right.logpdf(1) - TIMES.sum()
    return compare(fitted(model, TIMES, ENDED), log_z, rate=(right.mean(), right.std()))


GAPS = np.array([0.4, np.nan, -0.3, np.nan, 1.2, 0.7])


def imputed_exactly() -> dict[str, Any]:
    """Slope b, mean m of the covariate: y ~ N(b x, 0.5), x ~ N(m, 1)."""
    known = ~np.isnan(GAPS)

    def log_joint(b: Any, m: Any) -> Any:
        b_, m_ = b[..., None], m[..., None]
        seen = stats.norm.logpdf(Y[known], b_ * GAPS[known], 0.5) + stats.norm.logpdf(GAPS[known], m_, 1)
        missing = stats.norm.logpdf(Y[~known], b_ * m_, np.sqrt(0.25 + b_**2))
        return seen.sum(-1) + missing.sum(-1) + stats.norm.logpdf(b) + stats.norm.logpdf(m)

    exact = Exact(log_joint, nodes(-5, 5, 120), nodes(-5, 5, 120))
    return {"log_z": exact.log_z, "b": exact.moments(exact.at[0]), "m": exact.moments(exact.at[1])}


@case("docs (imputation of a covariate by a masked prior)", quick=True)
def missing_covariates_by_two_sites() -> Any:
    missing = np.flatnonzero(np.isnan(GAPS))

    def model(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(0, 1))
        m = numpyro.sample("m", dist.Normal(0, 1))
        filled = numpyro.sample("filled", dist.Normal(m, 1).expand([len(missing)]).mask(False))
        x = jnp.asarray(np.nan_to_num(x)).at[missing].set(filled)
        numpyro.sample("x", dist.Normal(m, 1).expand([len(y)]), obs=x)
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(b * x, 0.5), obs=y)

    return compare(fitted(model, GAPS, Y, count=20), **imputed_exactly())


@case("docs (obs_mask)")
def missing_covariates_by_obs_mask() -> Any:
    def model(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(0, 1))
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("data", len(y)):
            x = numpyro.sample("x", dist.Normal(m, 1), obs=jnp.nan_to_num(x), obs_mask=~np.isnan(x))
            numpyro.sample("y", dist.Normal(b * x, 0.5), obs=y)

    return compare(fitted(model, GAPS, Y), **imputed_exactly())


@case("docs (imputation of a discrete covariate)", quick=True)
def missing_bits() -> Any:
    bits = np.array([1, -1, 0, -1, 1, 0])

    def model(bits: Any, y: Any) -> None:
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("data", len(y)):
            with handlers.mask(mask=bits < 0):
                drawn = numpyro.sample("drawn", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            with handlers.mask(mask=bits >= 0):
                numpyro.sample("known", dist.Bernoulli(p), obs=np.maximum(bits, 0))
            x = jnp.where(bits < 0, drawn, bits)
            numpyro.sample("y", dist.Normal(b * x, 0.5), obs=y)

    def log_joint(p: Any, b: Any) -> Any:
        p_, on = p[..., None], stats.norm.pdf(Y, b[..., None], 0.5)
        off = stats.norm.pdf(Y, 0, 0.5)
        terms = np.where(bits == 1, p_ * on, np.where(bits == 0, (1 - p_) * off, p_ * on + (1 - p_) * off))
        return np.log(terms).sum(-1) + stats.norm.logpdf(b)

    exact = Exact(log_joint, nodes(0, 1), nodes(-5, 5, 120))
    right = {"p": exact.moments(exact.at[0]), "b": exact.moments(exact.at[1])}
    return compare(fitted(model, bits, Y), exact.log_z, **right)


@case("docs (do)", quick=True)
def intervention() -> Any:
    """Cause x is set, so that it tells nothing of the confounder: rate ~ Beta(2, 1), z ~ Bernoulli(rate),
    y ~ N(x + 2 z, 1)."""

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Beta(2.0, 1.0))
        z = numpyro.sample("z", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
        x = numpyro.sample("x", dist.Normal(3.0 * z, 1.0))
        numpyro.sample("y", dist.Normal(x + 2.0 * z, 1.0), obs=y)

    p = np.array([1 / 3, 2 / 3]) * stats.norm.pdf(1.2, 1.0 + 2 * np.arange(2), 1)
    on = p[1] / p.sum()
    rate = on * 3 / 4 + (1 - on) * 1 / 2  # Beta(3, 1) and Beta(2, 2)
    square = on * 3 / 5 + (1 - on) * 3 / 10
    posterior = fitted(handlers.do(model, data={"x": 1.0}), 1.2)
    return compare(posterior, np.log(p.sum()), z=(np.array(on), None), rate=(rate, (square - rate**2) ** 0.5))
