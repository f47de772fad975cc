"""Every distribution of NumPyro, over parameters and values, ordinary and extreme: rows of numbers,
and how to make it of their columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms
from scipy import special, stats

ROWS = 24
"""All laws have as many rows, the last one repeated, so that what is done one operation at a time is compiled once."""


@dataclass(frozen=True)
class Law:
    """A family over rows.

    Attributes:
        make: the distribution, of arrays [rows].
        rows: parameters and then the value, in each.
        exact: log density by SciPy, of the same columns in float64; None for NumPyro's own in float64.
        value: the value, of the columns that are no parameters; the last one if None.
        parameters: how many columns are.
    """

    make: Callable[..., dist.Distribution]
    rows: Sequence[tuple[float, ...]]
    exact: Callable[..., Any] | None = None
    value: Callable[..., Any] | None = None
    parameters: int | None = None

    def columns(self) -> list[np.ndarray]:
        """In float32, padded."""
        rows = list(self.rows)
        assert len(rows) <= ROWS, len(rows)
        return list(np.array(rows + [rows[-1]] * (ROWS - len(rows)), np.float32).T)

    def split(self, columns: Sequence[Any]) -> tuple[dist.Distribution, Any]:
        """The distribution, and where its density is asked for."""
        count = len(columns) - 1 if self.parameters is None else self.parameters
        value = (self.value or (lambda x: x))(*columns[count:])
        return self.make(*columns[:count]), value


def grid(*choices: Sequence[float]) -> list[tuple[float, ...]]:
    return list(product(*choices))


def around(parameters: Sequence[tuple[float, ...]], *points: Callable[..., float]) -> list[tuple[float, ...]]:
    """Each set of parameters with values that depend on them."""
    return [(*p, float(at(*p))) for p in parameters for at in points]


def counts(
    parameters: Sequence[tuple[float, ...]], mean: Callable[..., float], most: Callable[..., float] = lambda *p: np.inf
) -> list:
    """Each set of parameters with the counts nearest to zero, the mean, and three roots of it further."""
    found = []
    for p in parameters:
        m = mean(*p)
        found += [(*p, x) for x in sorted({0.0, round(m), round(min(m + 3 * np.sqrt(m) + 1, most(*p)))})]
    return found


def rows_of(*arrays: Sequence[float]) -> list[tuple[float, ...]]:
    return [tuple(a) for a in arrays]


def stack(*columns: Any) -> Any:
    return jnp.stack(columns, -1)


SPREAD = [(m, s, m + s * z) for m, s in ((0, 1), (0, 1e-20), (0, 1e15), (512, 2)) for z in (-128, -1, 0, 0.5, 32)]
POSITIVE = (1e-6, 0.5, 3.0, 1e3)
CONCENTRATIONS = (1e-3, 0.5, 30.0, 1e3, 1e6, 1e8)
SHARES = (1e-6, 0.3, 0.999)
LOGITS = (-100.0, -5.0, 0.3, 100.0)


def spread(*more: float) -> list[tuple[float, ...]]:
    return [(m, s, *more, x) for m, s, x in SPREAD]


def gaussian(x: Any, y: Any, r: Any) -> Any:
    """Log density of two standard normal variables of a correlation."""
    return -(x**2 - 2 * r * x * y + y**2) / (2 * (1 - r**2)) - np.log(2 * np.pi) - 0.5 * np.log1p(-(r**2))


def correlated(r: Any) -> Any:
    """[rows, 2, 2], correlation matrices."""
    return stack(stack(jnp.ones_like(r), r), stack(r, jnp.ones_like(r)))


def cholesky(r: Any) -> Any:
    return stack(stack(jnp.ones_like(r), jnp.zeros_like(r)), stack(r, jnp.sqrt((1 - r) * (1 + r)))).swapaxes(-1, -2)


def scaled(a: Any) -> Any:
    return a[:, None, None] * jnp.eye(2, dtype=a.dtype)


def wishart_rows() -> list[tuple[float, ...]]:
    """Degrees of freedom and a scatter of the size to be expected, in triples that make a matrix."""
    return [(n, n * s) for n in (2.5, 30.0, 1e3, 1e5, 1e7) for s in (0.5, 1.0, 1.25)]


def ordered(p: Any, a: Any, b: Any, x: Any) -> Any:
    low, high = np.where(x > 0, np.where(x > 1, b, a), -np.inf), np.where(x > 0, np.where(x > 1, np.inf, b), a)
    # log(expit(high - p) - expit(low - p))
    gap = np.where(
        np.isfinite(high - low), np.where(np.isfinite(low), high, 1) - np.where(np.isfinite(low), low, 0), np.inf
    )
    return special.log_expit(high - p) + special.log_expit(p - low) + np.log(-np.expm1(-gap))


def cut(law: Any, x: Any, low: Any, high: Any) -> Any:
    """Log density of a law between two ends, on the side where its probabilities are small."""
    left, right = law.logcdf(low), law.logcdf(high)
    over, under = law.logsf(low), law.logsf(high)
    mirrored = low > law.median()
    near, far = np.where(mirrored, over, right), np.where(mirrored, under, left)
    with np.errstate(all="ignore"):
        return law.logpdf(x) - near - np.log1p(-np.exp(far - near))


def gate(law: Any, g: Any, x: Any) -> Any:
    return np.where(x == 0, np.log(g + (1 - g) * law.pmf(0)), np.log1p(-g) + law.logpmf(x))


def hurdle(law: Any, g: Any, x: Any, discrete: bool = True) -> Any:
    with np.errstate(all="ignore"):
        positive = law.logpmf(x) - np.log(-np.expm1(law.logpmf(0))) if discrete else law.logpdf(x)
        return np.where(x == 0, np.log(g), np.log1p(-g) + positive)


REAL: dict[str, Law] = {
    "Normal": Law(dist.Normal, spread(), lambda m, s, x: stats.norm(m, s).logpdf(x)),
    "Cauchy": Law(dist.Cauchy, spread(), lambda m, s, x: stats.cauchy(m, s).logpdf(x)),
    "Laplace": Law(dist.Laplace, spread(), lambda m, s, x: stats.laplace(m, s).logpdf(x)),
    "Logistic": Law(dist.Logistic, spread(), lambda m, s, x: stats.logistic(m, s).logpdf(x)),
    "Gumbel": Law(
        dist.Gumbel, [r for r in spread() if r[2] != r[0] - 128 * r[1]], lambda m, s, x: stats.gumbel_r(m, s).logpdf(x)
    ),
    "SoftLaplace": Law(dist.SoftLaplace, spread(), lambda m, s, x: stats.hypsecant(m, s).logpdf(x)),
    "StudentT": Law(
        dist.StudentT,
        [(d, 0.0, s, s * z) for d in (1e-2, 4.0, 1e4, 1e6) for s in (1e-15, 1e15) for z in (-30.0, 0.0, 2.0)],
        lambda d, m, s, x: stats.t(d, m, s).logpdf(x),
    ),
    "AsymmetricLaplace": Law(dist.AsymmetricLaplace, [(m, s, 10.0 if s > 1 else 0.1, x) for m, s, x in SPREAD]),
    "AsymmetricLaplaceQuantile": Law(
        dist.AsymmetricLaplaceQuantile, [(m, s, 0.99 if s > 1 else 1e-4, x) for m, s, x in SPREAD]
    ),
    "VonMises": Law(
        dist.VonMises,
        [(0.5, k, 0.5 + z / np.sqrt(k + 1)) for k in (1e-3, 1.0, 1e3, 1e6, 1e9) for z in (-2.0, 0.0, 1.0)],
    ),
    "Uniform": Law(dist.Uniform, [(-1.0, 1.0, 0.5), (0.0, 1e-30, 5e-31), (-1e37, 1e37, 3.0), (1.0, 1.0 + 2**-20, 1.0)]),
}
HALF: dict[str, Law] = {
    "Exponential": Law(
        dist.Exponential, grid((1e-20, 1.0, 1e20), (1e-20, 1.0, 100.0)), lambda r, x: stats.expon(scale=1 / r).logpdf(x)
    ),
    "HalfNormal": Law(
        dist.HalfNormal, grid((1e-3, 1.0, 1e3), POSITIVE), lambda s, x: stats.halfnorm(scale=s).logpdf(x)
    ),
    "HalfCauchy": Law(
        dist.HalfCauchy, grid((1e-3, 1.0, 1e3), POSITIVE), lambda s, x: stats.halfcauchy(scale=s).logpdf(x)
    ),
    "LogNormal": Law(
        dist.LogNormal,
        grid((-20.0, 0.0, 20.0), (0.01, 3.0), (1e-20, 1.0, 1e20)),
        lambda m, s, x: stats.norm(m, s).logpdf(np.log(x)) - np.log(x),
    ),
    "Gamma": Law(
        dist.Gamma,
        around(grid(CONCENTRATIONS, (1e-3, 1e3)), lambda a, r: a / r, lambda a, r: (a + 2 * np.sqrt(a)) / r),
        lambda a, r, x: stats.gamma(a, scale=1 / r).logpdf(x),
    ),
    "Chi2": Law(
        dist.Chi2,
        around(grid(CONCENTRATIONS), lambda a: a, lambda a: a + 3 * np.sqrt(a)),
        lambda a, x: stats.chi2(a).logpdf(x),
    ),
    "InverseGamma": Law(
        dist.InverseGamma,
        around(grid(CONCENTRATIONS, (1e-3, 1e3)), lambda a, r: r / a, lambda a, r: r / (a + 2 * np.sqrt(a))),
        lambda a, r, x: stats.invgamma(a, scale=r).logpdf(x),
    ),
    "Weibull": Law(
        dist.Weibull,
        around(
            grid((1e-10, 1.0, 1e10), (0.1, 3.0, 1e3)), lambda s, k: s * 1e-2 ** (1 / k), lambda s, k: s * 5 ** (1 / k)
        ),
        lambda s, k, x: stats.weibull_min(k, scale=s).logpdf(x),
    ),
    "Gompertz": Law(
        dist.Gompertz,
        grid((1e-6, 1.0, 1e3), (1e-6, 0.5), (1e-3, 1.0, 20.0)),
        lambda a, r, x: np.log(a) + np.log(r) + r * x - a * np.expm1(r * x),
    ),
    "Pareto": Law(
        dist.Pareto,
        around(grid((1e-6, 1.0, 1e6), (0.1, 3.0, 1e3)), lambda s, a: s * 1.0009765625, lambda s, a: s * 3),
        lambda s, a, x: np.log(a) + a * np.log(s) - (a + 1) * np.log(x),
    ),
    "Levy": Law(
        dist.Levy,
        [(0.0, s, s * z) for s in (1e-10, 1.0, 1e10) for z in (1e-2, 1.0, 1e6)],
        lambda m, s, x: stats.levy(m, s).logpdf(x),
    ),
    "Dagum": Law(dist.Dagum, grid((0.1, 30.0), (0.5, 50.0), (0.1, 10.0), (1e-2, 1.0, 1e3))),
    "LogUniform": Law(dist.LogUniform, [(1e-20, 1e20, 1.0), (1.0, 1.0009765625, 1.00048828125), (1e-3, 1.0, 0.5)]),
    "LowerTruncatedPowerLaw": Law(
        dist.LowerTruncatedPowerLaw, grid((-50.0, -2.0, -1.0009765625), (1.0, 0.01), (1.5, 100.0))
    ),
    "DoublyTruncatedPowerLaw": Law(
        dist.DoublyTruncatedPowerLaw,
        [
            (a, *r)
            for a in (-50.0, -2.0, -1.0009765625, -1.0, 3.0)
            for r in ((1.0, 2.0, 1.5), (0.01, 100.0, 3.0), (1.0, 1.0009765625, 1.00048828125))
        ],
    ),
    "FoldedDistribution": Law(
        lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)),
        grid((-3.0, 0.0, 3.0), (0.125, 1.0), (0.125, 0.5, 20.0)),
        lambda m, s, x: np.logaddexp(stats.norm(m, s).logpdf(x), stats.norm(m, s).logpdf(-x)),
    ),
}
BOUNDED: dict[str, Law] = {
    "Beta": Law(
        dist.Beta,
        around(
            grid((0.01, 1.0, 1e3, 1e7), (0.5, 30.0, 1e6)),
            lambda a, b: min(max(a / (a + b), 1e-4), 0.9998),
            lambda a, b: min(max(a / (a + b) + np.sqrt(a * b / (a + b) ** 3) / 2, 1e-4), 0.9995),
        ),
        lambda a, b, x: stats.beta(a, b).logpdf(x),
    ),
    "BetaProportion": Law(
        dist.BetaProportion,
        [(0.25, k, x) for k in (0.1, 30.0, 1e3, 1e6) for x in (1e-3, 0.25, 0.2505, 0.9)],
        lambda m, k, x: stats.beta(m * k, (1 - m) * k).logpdf(x),
    ),
    "Kumaraswamy": Law(
        dist.Kumaraswamy,
        grid((0.1, 3.0, 1e3), (0.1, 3.0, 1e3), (0.25, 1 - 2**-20)),
        lambda a, b, x: np.log(a) + np.log(b) + (a - 1) * np.log(x) + (b - 1) * np.log(-np.expm1(a * np.log(x))),
    ),
    "RelaxedBernoulliLogits": Law(
        dist.RelaxedBernoulliLogits, grid((0.1, 2.0), (-30.0, 0.0, 30.0), (1e-6, 0.3, 1 - 2**-20))
    ),
    "TruncatedPolyaGamma": Law(
        lambda: dist.TruncatedPolyaGamma((ROWS,)), grid((1e-2, 0.1, 0.5, 2.0, 2.4)), parameters=0
    ),
    "SineSkewed": Law(
        lambda k, s: dist.SineSkewed(dist.VonMises(jnp.zeros_like(k)[:, None], k[:, None]).to_event(1), s[:, None]),
        grid((1.0, 1e3), (-0.9, 0.5), (-1.5, 0.0, 0.5)),
        value=lambda x: x[:, None],
        parameters=2,
    ),
    "SineBivariateVonMises": Law(
        lambda k, c: dist.SineBivariateVonMises(jnp.zeros_like(k), jnp.zeros_like(k), k, k, correlation=c),
        [(k, k * c, x, y) for k in (0.5, 5.0, 100.0, 1e4) for c in (0.0, 0.5) for x, y in ((0.0, 0.0), (0.1, -0.1))],
        value=stack,
        parameters=2,
    ),
}
COUNTS: dict[str, Law] = {
    "BernoulliLogits": Law(
        dist.BernoulliLogits, grid(LOGITS, (0.0, 1.0)), lambda w, x: special.log_expit(np.where(x > 0, w, -w))
    ),
    "BernoulliProbs": Law(
        dist.BernoulliProbs, grid(SHARES, (0.0, 1.0)), lambda p, x: np.log(np.where(x > 0, p, 1 - p))
    ),
    "CategoricalLogits": Law(
        lambda a: dist.CategoricalLogits(stack(a, -a, 0 * a)),
        grid(LOGITS, (0.0, 1.0, 2.0)),
        value=lambda x: x.astype(int),
    ),
    "CategoricalProbs": Law(
        lambda p: dist.CategoricalProbs(stack(p, 1 - p)),
        grid(SHARES, (0.0, 1.0)),
        lambda p, x: np.log(np.where(x == 0, p, 1 - p)),
        value=lambda x: x.astype(int),
    ),
    "BinomialProbs": Law(
        lambda n, p: dist.BinomialProbs(p, n),
        counts(grid((10.0, 1e5, 1e7), (1e-4, 0.25)), lambda n, p: n * p, lambda n, p: n),
        lambda n, p, x: stats.binom(n, p).logpmf(x),
    ),
    "BinomialLogits": Law(
        lambda n, w: dist.BinomialLogits(w, n),
        counts(grid((10.0, 1e5, 1e7), (-9.0, 1.0)), lambda n, w: n * special.expit(w), lambda n, w: n),
        lambda n, w, x: stats.binom(n, special.expit(w)).logpmf(x),
    ),
    "BetaBinomial": Law(
        lambda a, b, n: dist.BetaBinomial(a, b, n),
        [
            (a, b, n, x)
            for a, b in ((0.25, 1.0), (1e3, 3e3), (1e7, 3e7))
            for n in (10.0, 1000.0)
            for x in (0.0, n // 4, n)
        ],
        lambda a, b, n, x: stats.betabinom(n, a, b).logpmf(x),
    ),
    "BetaNegativeBinomial": Law(
        lambda a, b, n: dist.BetaNegativeBinomial(a, b, n),
        [
            (a, b, n, x)
            for a, b in ((0.25, 1.0), (1e3, 3e3), (1e7, 3e7))
            for n in (10.0, 1000.0)
            for x in (0.0, n // 4, n)
        ],
        lambda a, b, n, x: stats.betanbinom(n, b, a).logpmf(x),
    ),
    "Poisson": Law(
        dist.Poisson,
        counts(grid((1e-10, 0.5, 20.0, 1e4, 1e6, 1e7)), lambda m: m),
        lambda m, x: stats.poisson(m).logpmf(x),
    ),
    "GammaPoisson": Law(
        dist.GammaPoisson,
        counts(grid((0.5, 1e3, 1e6), (1e-2, 10.0, 1e4)), lambda a, r: a / r),
        lambda a, r, x: stats.nbinom(a, r / (1 + r)).logpmf(x),
    ),
    "NegativeBinomial2": Law(
        dist.NegativeBinomial2,
        counts(grid((0.1, 1e4), (0.5, 1e3, 1e5, 1e6)), lambda m, a: m),
        lambda m, a, x: stats.nbinom(a, a / (a + m)).logpmf(x),
    ),
    "NegativeBinomialProbs": Law(
        dist.NegativeBinomialProbs,
        counts(grid((0.5, 1e3, 1e6), (1e-4, 0.5)), lambda a, p: a * p / (1 - p)),
        lambda a, p, x: stats.nbinom(a, 1 - p).logpmf(x),
    ),
    "NegativeBinomialLogits": Law(
        dist.NegativeBinomialLogits,
        counts(grid((0.5, 1e3, 1e6), (-9.0, 0.5)), lambda a, w: a * np.exp(w)),
        lambda a, w, x: stats.nbinom(a, special.expit(-w)).logpmf(x),
    ),
    "GeometricProbs": Law(
        dist.GeometricProbs, grid((1e-6, 0.3, 0.999), (0.0, 3.0, 1e6)), lambda p, x: x * np.log1p(-p) + np.log(p)
    ),
    "GeometricLogits": Law(
        dist.GeometricLogits,
        grid((-14.0, 0.3, 14.0), (0.0, 3.0, 1e6)),
        lambda w, x: x * special.log_expit(-w) + special.log_expit(w),
    ),
    "DiscreteUniform": Law(
        lambda a, b: dist.DiscreteUniform(a.astype(int), b.astype(int)),
        [(0.0, 10.0, 3.0), (-1e6, 1e6, 5.0), (3.0, 3.0, 3.0)],
    ),
    "MultinomialProbs": Law(
        lambda p: dist.MultinomialProbs(stack(p, 1 - p), 10**7),
        [(0.25, x, 1e7 - x) for x in (2.5e6, 2.501e6)],
        lambda p, x, y: stats.binom(1e7, p).logpmf(x),
        value=stack,
        parameters=1,
    ),
    "MultinomialLogits": Law(
        lambda w: dist.MultinomialLogits(stack(w, 0 * w), 10**7),
        [(w, x, 1e7 - x) for w, x in ((-9.0, 1234.0), (0.5, 6.22e6))],
        lambda w, x, y: stats.binom(1e7, special.expit(w)).logpmf(x),
        value=stack,
        parameters=1,
    ),
    "DirichletMultinomial": Law(
        lambda a, b: dist.DirichletMultinomial(stack(a, b), 1000),
        [(a, b, x, 1000 - x) for a, b in ((0.25, 1.0), (1e3, 3e3), (1e7, 3e7)) for x in (0.0, 250.0, 280.0)],
        lambda a, b, x, y: stats.betabinom(1000, a, b).logpmf(x),
        value=stack,
        parameters=2,
    ),
    "OrderedLogistic": Law(
        lambda p, a, b: dist.OrderedLogistic(p, stack(a, b)),
        [
            (p, a, b, x)
            for p in (-40.0, -12.0, 0.5, 20.0)
            for a, b in ((-1.0, 2.0), (0.0, 2**-20))
            for x in (0.0, 1.0, 2.0)
        ],
        ordered,
        value=lambda x: x.astype(int),
    ),
    "ZeroInflatedPoisson": Law(
        lambda g, r: dist.ZeroInflatedPoisson(g, r),
        grid((1e-9, 0.3), (1e-9, 3.0, 1e6), (0.0, 1.0, 1e6)),
        lambda g, r, x: gate(stats.poisson(r), g, x),
    ),
    "ZeroInflatedProbs": Law(
        lambda g, a: dist.ZeroInflatedProbs(dist.NegativeBinomial2(a, 1e5), gate=g),
        grid((1e-9, 0.3), (1.0, 1e3), (0.0, 1.0, 1e3)),
        lambda g, m, x: gate(stats.nbinom(1e5, 1e5 / (1e5 + m)), g, x),
    ),
    "ZeroInflatedLogits": Law(
        lambda w, r: dist.ZeroInflatedLogits(dist.Poisson(r), gate_logits=w),
        grid((-20.0, 0.3, 14.0), (1e-9, 3.0, 1e6), (0.0, 1e6)),
        lambda w, r, x: np.where(
            x == 0,
            np.logaddexp(special.log_expit(w), special.log_expit(-w) - r),
            special.log_expit(-w) + stats.poisson(r).logpmf(x),
        ),
    ),
    "HurdlePoisson": Law(
        lambda g, r: dist.HurdlePoisson(g, r),
        grid((1e-6, 0.3), (1e-9, 3.0, 1e6), (0.0, 1.0, 1e6)),
        lambda g, r, x: hurdle(stats.poisson(r), g, x),
    ),
    "HurdleProbs": Law(
        lambda g, m: dist.HurdleProbs(dist.NegativeBinomial2(m, 1e5), gate=g),
        grid((1e-6, 0.3), (1.0, 1e3), (0.0, 1.0, 1e3)),
        lambda g, m, x: hurdle(stats.nbinom(1e5, 1e5 / (1e5 + m)), g, x),
    ),
    "HurdleLogits": Law(
        lambda w, r: dist.HurdleLogits(dist.Poisson(r), gate_logits=w),
        grid((-20.0, 0.3, 14.0), (1e-9, 3.0), (0.0, 1.0)),
        lambda w, r, x: np.where(
            x == 0, special.log_expit(w), special.log_expit(-w) + stats.poisson(r).logpmf(x) - np.log(-np.expm1(-r))
        ),
    ),
    "HurdleGamma": Law(
        lambda g, a: dist.HurdleGamma(g, a, 1.0),
        grid((1e-6, 0.3), (0.5, 1e6), (0.0, 1.0, 1e6)),
        lambda g, a, x: hurdle(stats.gamma(a), g, x, False),
    ),
    "HurdleLogNormal": Law(
        lambda g, m: dist.HurdleLogNormal(g, m, 1.0),
        grid((1e-6, 0.3), (-3.0, 3.0), (0.0, 1.0, 1e6)),
        lambda g, m, x: hurdle(stats.lognorm(1, scale=np.exp(m)), g, x, False),
    ),
}
VECTORS: dict[str, Law] = {
    "Dirichlet": Law(
        lambda a, b: dist.Dirichlet(stack(a, b)),
        [(a, b, x, 1 - x) for a, b in ((0.25, 1.0), (1e3, 3e3), (1e7, 3e7)) for x in (0.25, 0.25 + 2**-12)],
        lambda a, b, x, y: stats.beta(a, b).logpdf(x),
        value=stack,
        parameters=2,
    ),
    "MultivariateNormal": Law(
        lambda r: dist.MultivariateNormal(jnp.zeros(2), correlated(r)),
        grid((-0.5, 0.0, 1 - 2**-10), (-100.0, 0.5), (-100.0, 2.0)),
        lambda r, x, y: gaussian(x, y, r),
        value=stack,
        parameters=1,
    ),
    "LowRankMultivariateNormal": Law(
        lambda s, d: dist.LowRankMultivariateNormal(jnp.zeros(2), jnp.stack([s, s], -1)[..., None], stack(d, d)),
        [(s, d, x, y) for s in (0.5, 3.0) for d in (2**-16, 1.0) for x, y in ((0.0, 0.0), (1.0, 1.0), (1.0, -1.0))],
        value=stack,
        parameters=2,
    ),
    "MultivariateStudentT": Law(
        lambda d, r: dist.MultivariateStudentT(d, jnp.zeros(2), cholesky(r)),
        [(d, 0.5, x, -x) for d in (0.5, 4.0, 1e4, 1e7) for x in (0.0, 3.0, 100.0)],
        value=stack,
        parameters=2,
    ),
    "MatrixNormal": Law(
        lambda r: dist.MatrixNormal(jnp.zeros((2, 1)), cholesky(r), jnp.eye(1)),
        grid((-0.5, 1 - 2**-10), (-100.0, 0.5), (0.5, 2.0)),
        lambda r, x, y: gaussian(x, y, r),
        value=lambda x, y: stack(x, y)[..., None],
        parameters=1,
    ),
    "Wishart": Law(lambda n: dist.Wishart(n, scaled(jnp.ones_like(n))), wishart_rows(), value=scaled),
    "WishartCholesky": Law(
        lambda n: dist.WishartCholesky(n, scaled(jnp.ones_like(n))), wishart_rows(), value=lambda a: scaled(jnp.sqrt(a))
    ),
    "InverseWishart": Law(
        lambda n: dist.InverseWishart(n, scaled(jnp.ones_like(n))), wishart_rows(), value=lambda a: scaled(1 / a)
    ),
    "InverseWishartCholesky": Law(
        lambda n: dist.InverseWishartCholesky(n, scaled(jnp.ones_like(n))),
        wishart_rows(),
        value=lambda a: scaled(1 / jnp.sqrt(a)),
    ),
    "LKJ": Law(
        lambda c: dist.LKJ(2, c),
        [(c, r / np.sqrt(1 + c)) for c in CONCENTRATIONS[1:] for r in (0.0, 0.5, -1.0)],
        lambda c, r: stats.beta(c, c).logpdf((1 + r) / 2) - np.log(2),
        value=correlated,
    ),
    "LKJCholesky": Law(
        lambda c: dist.LKJCholesky(2, c),
        [(c, r / np.sqrt(1 + c)) for c in CONCENTRATIONS[1:] for r in (0.0, 0.5, -1.0)],
        value=cholesky,
    ),
    "CAR": Law(
        lambda r, t: dist.CAR(0.0, r, t, jnp.array([[0.0, 1.0], [1.0, 0.0]])),
        [
            (r, t, x, y)
            for r in (0.5, 1 - 2**-10)
            for t in (0.01, 100.0)
            for x, y in ((0.0, 0.0), (1.0, -1.0), (3.0, 3.0))
        ],
        value=stack,
        parameters=2,
    ),
    "CirculantNormal": Law(
        lambda r: dist.CirculantNormal(jnp.zeros(2), stack(jnp.ones_like(r), r)),
        grid((0.0, 0.5, 0.99), (-3.0, 0.5), (0.5, 2.0)),
        lambda r, x, y: gaussian(x, y, r),
        value=stack,
        parameters=1,
    ),
    "GaussianRandomWalk": Law(
        lambda s: dist.GaussianRandomWalk(s, 2),
        [(s, x, y) for s in (1e-3, 1.0, 1e3) for x, y in ((0.0, 0.0), (1.0, 1.5))],
        lambda s, x, y: stats.norm(0, s).logpdf(x) + stats.norm(x, s).logpdf(y),
        value=stack,
        parameters=1,
    ),
    "GaussianStateSpace": Law(
        lambda s: dist.GaussianStateSpace(2, jnp.eye(1), scale_tril=s[:, None, None]),
        [(s, x, y) for s in (1e-3, 1.0, 1e3) for x, y in ((0.0, 0.0), (1.0, 1.5))],
        lambda s, x, y: stats.norm(0, s).logpdf(x) + stats.norm(x, s).logpdf(y),
        value=lambda x, y: stack(x, y)[..., None],
        parameters=1,
    ),
    "EulerMaruyama": Law(
        lambda s: dist.EulerMaruyama(
            jnp.array([0.0, 1.0]), lambda x, t: (0.0 * x, s[:, None] + 0.0 * x), dist.Normal(jnp.zeros_like(s), s)
        ),
        [(s, x, y) for s in (1e-3, 1.0, 1e3) for x, y in ((0.0, 0.0), (1.0, 1.5))],
        lambda s, x, y: stats.norm(0, s).logpdf(x) + stats.norm(x, s).logpdf(y),
        value=stack,
        parameters=1,
    ),
    "ZeroSumNormal": Law(
        lambda: dist.ZeroSumNormal(0.25, (2,)), grid((0.0, 0.5, 8.0)), value=lambda x: stack(x, -x), parameters=0
    ),
    "GaussianCopula": Law(
        lambda r: dist.GaussianCopula(dist.Normal(jnp.zeros((ROWS, 2)), 1.0), correlation_matrix=correlated(r)),
        [(r, x, y) for r in (-0.5, 0.9) for x, y in ((0.0, 0.0), (1.0, 1.5), (-4.0, 4.0), (6.0, 6.0), (-8.0, -9.0))],
        lambda r, x, y: gaussian(x, y, r),
        value=stack,
        parameters=1,
    ),
    "GaussianCopulaBeta": Law(
        lambda r: dist.GaussianCopulaBeta(jnp.ones((ROWS, 2)), jnp.ones((ROWS, 2)), correlation_matrix=correlated(r)),
        [(r, x, y) for r in (-0.5, 0.9) for x, y in ((0.5, 0.25), (1e-3, 0.5), (1e-7, 1e-6))],
        value=stack,
        parameters=1,
    ),
    "ProjectedNormal": Law(
        lambda c: dist.ProjectedNormal(stack(c, 0 * c)),
        [(c, np.cos(t), np.sin(t)) for c in (0.0, 1.0, 10.0) for t in (0.0, 0.5, 2.0)],
        value=stack,
        parameters=1,
    ),
}
N01 = stats.norm(0, 1)
ENDS = [(m, x) for m in (-300.0, -30.0, -3.0, 0.3, 40.0) for x in (0.125, 0.5, 0.875)]
TRUNCATED: dict[str, Law] = {
    **{
        f"LeftTruncatedDistribution[{base.__name__}]": Law(
            lambda m, base=base: dist.LeftTruncatedDistribution(base(m, 1.0), low=0.0),
            ENDS,
            lambda m, x, law=law: law(m, 1).logpdf(x) - law(m, 1).logsf(0),
        )
        for base, law in (
            (dist.Normal, stats.norm),
            (dist.Cauchy, stats.cauchy),
            (dist.Logistic, stats.logistic),
            (dist.Laplace, stats.laplace),
            (dist.SoftLaplace, stats.hypsecant),
        )
    },
    **{
        f"RightTruncatedDistribution[{base.__name__}]": Law(
            lambda m, base=base: dist.RightTruncatedDistribution(base(-m, 1.0), high=0.0),
            [(m, -x) for m, x in ENDS],
            lambda m, x, law=law: law(-m, 1).logpdf(x) - law(-m, 1).logcdf(0),
        )
        for base, law in (
            (dist.Normal, stats.norm),
            (dist.Cauchy, stats.cauchy),
            (dist.Logistic, stats.logistic),
            (dist.Laplace, stats.laplace),
            (dist.SoftLaplace, stats.hypsecant),
        )
    },
    **{
        f"TwoSidedTruncatedDistribution[{base.__name__}]": Law(
            lambda m, base=base: dist.TwoSidedTruncatedDistribution(base(m, 1.0), low=0.0, high=1.0),
            ENDS,
            lambda m, x, law=law: cut(law(m, 1), x, 0.0, 1.0),
        )
        for base, law in (
            (dist.Normal, stats.norm),
            (dist.Cauchy, stats.cauchy),
            (dist.Logistic, stats.logistic),
            (dist.Laplace, stats.laplace),
        )
    },
    "LeftTruncatedDistribution[StudentT]": Law(
        lambda m: dist.LeftTruncatedDistribution(dist.StudentT(4.0, m, 1.0), low=0.0),
        ENDS,
        lambda m, x: stats.t(4, m).logpdf(x) - stats.t(4, m).logsf(0),
    ),
    "TwoSidedTruncatedDistribution[StudentT]": Law(
        lambda m: dist.TwoSidedTruncatedDistribution(dist.StudentT(4.0, m, 1.0), low=0.0, high=1.0),
        ENDS,
        lambda m, x: cut(stats.t(4, m), x, 0.0, 1.0),
    ),
    "LeftTruncatedGamma": Law(
        lambda a: dist.LeftTruncatedGamma(dist.Gamma(a, 1.0), low=50.0),
        grid((0.5, 3.0, 20.0, 100.0), (50.5, 60.0, 100.0)),
        lambda a, x: stats.gamma(a).logpdf(x) - stats.gamma(a).logsf(50),
    ),
    "RightTruncatedGamma": Law(
        lambda a: dist.RightTruncatedGamma(dist.Gamma(a, 1.0), high=2.0),
        grid((0.5, 3.0, 20.0, 100.0), (0.5, 1.0, 1.9)),
        lambda a, x: stats.gamma(a).logpdf(x) - stats.gamma(a).logcdf(2),
    ),
    "TwoSidedTruncatedGamma": Law(
        lambda a, w: dist.TwoSidedTruncatedGamma(dist.Gamma(a, 1.0), low=w, high=w + 4.0),
        [(a, w, w + d) for a in (0.5, 3.0, 20.0) for w in (1.0, 50.0) for d in (0.5, 3.0)],
        lambda a, w, x: cut(stats.gamma(a), x, w, w + 4),
    ),
}
CENSORED_LAWS: dict[str, tuple[Callable[[], dist.Distribution], Any, Sequence[float]]] = {
    "Normal": (lambda: dist.Normal(1.0, 2.0), stats.norm(1, 2), (-60.0, 0.0, 5.0, 100.0)),
    "Cauchy": (lambda: dist.Cauchy(1.0, 2.0), stats.cauchy(1, 2), (-1e6, 0.0, 5.0, 1e9)),
    "Laplace": (lambda: dist.Laplace(0.0, 2.0), stats.laplace(0, 2), (-100.0, 3.0, 200.0)),
    "LogNormal": (lambda: dist.LogNormal(0.0, 0.5), stats.lognorm(0.5), (1e-3, 3.0, 1e3)),
    "Logistic": (lambda: dist.Logistic(0.0, 2.0), stats.logistic(0, 2), (-100.0, 3.0, 200.0)),
    "SoftLaplace": (lambda: dist.SoftLaplace(0.0, 2.0), stats.hypsecant(0, 2), (-30.0, 3.0, 30.0)),
    "Exponential": (lambda: dist.Exponential(2.0), stats.expon(scale=0.5), (1e-6, 1.0, 200.0)),
    "Weibull": (lambda: dist.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2), (1e-4, 1.0, 80.0)),
    "Gompertz": (lambda: dist.Gompertz(1.0, 0.5), stats.gompertz(1.0, scale=2.0), (1e-4, 1.0, 10.0)),
    "Gumbel": (lambda: dist.Gumbel(0.0, 1.0), stats.gumbel_r(0, 1), (-3.0, 0.0, 60.0)),
    "HalfNormal": (lambda: dist.HalfNormal(1.0), stats.halfnorm(), (1e-4, 1.0, 30.0)),
    "HalfCauchy": (lambda: dist.HalfCauchy(1.0), stats.halfcauchy(), (1e-4, 1.0, 1e9)),
    "StudentT": (lambda: dist.StudentT(4.0), stats.t(4), (-100.0, 0.5, 1e3, 1e7)),
    "Gamma": (lambda: dist.Gamma(2.5, 1.0), stats.gamma(2.5), (1e-3, 5.0, 150.0)),
    "Chi2": (lambda: dist.Chi2(5.0), stats.chi2(5), (1e-3, 5.0, 300.0)),
    "InverseGamma": (lambda: dist.InverseGamma(2.5, 1.0), stats.invgamma(2.5), (0.02, 1.0, 100.0)),
    "Pareto": (lambda: dist.Pareto(1.0, 2.0), stats.pareto(2.0), (1.5, 1e6)),
    "Uniform": (lambda: dist.Uniform(0.0, 1.0), stats.uniform(), (1e-6, 0.5, 1 - 2**-20)),
    "Beta": (lambda: dist.Beta(2.0, 30.0), stats.beta(2, 30), (1e-5, 0.1, 0.5, 0.9)),
    "Levy": (lambda: dist.Levy(0.0, 1.0), stats.levy(), (1e-2, 1.0, 1e10, 1e15)),
    "LogUniform": (lambda: dist.LogUniform(1.0, 10.0), stats.loguniform(1, 10), (1.0009765625, 3.0, 9.9990234375)),
    "AsymmetricLaplace": (
        lambda: dist.AsymmetricLaplace(0.0, 1.0, 0.5),
        stats.laplace_asymmetric(0.5),
        (-40.0, 0.5, 100.0),
    ),
    "Poisson": (lambda: dist.Poisson(20.0), stats.poisson(20), (0.0, 20.0, 60.0, 200.0)),
}
CENSORED: dict[str, Law] = {
    f"{side.__name__}[{name}]": Law(
        lambda make=make, side=side: side(make(), np.array(True)),
        [(x,) for x in values],
        law and (law.logcdf if side is dist.LeftCensoredDistribution else law.logsf),
        parameters=0,
    )
    for name, (make, law, values) in CENSORED_LAWS.items()
    for side in (dist.LeftCensoredDistribution, dist.RightCensoredDistribution)
}
WRAPPED_ROWS = [(m, x) for m in (0.5, 20.0) for x in (0.0, 1.0, 20.0)]


def concentrated(m: Any) -> dist.Distribution:
    """Counts that NumPyro's form loses, to be found within whatever is around them."""
    return dist.NegativeBinomial2(m, 1e8)


def concentrated_exactly(m: Any, x: Any) -> Any:
    return stats.poisson(m).logpmf(x)  # within 2e-6


WRAPPED: dict[str, Law] = {
    "MaskedDistribution": Law(lambda m: concentrated(m).mask(True), WRAPPED_ROWS, concentrated_exactly),
    "ExpandedDistribution": Law(
        lambda m: concentrated(m).expand([ROWS]).expand([1, ROWS]), WRAPPED_ROWS, concentrated_exactly
    ),
    "Independent": Law(
        lambda m: concentrated(m[:, None]).to_event(1), WRAPPED_ROWS, concentrated_exactly, value=lambda x: x[:, None]
    ),
    "MixtureSameFamily": Law(
        lambda m: dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), concentrated(stack(m, m))),
        WRAPPED_ROWS,
        concentrated_exactly,
    ),
    "MixtureGeneral": Law(
        lambda m: dist.MixtureGeneral(dist.Categorical(jnp.array([0.5, 0.5])), [concentrated(m), concentrated(m)]),
        WRAPPED_ROWS,
        concentrated_exactly,
    ),
    "TransformedDistribution": Law(
        lambda a: dist.TransformedDistribution(
            dist.Gamma(a, 1.0), transforms.AffineTransform(0.0, 2.0, domain=constraints.positive)
        ),
        [(1e8, 2e8), (1e8, 2.0002e8)],
        lambda a, x: stats.gamma(a, scale=2).logpdf(x),
    ),
    "IntervalCensoredDistribution": Law(
        lambda: dist.IntervalCensoredDistribution(dist.Normal(0.0, 1.0), np.array(False), np.array(False)),
        [(-1.0, 1.0), (20.0, 21.0), (-9.0, -8.5)],
        lambda a, b: (
            np.where(a > 0, stats.norm.logsf(np.abs(a)), stats.norm.logcdf(b))
            + np.log1p(
                -np.exp(
                    np.where(
                        a > 0, stats.norm.logsf(b) - stats.norm.logsf(a), stats.norm.logcdf(a) - stats.norm.logcdf(b)
                    )
                )
            )
        ),
        value=stack,
        parameters=0,
    ),
}
LAWS = {**REAL, **HALF, **BOUNDED, **COUNTS, **VECTORS, **TRUNCATED, **CENSORED, **WRAPPED}

LAWS = {name: law for name, law in LAWS.items() if hasattr(dist, name.partition("[")[0])}
"""Those that the installed release exports."""
