"""Draws in blocks: the same draws as at once, by programs of few sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.posterior import joint, predict, replay
from kayn.posterior.blocks import LARGE, block_size, keys_of, shuffled


@pytest.mark.parametrize(
    ("num", "entries", "size"),
    [
        (1, 10, 1000),
        (1000, 10, 1000),
        (10_000, 10, 1000),
        (10_001, 10, 10_000),
        (200, LARGE // 1000, 1000),
        (200, LARGE // 100, 100),
        (7, LARGE, 1),
        (5000, LARGE, 1000),
    ],
)
def test_sizes_of_blocks(num, entries, size):
    assert block_size(num, 1000, entries) == size


def test_keys_of_blocks_are_those_of_all_draws():
    key = jax.random.key(3)
    parts = [keys_of(key, np.int32(start), 4) for start in (0, 4, 8)]
    found = np.concatenate([np.asarray(jax.random.key_data(p)) for p in parts])
    np.testing.assert_array_equal(found[:10], jax.random.key_data(jax.random.split(key, 10)))


@pytest.mark.parametrize("count", [1, 2, 37, 1024, 1700])
def test_an_order_by_a_program_of_few_sizes_is_that_of_jax(count):
    key = jax.random.key(count)
    np.testing.assert_array_equal(shuffled(key, count), jax.random.permutation(key, count))


def rows(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 3):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1.0))
    numpyro.deterministic("off", alpha - mu)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(alpha[jnp.arange(len(y)) % 3], 1.0), obs=y)


def test_answers_do_not_depend_on_the_size_of_blocks(monkeypatch):
    """Of the same draws; sums over them are taken in another order, in float32."""
    y, held_out = np.float32([0.5, -1.0, 2.0, 0.3]), np.float32([1.0, 0.2, -0.5, 4.0])
    posterior = kayn.Importance(rows, num_particles=5, num_replicates=3).run(0, None, y)

    def answers():
        densities = posterior.log_predictive(2, 17, held_out, new_plates=("groups",))
        exact = (posterior.sample(0, 17), posterior.log_likelihood(1, 17), posterior.predictive(1, 17))
        return exact, (densities.joint, densities.pointwise, densities.joint_ess)

    exact, close = answers()
    for module in (replay, predict):
        monkeypatch.setattr(module, "BATCH", 5)
    exact_in_parts, close_in_parts = answers()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), exact, exact_in_parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), close, close_in_parts)
    direct = posterior.log_likelihood(1, 17)["y"]
    assert direct.shape == (17, 4)


@pytest.mark.parametrize(("block", "least", "most"), [(1000, 1, 2), (6, 0, 3)])
def test_draws_of_a_block_are_spread_evenly(block, least, most, monkeypatch):
    """With the exact posterior as proposal all weights are equal: of six draws of five particles each is one or two;
    of blocks of two draws in each of three sets, three times one of them or none."""

    def one(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def exact(y):
        numpyro.sample("mu", dist.Normal(y / 2, 0.5**0.5))

    monkeypatch.setattr(joint, "BLOCK", block)
    posterior = kayn.Importance(one, exact, 5, num_replicates=3).run(0, None, 0.6)
    drawn, counts = np.unique(posterior.sample(0, 18)["mu"], return_counts=True)
    particles = np.ravel(posterior.particles["mu"])
    assert set(drawn) <= set(particles)
    assert len(drawn) == 15 or least == 0
    assert least <= counts.min() and counts.max() <= most
