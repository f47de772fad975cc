"""Which genres of film does a user like? MovieLens 100K, all 943 users: `python -m examples.movielens`."""

import click
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from examples._compare import Settings, compare, options
from kayn import datasets

NUM_GENRES = 18


def model(user, film, genres, num_users, liked=None):
    """One vector of tastes per user, drawn around the population's.

    ``user, film: [N]`` of each rating; ``genres: [films, 18]`` indicators; ``liked: [N]`` four or five stars.
    """
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros(NUM_GENRES), 1.0).to_event(1))
    psi = numpyro.sample("psi", dist.Normal(jnp.zeros(NUM_GENRES), 1.0).to_event(1))
    with numpyro.plate("users", num_users):
        z = numpyro.sample("z", dist.Normal(mu, jnp.exp(psi)).to_event(1))
    with numpyro.plate("ratings", user.shape[0]):
        logits = (z[user] * genres[film]).sum(-1)
        numpyro.sample("liked", dist.Bernoulli(logits=logits), obs=liked)


def prepare(quick: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Training ratings (the published ``ua`` split), sorted by user; the quick version keeps 20 users."""
    data = datasets.load("movielens_100k")
    rows = np.flatnonzero((data["test"] == 0) & (data["user"] < (20 if quick else 943)))
    rows = rows[np.argsort(data["user"][rows], kind="stable")]
    user, film = data["user"][rows].astype(np.int32), data["item"][rows].astype(np.int32)
    genres = data["genres"][:, 1:].astype(np.float32)  # column 0 is "unknown"
    return user, film, genres, int(user.max()) + 1, (data["rating"][rows] >= 4).astype(np.float32)


@click.command()
@options(particles=300, chains=2, warmup=500, samples=500)
def main(settings: Settings) -> None:
    """Compare kayn with NUTS on MovieLens."""
    compare("MovieLens 100K", model, prepare(settings.quick), ("mu", "psi"), ("z",), settings)


if __name__ == "__main__":
    main()
