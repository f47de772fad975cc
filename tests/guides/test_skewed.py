"""Normals with one longer tail: moments, densities, the way back from moments, and what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import ExpTransform
from scipy.special import betaln, gammaln

import kayn
from kayn.guides.skewed import LONGEST, Lengthened, Skewed, central, lengthened

GRID = np.linspace(-9.0, 9.0, 100_001)
MASS = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0])


@pytest.mark.parametrize("skew", [-LONGEST, -0.7, 0.0, 0.3, LONGEST])
def test_central_moments_are_those_of_lengthened_noise(skew):
    """By quadrature over the noise."""
    h = np.asarray(lengthened(GRID, skew))
    mean = (MASS * h).sum()
    found = [mean, (MASS * (h - mean) ** 2).sum(), (MASS * (h - mean) ** 3).sum()]
    np.testing.assert_allclose(central(skew), found, atol=1e-8)


def test_the_transform_and_back():
    with jax.enable_x64(True):
        transform, x = Lengthened(jnp.array([-2.0, -0.1, 0.0, 1.3])[:, None]), jnp.linspace(-6.0, 6.0, 101)
        y = transform(x)
        np.testing.assert_allclose(transform._inverse(y), jnp.broadcast_to(x, y.shape), atol=1e-12)
        slope = jax.vmap(jax.vmap(jax.grad(lengthened), (0, None)), (None, 0))(x, transform.skew[:, 0])
        np.testing.assert_allclose(transform.log_abs_det_jacobian(x, y), jnp.log(slope), atol=1e-12)


def test_densities_integrate_to_one_and_tails_are_exponential():
    with jax.enable_x64(True):
        family = Skewed(transform=ExpTransform())
        params = {"loc": jnp.array([0.3, -2.0]), "scale": jnp.array([1.5, 0.2]), "skew": jnp.array([-1.2, 0.4])}
        u = jnp.linspace(-80.0, 40.0, 400_001)[:, None]
        density = jnp.exp(family.distribution(params).log_prob(jnp.exp(u)) + u)
        np.testing.assert_allclose(density.sum(0) * (u[1] - u[0]), 1.0, atol=1e-7)
        # the slope of the log density far out: that of an exponential law of length skew * scale
        far = jax.grad(lambda v: family.distribution({n: p[0] for n, p in params.items()}).log_prob(jnp.exp(v)) + v)
        assert float(far(-70.0)) == pytest.approx(1 / (1.2 * 1.5), rel=0.2)


def test_parameters_from_their_own_moments():
    family = Skewed()
    params = {"loc": np.array([0.3, -2.0, 5.0]), "scale": np.array([1.5, 0.2, 3.0]), "skew": np.array([-1.9, 0.4, 0.0])}
    found = family.from_moments(family.moments(params))
    for name, value in params.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-3)
    plain = Skewed(may=np.array([False, True, True])).from_moments(family.moments(params))
    assert float(plain["skew"][0]) == 0.0
    assert float(plain["scale"][0]) == pytest.approx(np.sqrt(family.moments(params)["variance"][0]), rel=1e-4)


def test_skewness_that_noise_explains_is_none():
    """Ten effective particles: a skewness of a half is less than its sampling error."""
    family = Skewed()
    moments = family.moments({"loc": np.zeros(1), "scale": np.ones(1), "skew": np.array([0.3])})
    assert float(family.from_moments(moments)["skew"][0]) == pytest.approx(0.3, abs=0.01)
    assert float(family.from_moments({**moments, "noise": np.array([0.1])})["skew"][0]) == 0.0


def test_blends_are_moments_of_mixtures():
    """Without noise, where nothing is corrected."""
    family, rng = Skewed(), np.random.default_rng(0)
    u, weights, rate = rng.normal(size=(7, 2)) ** 3, rng.dirichlet(np.ones(7), 2).T, 0.3
    v, others = rng.normal(size=(5, 2)), rng.dirichlet(np.ones(5), 2).T
    quiet = {"noise": np.zeros(2)}
    old = {**family.unconstrained_moments(u, weights), **quiet}
    new = {**family.unconstrained_moments(v, others), **quiet}
    both = family.unconstrained_moments(np.concatenate([u, v]), np.concatenate([(1 - rate) * weights, rate * others]))
    mixed = family.blend(old, new, rate)
    for name in ("mean", "variance", "third"):
        np.testing.assert_allclose(mixed[name], both[name], rtol=1e-5)


def test_particles_have_the_law():
    """Kolmogorov's distance of evenly placed particles is that of their quantiles."""
    family, num = Skewed(), 4001
    params = {"loc": jnp.array([0.5]), "scale": jnp.array([0.7]), "skew": jnp.array([-1.5])}
    noise = jax.scipy.stats.norm.ppf((jnp.arange(num) + 0.5) / num)[:, None]
    u = family.place(noise, params)[:, 0]
    grid = jnp.linspace(-12.0, 5.0, 20_001)
    density = jnp.exp(family.distribution(params).log_prob(grid[:, None]))[:, 0]
    cumulative = jnp.interp(u, grid, jnp.cumsum(density) * (grid[1] - grid[0]))
    np.testing.assert_allclose(cumulative, (np.arange(num) + 0.5) / num, atol=2e-3)


def test_many_rates_near_nought():
    """300 shares with a shape of a half: the evidence and the level are those of the closed form, on a grid."""
    rng = np.random.default_rng(7)
    size = 300
    visitors = rng.integers(5, 40, size)
    sales = rng.binomial(visitors, rng.beta(0.5, 6.0, size))

    def model():
        a = numpyro.sample("a", dist.HalfNormal(3.0))
        with numpyro.plate("groups", size):
            rate = numpyro.sample("rate", dist.Beta(a, 6.0))
            numpyro.sample("sales", dist.Binomial(visitors, rate), obs=sales)

    grid = np.linspace(0.2, 1.2, 2001)
    lp = 0.5 * np.log(2 / np.pi) - np.log(3.0) - 0.5 * (grid / 3) ** 2
    choose = gammaln(visitors + 1) - gammaln(sales + 1) - gammaln(visitors - sales + 1)
    kinds, counts = np.unique(np.stack([visitors, sales]), axis=1, return_counts=True)
    for (n, k), count in zip(kinds.T, counts, strict=True):
        lp = lp + count * (betaln(grid + k, 6.0 + n - k) - betaln(grid, 6.0))
    lp = lp + choose.sum()
    weights = np.exp(lp - lp.max())
    evidence = np.log(weights.sum() * (grid[1] - grid[0])) + lp.max()
    weights /= weights.sum()
    mean = (weights * grid).sum()
    std = np.sqrt((weights * (grid - mean) ** 2).sum())

    posterior = kayn.fit(model, progress=False).posterior()
    assert float(posterior.log_evidence) == pytest.approx(evidence, abs=0.25)
    assert float(posterior.mean("a")) == pytest.approx(mean, abs=0.15 * std)
    assert float(posterior.std("a")) == pytest.approx(std, rel=0.15)
