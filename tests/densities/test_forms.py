"""Forms of log densities that are quicker than NumPyro's: ends of supports, small counts, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from kayn.densities.log_prob import dependable, log_density

ENDS = {
    "Gamma": (lambda a: dist.Gamma(a, 2.0), [0.0]),
    "Chi2": (lambda a: dist.Chi2(2 * a), [0.0]),
    "Beta": (lambda a: dist.Beta(a, 3.0), [0.0, 1.0]),
    "BetaProportion": (lambda a: dist.BetaProportion(0.3, a), [0.0, 1.0]),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("concentration", [0.5, 1.0, 2.0, 5e3])
def test_ends_of_supports_are_numpyros(name, concentration):
    make, ends = ENDS[name]
    for end in ends:
        np.testing.assert_allclose(
            log_density(make(concentration), end), make(concentration).log_prob(end), rtol=1e-5, atol=1e-5
        )


SMALL_COUNTS = {
    "NegativeBinomial2": (lambda a: dist.NegativeBinomial2(3.0, a), lambda a: stats.nbinom(a, a / (a + 3.0))),
    "GammaPoisson": (lambda a: dist.GammaPoisson(a, 0.1), lambda a: stats.nbinom(a, 0.1 / 1.1)),
    "NegativeBinomialLogits": (
        lambda a: dist.NegativeBinomialLogits(a, -0.5),
        lambda a: stats.nbinom(a, 1 / (1 + np.exp(-0.5))),
    ),
    "NegativeBinomialProbs": (lambda a: dist.NegativeBinomialProbs(a, 0.25), lambda a: stats.nbinom(a, 0.75)),
    "BetaBinomial": (lambda a: dist.BetaBinomial(a, 2 * a, 200), lambda a: stats.betabinom(200, a, 2 * a)),
}


@pytest.mark.parametrize("name", SMALL_COUNTS)
@pytest.mark.parametrize("concentration", [1e-3, 0.5, 4.0, 1e3, 1e6])
def test_small_counts_are_right(name, concentration):
    """Known when the program is traced, so that a form of their own serves."""
    make, exact = SMALL_COUNTS[name]
    counts = np.arange(201)
    right = exact(concentration).logpmf(counts)
    seen = right > -1e3
    found = np.asarray(jax.jit(lambda a: log_density(make(a), counts))(concentration))
    np.testing.assert_allclose(found[seen], right[seen], rtol=1e-5, atol=2e-3)


def test_small_counts_of_hurdles_have_numpyros_form():
    """Also zero is one, for which a hurdle asks its base."""
    base = dependable(dist.HurdleDistribution(dist.Poisson(2.0), gate=0.25), np.arange(5)).base_dist
    assert type(base) is dist.Poisson


IMPOSSIBLE = -1e30


def test_limits_of_parameters():
    counts = np.array([0, 3])
    certain = jax.jit(lambda rate: log_density(dist.GammaPoisson(2.0, rate), counts))(jnp.inf)
    assert abs(certain[0]) < 1e-6 and certain[1] < IMPOSSIBLE
    grows = jax.jit(lambda logits: log_density(dist.NegativeBinomialLogits(2.0, logits), counts))(
        jnp.array([[-jnp.inf], [jnp.inf]])
    )
    assert abs(grows[0, 0]) < 1e-6 and (grows[[0, 1, 1], [1, 0, 1]] < IMPOSSIBLE).all()
    ends = jax.jit(lambda at: log_density(dist.OrderedLogistic(at, jnp.array([-1.0, 1.0])), np.arange(3)))(
        jnp.array([[-jnp.inf], [jnp.inf]])
    )
    assert ends[0, 0] == 0 and ends[1, 2] == 0
    assert (ends[[0, 0, 1, 1], [1, 2, 0, 1]] < IMPOSSIBLE).all()


SMOOTH = {
    "Gamma": (dist.Gamma, np.array([0.3, 1.5, 4.0])),
    "InverseGamma": (dist.InverseGamma, np.array([0.3, 1.5, 4.0])),
    "Beta": (dist.Beta, np.array([0.05, 0.4, 0.98])),
    "NegativeBinomial2": (dist.NegativeBinomial2, np.array([0, 1, 7, 200])),
    "NegativeBinomialLogits": (dist.NegativeBinomialLogits, np.array([0, 1, 7, 200])),
    "BetaBinomial": (lambda a, b: dist.BetaBinomial(a, b, 9), np.array([0, 4, 9])),
    "OrderedLogistic": (lambda a, b: dist.OrderedLogistic(b, jnp.stack([-a, b / 3, a + b])), np.arange(4)),
    "TruncatedNormal": (lambda a, b: dist.TruncatedNormal(b - 2, a, low=0.0), np.array([0.01, 0.5, 3.0])),
    "RightTruncated": (lambda a, b: dist.TruncatedNormal(b / 10 - 2, a, high=-1.0), np.array([-3.0, -1.5, -1.0])),
}


PLACES = np.array([(a, b) for a in (0.2, 3.0, 9.0) for b in (0.1, 2.1, 20.0)])


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_both_orders_are_right(name):
    """Against NumPyro's form in float64, where its arguments are not the same: see the next test."""
    make, value = SMOOTH[name]

    def of(log_prob, dtype):
        with jax.enable_x64(dtype == "float64"):
            rows = value if np.issubdtype(value.dtype, np.integer) else value.astype(dtype)

            def total(place):
                return log_prob(make(*place), rows).sum()

            found = jax.vmap(lambda p: (total(p), jax.grad(total)(p), jax.hessian(total)(p)))
            return [np.asarray(x, float).reshape(len(PLACES), -1) for x in jax.jit(found)(PLACES.astype(dtype))]

    found = of(log_density, "float32"), of(log_density, "float64")
    right = of(lambda fn, x: fn.log_prob(x), "float64")
    for low, high, exact in zip(*found, right, strict=True):
        size = np.abs(exact).max(1, keepdims=True) + 1
        np.testing.assert_allclose(high / size, exact / size, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(low / size, exact / size, rtol=2e-3, atol=2e-4)


def test_derivatives_are_right_where_arguments_are_the_same():
    """Where the larger of two has no second one, and a power of zero no first: against differences."""

    def cases(b):
        yield log_density(dist.TruncatedNormal(b - 2, 3.0, low=0.0), np.array([0.5, 3.0])).sum()
        yield log_density(dist.TruncatedNormal(b - 2, 3.0, high=0.0), np.array([-0.5, -3.0])).sum()
        yield log_density(dist.NegativeBinomial2(3.0, b + 1), np.arange(4)).sum()
        yield log_density(dist.BetaBinomial(b + 1, 2.0, 9), np.arange(4)).sum()
        yield log_density(dist.Beta(b + 1, 2.0), np.array([0.2, 0.5, 0.999])).sum()
        yield log_density(dist.Beta(2.0, b + 1), np.array([0.001, 0.5])).sum()

    with jax.enable_x64(True):
        places, step = jnp.array([0.0, 1.0, 2.0, 3.0]), 1e-4
        functions = [lambda b: jnp.stack([*cases(b)])]
        functions += [jax.jacfwd(functions[0]), jax.jacfwd(jax.jacfwd(functions[0]))]
        value, first, second = (jax.jit(jax.vmap(f)) for f in functions)
        for f, derivative in ((value, first), (first, second)):
            right = (f(places + step) - f(places - step)) / (2 * step)
            np.testing.assert_allclose(derivative(places), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["low", "high"])
def test_an_end_at_infinity_is_none(side):
    """In rows of which some have none, also in the derivatives."""
    rows, ends = np.array([-1.0, 0.5], np.float32), np.array([-np.inf, np.inf][side == "high"] * np.ones(2), np.float32)

    def total(at):
        return log_density(dist.TruncatedNormal(*at, **{side: ends}, validate_args=False), rows).sum()

    def right(at):
        return dist.Normal(*at).log_prob(rows).sum()

    at = jnp.array([0.3, 2.0])
    np.testing.assert_allclose(total(at), right(at), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(at), jax.grad(right)(at), rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(total)(at), jax.hessian(right)(at), rtol=1e-5, atol=1e-6)
