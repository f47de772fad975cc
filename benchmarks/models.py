"""The models that are timed: those of the papers, in their published shapes, and ragged ones on whole data sets.

Every entry of `MODELS` makes a NumPyro model and its arguments. Data come from `kayn.datasets` (set `KAYN_DATA`).
Sources of the models: Heap, Leech & Aitchison, Massively parallel reweighted wake-sleep (UAI 2023); Heap, Bowyer &
Aitchison, Massively parallel expectation maximization (2025); Gelman & Hill, Data analysis using regression and
multilevel models (2006).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from kayn import datasets

Case = tuple[Callable[..., None], tuple[Any, ...]]


def _vector(name: str, size: int, sd: float = 1.0) -> Any:
    return numpyro.sample(name, dist.Normal(jnp.zeros(size), sd).to_event(1))


def bus() -> Case:
    """School-bus delays: 2 years x 3 boroughs x 150 incidents."""
    data = datasets.load("bus_breakdown")
    company, kind = (data[f"{k}_train_0"].astype(np.float32) for k in ("bus_company_name", "run_type"))

    def model(company: Any, kind: Any, delay: Any) -> None:
        sigma_b = numpyro.sample("sigma_b", dist.Normal(0.0, 1.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 1.0))
        psi, phi = _vector("psi", kind.shape[-1]), _vector("phi", company.shape[-1])
        with numpyro.plate("years", 2, dim=-3):
            beta = numpyro.sample("beta", dist.Normal(mu_b, jnp.exp(sigma_b)))
            sigma_a = numpyro.sample("sigma_a", dist.Normal(0.0, 1.0))
            with numpyro.plate("boroughs", 3, dim=-2):
                alpha = numpyro.sample("alpha", dist.Normal(beta, jnp.exp(sigma_a)))
                with numpyro.plate("incidents", 150, dim=-1):
                    logits = alpha + company @ phi + kind @ psi
                    numpyro.sample("delay", dist.Bernoulli(logits=logits), obs=delay)

    return model, (company, kind, data["delay_train_0"].astype(np.float32))


def radon_states() -> Case:
    """Radon: 4 states x 150 houses, four latents per state."""
    data = {k: np.asarray(v[:, :150], np.float32) for k, v in datasets.load("radon").items() if v.ndim == 2}

    def model(basement: Any, uranium: Any, log_radon: Any) -> None:
        mean = numpyro.sample("global_mean", dist.Normal(0.0, 1.0))
        log_sd = numpyro.sample("global_log_sd", dist.Normal(0.0, 1.0))
        with numpyro.plate("states", 4, dim=-2):
            state_mean = numpyro.sample("state_mean", dist.Normal(mean, jnp.exp(log_sd)))
            state_log_sd = numpyro.sample("state_log_sd", dist.Normal(0.0, 1.0))
            beta_u = numpyro.sample("beta_u", dist.Normal(0.0, 1.0))
            beta_basement = numpyro.sample("beta_basement", dist.Normal(0.0, 1.0))
            with numpyro.plate("houses", 150, dim=-1):
                location = state_mean + beta_basement * basement + beta_u * uranium
                numpyro.sample("log_radon", dist.Normal(location, jnp.exp(state_log_sd)), obs=log_radon)

    return model, (data["basement"], data["log_u"], data["log_radon"])


def chimpanzees() -> Case:
    """Prosocial choice: 7 actors x 6 blocks x 10 repeats."""
    data = datasets.load("chimpanzees")
    condition, prosocial, pulled = (
        data[f"{k}_train"].astype(np.float32) for k in ("condition", "prosoc_left", "pulled_left")
    )

    def model(condition: Any, prosocial: Any, pulled: Any) -> None:
        log_sd_block = numpyro.sample("log_sd_block", dist.Normal(0.0, 1.0))
        log_sd_actor = numpyro.sample("log_sd_actor", dist.Normal(0.0, 1.0))
        beta_pc = numpyro.sample("beta_pc", dist.Normal(0.0, 10.0))
        beta_p = numpyro.sample("beta_p", dist.Normal(0.0, 10.0))
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        with numpyro.plate("actors", 7, dim=-3):
            actor = numpyro.sample("alpha_actor", dist.Normal(0.0, jnp.exp(log_sd_actor)))
            with numpyro.plate("blocks", 6, dim=-2):
                block = numpyro.sample("alpha_block", dist.Normal(0.0, jnp.exp(log_sd_block)))
                with numpyro.plate("repeats", condition.shape[-1], dim=-1):
                    logits = alpha + actor + block + (beta_p + beta_pc * condition) * prosocial
                    numpyro.sample("pulled", dist.Bernoulli(logits=logits), obs=pulled)

    return model, (condition, prosocial, pulled)


def ratings_of(users: int, which: slice) -> tuple[Any, Any]:
    """Genres of rated films [users, ratings, 18], and whether they were liked,
    for some ratings of each of the first users."""
    data = datasets.load("movielens_100k")
    rows = np.stack([np.flatnonzero(data["user"] == user)[which] for user in range(users)])
    return data["genres"][data["item"][rows], 1:].astype(np.float32), (data["rating"][rows] >= 4).astype(np.float32)


def tastes(prior_sd: float) -> Callable[..., None]:
    """Tastes of users for eighteen genres, from ratings of as many films by each."""

    def model(films: Any, liked: Any) -> None:
        mu, psi = _vector("mu", 18, prior_sd), _vector("psi", 18, prior_sd)
        with numpyro.plate("users", liked.shape[0], dim=-2):
            z = numpyro.sample("z", dist.Normal(mu, jnp.exp(psi)).to_event(1))
            with numpyro.plate("films", liked.shape[1], dim=-1):
                numpyro.sample("liked", dist.Bernoulli(logits=(z * films).sum(-1)), obs=liked)

    return model


def movielens(users: int, ratings: int, prior_sd: float = 1.0) -> Case:
    """The first ratings of the first users."""
    return tastes(prior_sd), ratings_of(users, slice(ratings))


def occupancy() -> Case:
    """Bird counts with an unseen presence: 6 years x 12 species x 200 visits x 5 stops,
    presence summed out exactly; weather in degrees."""
    data = datasets.load("occupancy")
    # visits first in their own dimension, species outermost: years are nested in species
    birds = np.swapaxes(data["birds_train_0"], 0, 1).astype(np.float32)
    weather, quality = (
        np.swapaxes(data[f"{k}_train_0"], 0, 1).astype(np.float32)[..., None] for k in ("weather", "quality")
    )

    def model(weather: Any, quality: Any, birds: Any) -> None:
        names = ("bird", "alpha", "beta")
        mean = {n: numpyro.sample(f"{n}_mean", dist.Normal(0.0, 1.0)) for n in names}
        log_sd = {n: numpyro.sample(f"{n}_log_sd", dist.Normal(0.0, 1.0)) for n in names}
        with numpyro.plate("species", 12, dim=-4):
            bird, alpha, beta = (numpyro.sample(n, dist.Normal(mean[n], jnp.exp(log_sd[n]))) for n in names)
            with numpyro.plate("years", 6, dim=-3):
                year = numpyro.sample("bird_year", dist.Normal(bird, 1.0))
                with numpyro.plate("visits", 200, dim=-2):
                    present = numpyro.sample(
                        "present", dist.Bernoulli(logits=year * weather * beta), infer={"enumerate": "parallel"}
                    )
                    with numpyro.plate("stops", 5, dim=-1):
                        logits = alpha * quality * present - 10.0 * (1 - present)
                        numpyro.sample("birds", dist.Bernoulli(logits=logits), obs=birds)

    return model, (weather, quality, birds)


def radon_counties() -> Case:
    """All 12,573 houses in 386 counties, ragged; intercept and slope vary by county."""
    data = datasets.load("radon_homes")
    county, upstairs = data["county"].astype(np.int32), (data["floor"] > 0).astype(np.float32)

    def model(county: Any, upstairs: Any, log_radon: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        mu_slope = numpyro.sample("mu_slope", dist.Normal(0.0, 2.0))
        sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        with numpyro.plate("counties", 386):
            alpha = numpyro.sample("alpha", dist.Normal(mu, sd))
            slope = numpyro.sample("slope", dist.Normal(mu_slope, sd_slope))
        with numpyro.plate("houses", county.shape[0]):
            numpyro.sample("log_radon", dist.Normal(alpha[county] + slope[county] * upstairs, sigma), obs=log_radon)

    return model, (county, upstairs, data["log_radon"])


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


def three_level() -> Case:
    """mu; 10 a; 10 x 10 b; 20 observations each, all with unit scale."""
    rng = np.random.default_rng(0)
    b = rng.normal(rng.normal(0, 1, 10)[:, None], 1, (10, 10))
    y = rng.normal(b[..., None], 1, (10, 10, 20)).astype(np.float32)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("outer", 10, dim=-3):
            a = numpyro.sample("a", dist.Normal(mu, 1.0))
            with numpyro.plate("inner", 10, dim=-2):
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                with numpyro.plate("rows", 20, dim=-1):
                    numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    return model, (y,)


MODELS: dict[str, Callable[[], Case]] = {
    "bus": bus,
    "radon, 4 states": radon_states,
    "chimpanzees": chimpanzees,
    "movielens, 300 x 5": partial(movielens, 300, 5),
    "occupancy": occupancy,
    "radon, 386 counties": radon_counties,
    "two-level": two_level,
    "three-level": three_level,
}


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
        mean = _vector("mean", 2)
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


HELD_BACK: dict[str, Callable[[], Case]] = {
    "item response": ratings,
    "ragged counts": counts,
    "growth curves": growth,
    "volatility": volatility,
}
"""Models that nothing was tuned on."""
