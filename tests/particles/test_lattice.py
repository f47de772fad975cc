"""Even draws: every draw alone has the exact law, vectors are independent, sets of draws are even."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kayn.particles.lattice import even_normal, lattice

RUNS = 20_000


def many(num, shapes, runs=RUNS, seed=0):
    draw = jax.jit(jax.vmap(lambda key: even_normal(key, num, shapes, jnp.float32)))
    return np.asarray(draw(jax.random.split(jax.random.key(seed), runs)))


@pytest.mark.parametrize(("num", "shapes"), [(1, ((1, 2),)), (2, ((2, 1),)), (5, ((2, 3), (3, 1))), (16, ((1, 4),))])
def test_every_single_draw_is_standard_normal(num, shapes):
    draws = many(num, shapes)
    assert draws.shape == (RUNS, num, sum(count * length for count, length in shapes))
    pvalues = [stats.kstest(column, "norm").pvalue for column in draws.reshape(RUNS, -1).T]
    assert min(pvalues) > 1e-3 / len(pvalues)  # false alarm in one of 1,000 runs


@pytest.mark.parametrize("num", [2, 3, 8, 30])
def test_two_coordinates_of_one_draw_are_independent(num):
    """In one vector and in two, which is what makes products of their densities unbiased."""
    draws = many(num, ((2, 2), (1, 1)))[:, num // 2]
    cells = (draws > 0) + 2 * (np.abs(draws) > stats.norm.ppf(0.75))
    for i in range(5):
        for j in range(i):
            table = np.histogram2d(cells[:, i], cells[:, j], bins=(4, 4))[0]
            assert stats.chisquare(table.ravel()).pvalue > 1e-5  # 40 tables in all: false alarm 0.04 %


@pytest.mark.parametrize("num", [4, 9, 30])
def test_different_vectors_are_independent_as_sets(num):
    """Draw k of one vector tells nothing about draw l of another: evidence estimates multiply over all pairs."""
    draws = many(num, ((2, 1), (1, 2)))
    for first, second in ((0, 1), (0, 2), (1, 3)):
        for other in (0, num - 1):
            table = np.histogram2d(draws[:, 0, first] > 0, draws[:, other, second] > 0, bins=(2, 2))[0]
            assert stats.chisquare(table.ravel()).pvalue > 1e-4


@pytest.mark.parametrize("num", [1, 2, 7, 30, 100])
def test_coordinates_are_stratified(num):
    draws = np.asarray(even_normal(jax.random.key(1), num, ((3, 2), (2, 5)), jnp.float32), np.float64)
    strata = np.floor(stats.norm.cdf(draws) * num + 1e-4 * np.array([-1, 1])[:, None, None])
    # one draw in each stratum, rounding at the borders aside
    for column in range(draws.shape[1]):
        low, high = (np.sort(s[:, column]).clip(0, num - 1) for s in strata)
        assert ((low <= np.arange(num)) & (np.arange(num) <= high)).all()


@pytest.mark.parametrize(("num", "bound"), [(10, 1.0), (30, 0.7), (100, 0.45), (300, 0.3)])
def test_products_of_coordinates_are_averaged_better(num, bound):
    """Variance of the mean over draws, relative to independent draws or strata shuffled independently, which give 1."""
    draws = many(num, ((1, 2),), 4000).astype(np.float64)
    variance = draws.prod(-1).mean(1).var() * num
    assert variance < bound  # its relative standard error is about 2 to 4 %


def test_elements_are_shuffled_against_each_other():
    """Without a shuffle two scalars would be on a line in every set of draws."""
    draws = many(50, ((2, 1),), 500).astype(np.float64)
    moments = (draws[..., 0] * draws[..., 1]).mean(1)
    assert 0.7 < (moments**2).mean() * 50 < 1.3


@pytest.mark.parametrize("num", [1, 2, 3, 6, 10, 97, 100, 1000, 100_000])
def test_generators_are_coprime_and_distinct(num):
    generators = lattice(num, 32)
    assert 1 <= len(generators) <= 32
    assert all(np.gcd(g, num) == 1 for g in generators)
    classes = {min(g % num, -g % num) for g in generators.tolist()}
    assert len(classes) == len(generators)
    if num >= 97:
        assert len(generators) >= 20
    assert generators.max() * num < 2**32


def test_long_vectors_are_cut_into_blocks():
    draws = np.asarray(even_normal(jax.random.key(0), 10, ((1, 50),), jnp.float32))
    correlation = np.corrcoef(draws.T)[~np.eye(50, dtype=bool)]
    assert np.isfinite(draws).all()
    assert len(np.unique(np.round(np.abs(correlation), 3))) > 100  # no two coordinates repeat each other
