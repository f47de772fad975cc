"""Models on simulated data: Gaussian hierarchies, and models that nothing was tuned on."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from models.case import Case, vector


def two_level(groups: int = 50, rows: int = 100) -> Case:
    """mu; `groups` means; `rows` observations each, all with unit scale."""
    rng = np.random.default_rng(0)
    y = rng.normal(rng.normal(0, 1, groups)[:, None], 1, (groups, rows)).astype(np.float32)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", groups, dim=-2):
            theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
            with numpyro.plate("rows", rows, dim=-1):
                numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    return model, (y,)


def three_level(outer: int = 10, inner: int = 10, rows: int = 20) -> Case:
    """mu; `outer` a; `outer` x `inner` b; `rows` observations each, all with unit scale."""
    rng = np.random.default_rng(0)
    b = rng.normal(rng.normal(0, 1, outer)[:, None], 1, (outer, inner))
    y = rng.normal(b[..., None], 1, (outer, inner, rows)).astype(np.float32)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("outer", outer, dim=-3):
            a = numpyro.sample("a", dist.Normal(mu, 1.0))
            with numpyro.plate("inner", inner, dim=-2):
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                with numpyro.plate("rows", rows, dim=-1):
                    numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    return model, (y,)


def ratings() -> Case:
    """Item response: 200 people x 40 items, all crossed, with the answers as a long table."""
    rng = np.random.default_rng(1)
    person, item = (a.ravel().astype(np.int32) for a in np.meshgrid(np.arange(200), np.arange(40), indexing="ij"))
    right = (rng.random(person.size) < 0.6).astype(np.float32)

    def model(person: Any, item: Any, right: Any) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("people", 200):
            ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
        with numpyro.plate("items", 40):
            difficulty = numpyro.sample("difficulty", dist.Normal(0.0, scale))
        with numpyro.plate("answers", person.shape[0]):
            numpyro.sample("right", dist.Bernoulli(logits=ability[person] - difficulty[item]), obs=right)

    return model, (person, item, right)


def counts() -> Case:
    """Poisson counts of 5,000 rows in 300 ragged groups, with exposure and Gamma rates."""
    rng = np.random.default_rng(2)
    group = np.sort(rng.integers(0, 300, 5000)).astype(np.int32)
    exposure = rng.gamma(2.0, 1.0, 5000).astype(np.float32)
    y = rng.poisson(exposure * rng.gamma(3.0, 0.5, 300)[group]).astype(np.float32)

    def model(group: Any, exposure: Any, y: Any) -> None:
        shape = numpyro.sample("shape", dist.Exponential(0.5))
        rate = numpyro.sample("rate", dist.Exponential(0.5))
        with numpyro.plate("groups", 300):
            level = numpyro.sample("level", dist.Gamma(shape, rate))
        with numpyro.plate("rows", group.shape[0]):
            numpyro.sample("y", dist.Poisson(level[group] * exposure), obs=y)

    return model, (group, exposure, y)


def growth() -> Case:
    """Growth curves: intercept and slope of 100 children from one bivariate Normal, eight visits each."""
    rng = np.random.default_rng(3)
    age = np.linspace(-1, 1, 8, dtype=np.float32)
    y = (rng.normal(size=(100, 1)) + rng.normal(0.5, 0.3, (100, 1)) * age + 0.2 * rng.normal(size=(100, 8))).astype(
        np.float32
    )

    def model(age: Any, y: Any) -> None:
        mean = vector("mean", 2)
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        sd = numpyro.sample("sd", dist.HalfNormal(jnp.ones(2)).to_event(1))
        with numpyro.plate("children", 100, dim=-2):
            line = numpyro.sample("line", dist.MultivariateNormal(mean, jnp.eye(2) * sd**2))
            with numpyro.plate("visits", 8, dim=-1):
                numpyro.sample("y", dist.Normal(line[..., 0] + line[..., 1] * age, noise), obs=y)

    return model, (age, y)


def volatility() -> Case:
    """Stochastic volatility: a chain of 500 steps."""
    rng = np.random.default_rng(4)
    returns = (np.exp(np.cumsum(0.1 * rng.normal(size=500)) - 3) * rng.normal(size=500)).astype(np.float32)

    def model(returns: Any) -> None:
        step_size = numpyro.sample("step_size", dist.Exponential(10.0))

        def step(level: Any, now: Any) -> tuple[Any, None]:
            level = numpyro.sample("level", dist.Normal(level, step_size))
            numpyro.sample("returns", dist.Normal(0.0, jnp.exp(level)), obs=now)
            return level, None

        scan(step, jnp.array(-3.0), returns)

    return model, (returns,)
