"""Polls before the 1988 US presidential election: states in regions, crossed with age and education.

After Gelman and Hill (2006), chapter 14: `python examples/election88.py`.
"""

import click
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from examples._compare import Settings, compare, options
from kayn import datasets

WEST = 3  # region of the two states without respondents (Alaska and Hawaii)


def model(person, age, education, state, region_of_state, vote_of_state, y=None):
    """Support for the Republican candidate.

    ``person: [N, 3]`` black, female, both; ``age, education: [N]`` in 0..3; ``state: [N]``; ``region_of_state,
    vote_of_state: [51]`` the region, and the standardised Republican share of earlier votes.
    """
    num_states = region_of_state.shape[0]
    coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(3), 2.0).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    vote_effect = numpyro.sample("vote_effect", dist.Normal(0.0, 1.0))
    sd_region = numpyro.sample("sd_region", dist.HalfNormal(0.5))
    sd_state = numpyro.sample("sd_state", dist.HalfNormal(0.5))
    sd_age = numpyro.sample("sd_age", dist.HalfNormal(0.5))
    sd_education = numpyro.sample("sd_education", dist.HalfNormal(0.5))
    sd_cell = numpyro.sample("sd_cell", dist.HalfNormal(0.5))
    with numpyro.plate("regions", 5):
        region_effect = numpyro.sample("region_effect", dist.Normal(intercept, sd_region))
    with numpyro.plate("states", num_states):
        location = region_effect[region_of_state] + vote_effect * vote_of_state
        state_effect = numpyro.sample("state_effect", dist.Normal(location, sd_state))
    with numpyro.plate("ages", 4):
        age_effect = numpyro.sample("age_effect", dist.Normal(0.0, sd_age))
    with numpyro.plate("educations", 4):
        education_effect = numpyro.sample("education_effect", dist.Normal(0.0, sd_education))
    with numpyro.plate("cells", 16):
        cell_effect = numpyro.sample("cell_effect", dist.Normal(0.0, sd_cell))
    with numpyro.plate("respondents", state.shape[0]):
        groups = age_effect[age] + education_effect[education] + cell_effect[4 * age + education]
        logits = person @ coefficients + state_effect[state] + groups
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def prepare(quick: bool) -> tuple[np.ndarray, ...]:
    """Arguments of the model; the quick version keeps every tenth respondent."""
    data = {key: value[:: 10 if quick else 1] for key, value in datasets.load("election88").items()}
    black, female = data["black"].astype(np.float32), data["female"].astype(np.float32)
    region_of_state, vote_of_state = np.full(51, WEST, np.int32), np.zeros(51, np.float32)
    seen = np.unique(data["state"])
    for state in seen:
        first = np.flatnonzero(data["state"] == state)[0]
        region_of_state[state] = data["region_full"][first]
        vote_of_state[state] = data["v_prev_full"][first]
    votes = vote_of_state[seen]
    vote_of_state[seen] = (votes - votes.mean()) / votes.std()
    groups = (data[key].astype(np.int32) for key in ("age", "edu", "state"))
    person = np.stack([black, female, black * female], axis=1)
    return person, *groups, region_of_state, vote_of_state, data["y"].astype(np.float32)


@click.command()
@options(particles=5)
def main(settings: Settings) -> None:
    """Compare kayn with NUTS on the 1988 polls."""
    scales = ("sd_region", "sd_state", "sd_age", "sd_education", "sd_cell")
    population = ("intercept", "coefficients", "vote_effect", *scales)
    groups = ("region_effect", "state_effect", "age_effect", "education_effect", "cell_effect")
    decentre = ("age_effect", "education_effect")
    args = prepare(settings.quick)
    compare("election 1988", model, args, population, groups, settings, target_accept_prob=0.97, decentre=decentre)


if __name__ == "__main__":
    main()
