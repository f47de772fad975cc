"""Models whose posteriors are sampled: crossed, ragged, with discrete latents, and in steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from kayn import datasets
from models.case import Case


def schools() -> Case:
    """Eight schools, centred."""
    effect = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    error = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def model(error: Any, effect: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("effect", dist.Normal(theta, error), obs=effect)

    return model, (error, effect)


def item_response(persons: int = 100, items: int = 20) -> Case:
    """Two parameters an item, every person answers all of them."""
    rng = np.random.default_rng(0)
    ability, difficulty = rng.normal(size=persons), 0.3 + rng.normal(size=items)
    slope = np.exp(0.3 * rng.normal(size=items))
    person, item = (i.ravel() for i in np.divmod(np.arange(persons * items), items))
    chance = 1 / (1 + np.exp(-slope[item] * (ability[person] - difficulty[item])))
    right = jnp.asarray(rng.random(persons * items) < chance, jnp.float32)

    def model(person: Any, item: Any, right: Any) -> None:
        level = numpyro.sample("level", dist.Normal(0, 2))
        sd_difficulty = numpyro.sample("sd_difficulty", dist.HalfNormal(1.0))
        sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(0.5))
        sd_ability = numpyro.sample("sd_ability", dist.HalfNormal(1.0))
        with numpyro.plate("persons", persons):
            ability = numpyro.sample("ability", dist.Normal(0, sd_ability))
        with numpyro.plate("items", items):
            difficulty = numpyro.sample("difficulty", dist.Normal(level, sd_difficulty))
            slope = numpyro.sample("slope", dist.LogNormal(0, sd_slope))
        with numpyro.plate("answers", len(person)):
            logits = slope[item] * (ability[person] - difficulty[item])
            numpyro.sample("right", dist.Bernoulli(logits=logits), obs=right)

    return model, (jnp.asarray(person), jnp.asarray(item), right)


def slopes(groups: int = 60, rows: int = 20) -> Case:
    """Intercept and slope of every group."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(groups), rows)
    x = rng.normal(size=len(group)).astype(np.float32)
    own = rng.normal(size=(2, groups)) * np.array([[1.0], [0.5]]) + np.array([[0.3], [0.8]])
    y = (own[0][group] + own[1][group] * x + 0.7 * rng.normal(size=len(group))).astype(np.float32)

    def model(group: Any, x: Any, y: Any) -> None:
        level, trend = (numpyro.sample(n, dist.Normal(0, 2)) for n in ("level", "trend"))
        sd_level, sd_trend, noise = (numpyro.sample(n, dist.HalfNormal(1)) for n in ("sd_level", "sd_trend", "noise"))
        with numpyro.plate("groups", groups):
            intercept = numpyro.sample("intercept", dist.Normal(level, sd_level))
            slope = numpyro.sample("slope", dist.Normal(trend, sd_trend))
        with numpyro.plate("rows", len(group)):
            numpyro.sample("y", dist.Normal(intercept[group] + slope[group] * x, noise), obs=y)

    return model, (jnp.asarray(group), jnp.asarray(x), jnp.asarray(y))


def effects(first: int, second: int, rows: int, seed: int = 2) -> Case:
    """A table of ratings: two crossed groupings, each rated row of one and one."""
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, first, rows), rng.integers(0, second, rows)
    rating = 3.5 + 0.5 * rng.normal(size=first)[one] + 0.4 * rng.normal(size=second)[two] + 0.9 * rng.normal(size=rows)

    def model(one: Any, two: Any, rating: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(3.0, 2.0))
        sd_user, sd_film, noise = (numpyro.sample(n, dist.HalfNormal(1)) for n in ("sd_user", "sd_film", "noise"))
        with numpyro.plate("users", first):
            user = numpyro.sample("user", dist.Normal(0, sd_user))
        with numpyro.plate("films", second):
            film = numpyro.sample("film", dist.Normal(0, sd_film))
        with numpyro.plate("rows", len(one)):
            numpyro.sample("rating", dist.Normal(mean + user[one] + film[two], noise), obs=rating)

    return model, (jnp.asarray(one), jnp.asarray(two), jnp.asarray(rating, jnp.float32))


def chimpanzees() -> Case:
    """Pulls of a lever: seven actors crossed with six blocks, 504 rows."""
    data = datasets.load("chimpanzees")
    names = ("actor", "block", "condition", "prosoc_left", "pulled_left")
    actor, block, condition, prosocial, pulled = (jnp.asarray(data[f"table_{n}"]).astype(int) for n in names)
    actor, block = actor - actor.min(), block - block.min()

    def model(actor: Any, block: Any, condition: Any, prosocial: Any, pulled: Any) -> None:
        alpha, both, beta = (numpyro.sample(n, dist.Normal(0, s)) for n, s in (("a", 1.5), ("both", 1), ("beta", 1)))
        sd_actor, sd_block = (numpyro.sample(n, dist.HalfNormal(1)) for n in ("sd_actor", "sd_block"))
        with numpyro.plate("actors", 7):
            of_actor = numpyro.sample("of_actor", dist.Normal(0, sd_actor))
        with numpyro.plate("blocks", 6):
            of_block = numpyro.sample("of_block", dist.Normal(0, sd_block))
        with numpyro.plate("rows", len(actor)):
            logits = alpha + of_actor[actor] + of_block[block] + (beta + both * condition) * prosocial
            numpyro.sample("pulled", dist.Bernoulli(logits=logits), obs=pulled)

    return model, (actor, block, condition, prosocial, pulled)


def election() -> Case:
    """Polls of 1988: states crossed with age and education, 11,566 rows."""
    data = datasets.load("election88")
    names = ("state", "age", "edu", "age_edu", "female", "black", "y")
    columns = [np.asarray(data[n]).astype(int) for n in names]
    columns = [c - c.min() if i < 4 else c for i, c in enumerate(columns)]
    sizes = [int(c.max()) + 1 for c in columns[:4]]

    def model(state: Any, age: Any, edu: Any, cell: Any, female: Any, black: Any, y: Any) -> None:
        intercept, of_female, of_black = (numpyro.sample(n, dist.Normal(0, 1)) for n in ("all", "female", "black"))
        logits = intercept + of_female * female + of_black * black
        for name, index, size in zip(names[:4], (state, age, edu, cell), sizes, strict=True):
            sd = numpyro.sample(f"sd_{name}", dist.HalfNormal(1))
            with numpyro.plate(f"{name}s", size):
                own = numpyro.sample(f"of_{name}", dist.Normal(0, sd))
            logits = logits + own[index]
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model, tuple(map(jnp.asarray, columns))


def mixture(rows: int = 1000) -> Case:
    """Three Normals, with an assignment of every row that is sampled."""
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(np.array([-3.0, 0, 3])[rng.choice(3, rows, p=[0.3, 0.5, 0.2])], 0.8), jnp.float32)

    def model(y: Any) -> None:
        shares = numpyro.sample("shares", dist.Dirichlet(jnp.full(3, 2.0)))
        spread = numpyro.sample("spread", dist.HalfNormal(2.0))
        first = numpyro.sample("first", dist.Normal(-3.0, 2.0))
        gaps = numpyro.sample("gaps", dist.LogNormal(1.0, 0.5).expand([2]).to_event(1))
        centres = first + jnp.concatenate([jnp.zeros(1), jnp.cumsum(gaps)])
        with numpyro.plate("rows", len(y)):
            kind = numpyro.sample("kind", dist.Categorical(shares))
            numpyro.sample("y", dist.Normal(centres[kind], spread), obs=y)

    return model, (y,)


def accidents(groups: int = 235, rows: int = 3000) -> Case:
    """Counts of ragged groups: a Poisson law with a Normal level of each."""
    rng = np.random.default_rng(4)
    group, x = np.sort(rng.choice(groups, rows, p=rng.dirichlet(np.ones(groups)))), rng.normal(size=rows)
    y = rng.poisson(np.exp(0.2 + 0.6 * rng.normal(size=groups)[group] + 0.3 * x))

    def model(group: Any, x: Any, y: Any) -> None:
        level, trend = (numpyro.sample(n, dist.Normal(0, 1)) for n in ("level", "trend"))
        sd = numpyro.sample("sd", dist.HalfNormal(1))
        with numpyro.plate("groups", groups):
            own = numpyro.sample("own", dist.Normal(level, sd))
        with numpyro.plate("rows", len(group)):
            numpyro.sample("y", dist.Poisson(jnp.exp(own[group] + trend * x)), obs=y)

    return model, (jnp.asarray(group), jnp.asarray(x, jnp.float32), jnp.asarray(y))


def sightings(sites: int = 300, visits: int = 5) -> Case:
    """Occupancy: whether a species is at each site is sampled; visits miss it."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=sites)
    there = rng.random(sites) < 1 / (1 + np.exp(-(0.2 + 0.8 * x)))
    seen = (rng.random((visits, sites)) < 0.35) & there

    def model(x: Any, seen: Any) -> None:
        level, trend, found = (numpyro.sample(n, dist.Normal(0, 1.5)) for n in ("level", "trend", "found"))
        with numpyro.plate("sites", sites, dim=-1):
            present = numpyro.sample("present", dist.Bernoulli(logits=level + trend * x))
            with numpyro.plate("visits", visits, dim=-2):
                chance = present / (1 + jnp.exp(-found))
                numpyro.sample("seen", dist.Bernoulli(probs=jnp.clip(chance, 1e-6, 1.0)), obs=seen)

    return model, (jnp.asarray(x, jnp.float32), jnp.asarray(seen, jnp.float32))


def volatility(steps: int = 1000) -> Case:
    """Stochastic volatility of so many steps."""
    rng = np.random.default_rng(6)
    level = np.zeros(steps)
    for t in range(1, steps):
        level[t] = 0.95 * level[t - 1] + 0.25 * rng.normal()
    returns = jnp.asarray(np.exp(level / 2) * rng.normal(size=steps), jnp.float32)

    def model(returns: Any) -> None:
        keep = numpyro.sample("keep", dist.Beta(20.0, 1.5))
        size = numpyro.sample("size", dist.HalfNormal(0.5))

        def step(level: Any, now: Any) -> tuple[Any, None]:
            level = numpyro.sample("level", dist.Normal(keep * level, size))
            numpyro.sample("returns", dist.Normal(0.0, jnp.exp(level / 2)), obs=now)
            return level, None

        scan(step, jnp.zeros(()), returns)

    return model, (returns,)
