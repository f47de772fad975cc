"""Captures and recaptures of animals, whose survival is summed out, after NumPyro's example."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, reparam
from numpyro.infer.reparam import LocScaleReparam
from scipy import stats
from scipy.special import expit

from experiments.peers.cases import Exact, case, compare, fitted, nodes, stack

CAPTURES = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]])
SEX = np.array([0, 1, 0, 1, 1])


def recaptures(phi: Any, rho: Any) -> Any:
    """The transition of the captures: (animal caught before, alive) to the next; phi one number or [animals]."""

    def step(carry: Any, y: Any, phi: Any = phi) -> Any:
        seen, z = carry
        with numpyro.plate("animals", len(CAPTURES)), mask(mask=seen):
            alive = seen * phi * z + (1 - seen)
            z = numpyro.sample("z", dist.Bernoulli(jnp.clip(alive, 1e-6, 1 - 1e-6)), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Bernoulli(jnp.clip(rho * z, 1e-6, 1 - 1e-6)), obs=y)
        return (seen | (y == 1), z), None

    return step


def first_animals() -> Any:
    return jnp.asarray(CAPTURES[:, 0] == 1), jnp.ones(len(CAPTURES), jnp.int32)


def history(row: Any, phi: Any, rho: Any) -> Any:
    """Probability of an animal's captures after its first, by the forward algorithm; phi by step."""
    start = int(np.argmax(row))
    # before the first capture the state is masked: it may be either, as the model is written
    alive, dead = 1.0, float(start > 0)
    for t in range(start + 1, len(row)):
        p = phi[t - 1]
        alive, dead = alive * p, dead + alive * (1 - p)
        alive, dead = (alive * rho, 0.0) if row[t] else (alive * (1 - rho), dead)
    return alive + dead


@case("examples/capture_recapture.py (model 1)", quick=True)
def recaptured_animals() -> Any:
    def model(captures: Any) -> None:
        phi = numpyro.sample("phi", dist.Uniform(0, 1))
        rho = numpyro.sample("rho", dist.Uniform(0, 1))
        scan(recaptures(phi, rho), first_animals(), captures[:, 1:].T)

    exact = Exact(
        lambda phi, rho: sum(np.log(history(row, [phi] * 3, rho)) for row in CAPTURES), nodes(0, 1), nodes(0, 1)
    )
    right = {n: exact.moments(v) for n, v in zip(("phi", "rho"), exact.at, strict=True)}
    return compare(fitted(model, CAPTURES), exact.log_z, **right)


def by_year(name: str, law: Any, phi_of: Any, **around: Any) -> Any:
    """A model whose survival has a latent for every year."""

    def model(captures: Any) -> None:
        outer = {n: numpyro.sample(n, d) for n, d in around.items()}
        rho = numpyro.sample("rho", dist.Uniform(0, 1))

        def step(carry: Any, y: Any) -> Any:
            with reparam(config={"level": LocScaleReparam(0)}):
                year = numpyro.sample(name, law(**outer))
            return recaptures(phi_of(year, **outer), rho)(carry, y)

        scan(step, first_animals(), captures[:, 1:].T)

    return model


@case("examples/capture_recapture.py (model 2)")
def recaptured_animals_by_year() -> Any:
    model = by_year("year", lambda: dist.Uniform(0, 1), lambda year: year)
    grids = [nodes(0, 1, 20)] * 4
    exact = Exact(lambda rho, *phi: sum(np.log(history(row, phi, rho)) for row in CAPTURES), *grids)
    right = {"rho": exact.moments(exact.at[0]), "year": stack([exact.moments(v) for v in exact.at[1:]])}
    return compare(fitted(model, CAPTURES), exact.log_z, **right)


@case("examples/capture_recapture.py (model 3)")
def recaptured_animals_with_random_years() -> Any:
    model = by_year(
        "level",
        lambda mean, sigma: dist.Normal(jnp.log(mean) - jnp.log1p(-mean), sigma),
        lambda level, **_: 1 / (1 + jnp.exp(-level)),
        mean=dist.Uniform(0, 1),
        sigma=dist.Uniform(0, 3),
    )
    x, w = np.polynomial.hermite_e.hermegauss(9)
    standard = (x, w * np.exp(x**2 / 2))

    def log_joint(rho: Any, mean: Any, sigma: Any, *z: Any) -> Any:
        phi = [expit(np.log(mean / (1 - mean)) + sigma * v) for v in z]
        likely = sum(np.log(history(row, phi, rho)) for row in CAPTURES)
        return likely - np.log(3) + sum(stats.norm.logpdf(v) for v in z)

    exact = Exact(log_joint, nodes(0, 1, 16), nodes(0, 1, 16), nodes(0, 3, 12), *[standard] * 3)
    right = {"rho": exact.moments(exact.at[0]), "mean": exact.moments(exact.at[1])}
    return compare(fitted(model, CAPTURES, count=10), exact.log_z, **right)


@case("examples/capture_recapture.py (model 4)")
def recaptured_animals_by_sex() -> Any:
    def model(captures: Any, sex: Any) -> None:
        male = numpyro.sample("male", dist.Uniform(0, 1))
        female = numpyro.sample("female", dist.Uniform(0, 1))
        rho = numpyro.sample("rho", dist.Uniform(0, 1))
        scan(recaptures(sex * male + (1 - sex) * female, rho), first_animals(), captures[:, 1:].T)

    def log_joint(male: Any, female: Any, rho: Any) -> Any:
        return sum(
            np.log(history(row, [(male if s else female)] * 3, rho)) for row, s in zip(CAPTURES, SEX, strict=True)
        )

    exact = Exact(log_joint, *[nodes(0, 1, 40)] * 3)
    right = {n: exact.moments(v) for n, v in zip(("male", "female", "rho"), exact.at, strict=True)}
    return compare(fitted(model, CAPTURES, SEX), exact.log_z, **right)


@case("examples/capture_recapture.py (model 5)")
def recaptured_animals_by_sex_and_year() -> Any:
    def model(captures: Any, sex: Any) -> None:
        effect = sex * numpyro.sample("effect", dist.Normal(0, 1))
        rho = numpyro.sample("rho", dist.Uniform(0, 1))

        def step(carry: Any, y: Any) -> Any:
            year = numpyro.sample("year", dist.Normal(0, 1.5))
            return recaptures(1 / (1 + jnp.exp(-effect - year)), rho)(carry, y)

        scan(step, first_animals(), captures[:, 1:].T)

    def log_joint(rho: Any, effect: Any, *years: Any) -> Any:
        likely = sum(
            np.log(history(row, [expit(s * effect + year) for year in years], rho))
            for row, s in zip(CAPTURES, SEX, strict=True)
        )
        return likely + stats.norm.logpdf(effect) + sum(stats.norm.logpdf(year, 0, 1.5) for year in years)

    exact = Exact(log_joint, nodes(0, 1, 16), nodes(-5, 5, 24), *[nodes(-7, 7, 24)] * 3)
    years = stack([exact.moments(v) for v in exact.at[2:]])
    right = {"rho": exact.moments(exact.at[0]), "effect": exact.moments(exact.at[1]), "year": years}
    return compare(fitted(model, CAPTURES, SEX, count=10), exact.log_z, **right)
