"""Latents without a variance are compared in a bounded function of their values, all others in their values."""

from dataclasses import replace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import kayn
from kayn.posterior import enough, wider
from kayn.posterior.measured import MOST, Measure, measure_of, quantiles, tail_index

RNG = np.random.default_rng(5)
PLAIN = Measure(np.zeros(0, int), np.zeros(0), np.zeros(0))


def measured(values):
    """Of particles [R, K, *shape] that all have the same weight."""
    weights = np.full((*values.shape[:2], *(1,) * (values.ndim - 2)), 1 / values.shape[1])
    squares = weights * (values - values.mean((0, 1))) ** 2
    return measure_of(values, weights, squares)


@pytest.mark.parametrize("index", [0.2, 0.5, 1.0])
def test_hills_estimate_is_right_for_powers(index):
    """Within four standard errors, the index over the root of the number beyond; weights count as repeats would."""
    values = RNG.random(20_000) ** -index
    assert tail_index(values, np.ones(20_000), 0.05) == pytest.approx(index, abs=4 * index / 1000**0.5)
    counts = RNG.integers(0, 3, 20_000)
    repeated = np.repeat(values, counts)
    assert tail_index(values, counts.astype(float), 0.05) == pytest.approx(
        tail_index(repeated, np.ones(len(repeated)), 0.05), rel=1e-9
    )


def test_quantiles_are_those_of_repeats():
    values, counts = RNG.normal(size=500), RNG.integers(0, 4, 500)
    expected = np.quantile(np.repeat(values, counts), (0.1, 0.5, 0.99), method="inverted_cdf")
    np.testing.assert_allclose(quantiles(values, counts.astype(float), (0.1, 0.5, 0.99)), expected)


def test_only_what_has_no_variance_is_bounded():
    """Of 60 elements, ten with tails of index one; no Normal, exponential or Student's with four degrees of freedom."""
    kinds = (RNG.normal, RNG.exponential, lambda size: RNG.standard_t(4, size), RNG.standard_cauchy)
    values = np.stack([kinds[3 if n < 10 else n % 3](size=(32, 100)) for n in range(60)], -1).reshape(32, 100, 6, 10)
    found = measured(values)
    assert found.heavy.tolist() == list(range(10))
    np.testing.assert_array_equal(found(values)[..., 1:, :], values[..., 1:, :])
    angles = found(values)[..., 0, :]
    assert np.abs(angles).max() < np.pi / 2
    np.testing.assert_allclose(
        np.quantile(angles, [0.25, 0.5, 0.75], (0, 1)).T, [[-np.pi / 4, 0, np.pi / 4]] * 10, atol=0.2
    )


def test_a_second_part_far_away_is_no_tail():
    """Two per cent of the posterior, a hundred standard deviations away: its variance exists, and tells of it."""
    values = RNG.normal(size=(32, 100))
    assert not measured(np.where(RNG.random((32, 100)) < 0.02, 100 + values, values)).heavy.size


def test_the_worst_of_very_many_are_looked_at():
    found = measured(RNG.standard_cauchy((8, 200, 2 * MOST)))
    assert found.heavy.size <= MOST


def test_no_replicates_and_infinite_values_are_measured_as_they_are():
    assert not measure_of(*(np.zeros((0, 5, 3)),) * 3).heavy.size
    values = RNG.normal(size=(32, 100, 2))
    values[3, 7, 0] = np.inf
    with np.errstate(invalid="ignore"):
        assert not measured(values).heavy.size


def model(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z * scale / (1 + scale), 0.5), obs=y)


def exact(y):
    """The median of the scale and the mean of z, by quadrature over the scale's quantiles and z."""
    share, z = (np.arange(4000) + 0.5) / 4000, np.linspace(-6, 6, 1201)
    scale = stats.halfcauchy.ppf(share)
    joint = stats.norm.pdf(z) * stats.norm.pdf(y, z * (scale / (1 + scale))[:, None], 0.5)
    of_scale = integrate.trapezoid(joint, z, axis=1)
    median = scale[np.searchsorted(np.cumsum(of_scale), of_scale.sum() / 2)]
    return median, integrate.trapezoid(joint.sum(0) * z, z) / integrate.trapezoid(joint.sum(0), z)


@pytest.fixture(scope="module")
def fit():
    return kayn.fit(model, (0.8,), progress=False)


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_a_scale_without_a_variance_needs_no_chains(fit):
    """Half-Cauchy as its posterior is, its mean does not exist: replicates differ without end in its values, which
    asked for as many as there may be, then for chains. Its median and the mean of the other latent against quadrature,
    the latter within .15 standard deviations."""
    posterior = fit.posterior()
    assert not isinstance(posterior, kayn.Chains)
    median, mean = exact(0.8)
    below = np.mean(np.asarray(posterior.sample(0, 4000)["scale"]) < median)
    assert below == pytest.approx(0.5, abs=0.05)
    assert float(posterior.mean("z")) == pytest.approx(mean, abs=0.15 * float(posterior.std("z")))


def test_its_error_is_that_of_what_can_be_known(fit):
    posterior = fit.posterior(num_replicates=64, escalate=False)
    in_values = enough.relative_error(*enough.measured_by_replicate(posterior, "scale", PLAIN)[:2])
    assert enough.relative_error(*enough.by_replicate(posterior, "scale")) < 0.05 < in_values


def test_what_a_wider_guide_finds_is_told_in_the_same_measure(fit):
    """Of the same posterior nothing is missed; of one whose values are a third as large the bulk differs."""
    found = fit.posterior(num_replicates=64, escalate=False)
    other = fit.posterior(num_replicates=64, escalate=False, rng_key=jax.random.key(9))
    assert not [told for told in wider._missed(found, other) if "'scale'" in told]
    values = {**found.draws.values, "scale": found.draws.values["scale"] / 3}
    moved = replace(found, draws=replace(found.draws, values=values))
    assert [told for told in wider._missed(moved, other) if "'scale'" in told]
