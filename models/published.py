"""Models of papers in their published shapes. Data come from `kayn.datasets` (set `KAYN_DATA`).

Sources: Heap, Leech & Aitchison, Massively parallel reweighted wake-sleep (UAI 2023); Heap, Bowyer &
Aitchison, Massively parallel expectation maximization (2025); Gelman & Hill, Data analysis using regression and
multilevel models (2006).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from examples import radon
from kayn import datasets
from models.case import Case, vector


def bus() -> Case:
    """School-bus delays: 2 years x 3 boroughs x 150 incidents."""
    data = datasets.load("bus_breakdown")
    company, kind = (data[f"{k}_train_0"].astype(np.float32) for k in ("bus_company_name", "run_type"))

    def model(company: Any, kind: Any, delay: Any) -> None:
        sigma_b = numpyro.sample("sigma_b", dist.Normal(0.0, 1.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 1.0))
        psi, phi = vector("psi", kind.shape[-1]), vector("phi", company.shape[-1])
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
        mu, psi = vector("mu", 18, prior_sd), vector("psi", 18, prior_sd)
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
    """All 12,573 houses in 386 counties, ragged; intercept and slope vary by county (the example's model)."""
    county, upstairs, num_counties, log_radon = radon.prepare(quick=False)

    def model(county: Any, upstairs: Any, log_radon: Any) -> None:
        radon.varying_slope(county, upstairs, num_counties, log_radon)

    return model, (county, upstairs, log_radon)
