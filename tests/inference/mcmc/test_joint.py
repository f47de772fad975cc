"""Latents and data keep their joint law when sweeps move the latents (Geweke, Getting it right, 2004), and chains that
start elsewhere and learn their steps are calibrated (Talts et al., Validating Bayesian inference algorithms, 2018):
hierarchies that are ragged, crossed, with discrete latents, and in steps.

Latents and data are drawn from the model many times over. Each set is swept with the steps of frozen chains, and means
of functions of latents and data before and after are compared within 5.5 standard errors of their differences: 4e-8
false alarms a comparison, less than 4e-5 in all. Then every set of data gets a chain from latents that have nothing to
do with it. Ranks of those that made it, among draws far apart, are even if the chain is right; their means and
variances are compared within five standard errors of even ones: 6e-7 a comparison, less than 1e-4 in all.
`KAYN_EXAMPLES=30` draws thirty times as many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ...laws.strategies import examples
from .joints import chain, crossed, discrete, joint, ragged

SWEEPS, FARTHEST = 3, 5.5
WARMUP, DRAWS, APART, FARTHEST_RANK = 100, 7, 15, 5.0


def told(own, state, y):
    """Functions of latents and data, [F]."""
    flat = jnp.concatenate([jnp.tanh(state[n]).ravel().astype(float) for n in own.names])
    pairs = jnp.outer(flat, flat)[jnp.triu_indices(len(flat))]
    return jnp.concatenate([flat, pairs, jnp.outer(flat, jnp.tanh(y)).ravel()])


def farthest(model, volume=1.0):
    """The largest change of a mean by sweeps, in its standard errors."""
    own, found = joint(model), []
    functions = jax.jit(jax.vmap(lambda state, y: told(own, state, y)))
    for key in jax.random.split(jax.random.key(0), examples(15)):
        first, second = jax.random.split(key)
        state, y = own.drawn(first)
        after, _ = own.swept(state, own.tuning(state), y, second, SWEEPS, False, volume)
        found.append(np.asarray(functions(after, y) - functions(state, y), np.float64))
    changes = np.concatenate(found)
    assert changes.shape[1] < 300
    spread = changes.std(0)
    moves = spread > 0
    assert moves.sum() > 0.8 * len(moves)
    return np.max(np.abs(changes.mean(0)[moves]) / spread[moves]) * len(changes) ** 0.5


def farthest_rank(model):
    """How far ranks of latents among the draws of chains are from even ones, in standard errors."""
    own, ranks = joint(model), []
    for key in jax.random.split(jax.random.key(1), examples(1)):
        truth_key, start_key, key, tie_key = jax.random.split(key, 4)
        truth, y = own.drawn(truth_key)
        state, _ = own.drawn(start_key)
        state, tuning = own.swept(state, own.tuning(state), y, key, WARMUP, True, 1.0)
        draws = []
        for number in range(DRAWS):
            state, tuning = own.swept(state, tuning, y, jax.random.fold_in(key, number), APART, False, 1.0)
            draws.append(state)
        for name in own.names:
            every = np.stack([d[name] for d in draws]).reshape(DRAWS, own.sets, -1)
            mine = np.asarray(truth[name]).reshape(own.sets, -1)
            # what is the same comes before or behind by chance
            ties = (every == mine).sum(0)
            chance = np.asarray(jax.random.uniform(jax.random.fold_in(tie_key, len(ranks)), mine.shape))
            ranks.append((every < mine).sum(0) + np.floor(chance * (ties + 1)))
    count = len(own.names)
    places = np.concatenate([np.concatenate(ranks[i::count]) for i in range(count)], 1)
    even = np.arange(DRAWS + 1.0) - DRAWS / 2
    scores = places - DRAWS / 2
    errors = [_error(scores, even), _error(scores**2, even**2)]
    return np.max(errors)


def _error(found, even):
    return np.abs(found.mean(0) - even.mean()) / (even.std() / len(found) ** 0.5)


@pytest.mark.parametrize("model", [ragged, crossed, discrete, chain])
def test_sweeps_keep_the_joint_law(model):
    assert farthest(model) < FARTHEST


def test_groups_would_not_keep_it_without_the_volume_of_those_that_follow():
    assert farthest(ragged, volume=0.0) > 2 * FARTHEST


@pytest.mark.parametrize("model", [ragged, crossed, discrete, chain])
def test_chains_are_calibrated(model):
    assert farthest_rank(model) < FARTHEST_RANK


def test_chains_would_not_be_calibrated_without_that_volume(monkeypatch):
    own = joint(ragged)
    right = own.swept
    wrong = lambda *args: right(*args[:-1], 0.0)  # noqa: E731
    monkeypatch.setitem(own.__dict__, "swept", wrong)
    assert farthest_rank(ragged) > 2 * FARTHEST_RANK
