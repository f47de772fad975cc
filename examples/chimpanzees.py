"""Prosocial choice in chimpanzees, actors crossed with blocks: `python -m examples.chimpanzees`."""

import click
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from examples._compare import Settings, compare, options
from kayn import datasets


def model(actor, block, prosocial_left, partner, num_actors, num_blocks, pulled_left=None):
    """Pulling the left lever, after McElreath's Statistical Rethinking: actor and block effects, two coefficients."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.5))
    coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    sd_actor = numpyro.sample("sd_actor", dist.HalfNormal(3.0))
    sd_block = numpyro.sample("sd_block", dist.HalfNormal(1.0))
    with numpyro.plate("actors", num_actors):
        actor_effect = numpyro.sample("actor_effect", dist.Normal(intercept, sd_actor))
    with numpyro.plate("blocks", num_blocks):
        block_effect = numpyro.sample("block_effect", dist.Normal(0.0, sd_block))
    with numpyro.plate("trials", actor.shape[0]):
        slope = coefficients[0] + coefficients[1] * partner
        logits = actor_effect[actor] + block_effect[block] + slope * prosocial_left
        numpyro.sample("pulled_left", dist.Bernoulli(logits=logits), obs=pulled_left)


def prepare() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int, np.ndarray]:
    """The whole table: real, crossed actors and blocks, zero-based."""
    data = datasets.load("chimpanzees")
    actor, block = data["table_actor"].astype(np.int32) - 1, data["table_block"].astype(np.int32) - 1
    covariates = (data["table_prosoc_left"].astype(np.float32), data["table_condition"].astype(np.float32))
    return actor, block, *covariates, 7, 6, data["table_pulled_left"].astype(np.float32)


@click.command()
@options(particles=15)
def main(settings: Settings) -> None:
    """Compare kayn with NUTS on the chimpanzees."""
    population = ("intercept", "coefficients", "sd_actor", "sd_block")
    groups = ("actor_effect", "block_effect")
    compare(
        "chimpanzees",
        model,
        prepare(),
        population,
        groups,
        settings,
        target_accept_prob=0.95,
        decentre=("block_effect",),
    )


if __name__ == "__main__":
    main()
