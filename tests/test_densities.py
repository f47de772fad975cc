"""Log densities in float32: a sweep over NumPyro's distributions, stable forms, and what becomes of densities that are none."""

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI
from scipy import stats
from scipy.special import logsumexp

import kayn
from kayn.graph.densities import log_density

RANGE = (1e-3, 1.0, 30.0, 1e3, 1e6, 1e9)


def error(make, values, reference=None):
    """Largest error of kayn's and of NumPyro's own float32 log density, in nats where values are below 100, else in hundredths of them."""
    x = jnp.asarray(np.asarray(values, np.float32))
    # where SciPy has no value, NumPyro in float64
    ours, theirs = np.asarray(log_density(make(), x)), np.asarray(make().log_prob(x))
    if reference is None:
        with jax.enable_x64(True):
            reference = np.asarray(make().log_prob(jnp.asarray(np.asarray(values, np.float32), jnp.float64)))
    allowed = 1 + 1e-2 * np.abs(reference)

    def worst(found):
        gap = np.where(found == reference, 0.0, np.abs(found - reference) / allowed)
        return float(np.nan_to_num(gap, nan=np.inf).max())

    return worst(ours), worst(theirs)


def counts(mean):
    return np.unique(np.round(np.maximum(0, mean + np.sqrt(mean) * np.array([-2.0, 0, 1, 3]))).astype(np.float32))


def f32(x):
    return float(np.float32(x))


def sweep():
    """(family, parameters, how to make it, values, log density by SciPy in float64)."""
    for a in RANGE:
        for m in (0.1, 20.0, 1e4):
            x, a32 = counts(m), f32(a)
            exact = stats.nbinom(a32, a32 / (a32 + f32(m))).logpmf(x) if a < 1e7 else stats.poisson(f32(m)).logpmf(x)
            if a < 1e5 or m < 1e3:
                yield "NegativeBinomial2", (m, a), lambda m=m, a=a: dist.NegativeBinomial2(m, a), x, exact
    for m in (0.1, 20.0, 1e3, 1e6, 1e8):
        yield "Poisson", (m,), lambda m=m: dist.Poisson(m), counts(m), stats.poisson(f32(m)).logpmf(counts(m))
    for n in (10.0, 1e3, 1e5, 1e7):
        for p in (1e-5, 0.3, 0.9):
            x = np.minimum(counts(n * p), n)
            yield (
                "BinomialProbs",
                (n, p),
                lambda n=n, p=p: dist.BinomialProbs(p, n),
                x,
                stats.binom(n, f32(p)).logpmf(x),
            )
            logit = f32(np.log(p / (1 - p)))
            exact = stats.binom(n, 1 / (1 + np.exp(-logit))).logpmf(x)
            yield "BinomialLogits", (n, p), lambda n=n, logit=logit: dist.BinomialLogits(logit, n), x, exact
    for a in (0.3, 5.0, 1e3, 1e7):
        for n in (10.0, 1000.0):
            x = np.array([0, 1, n // 3, n])
            exact = stats.betabinom(n, f32(a), f32(3 * a)).logpmf(x)
            yield "BetaBinomial", (a, n), lambda a=a, n=n: dist.BetaBinomial(a, 3 * a, n), x, exact
            exact = stats.betanbinom(n, f32(3 * a), f32(a)).logpmf(x)
            yield "BetaNegativeBinomial", (a, n), lambda a=a, n=n: dist.BetaNegativeBinomial(a, 3 * a, n), x, exact
        x = np.array([[2.0, 3, 5], [0, 0, 10]])
        exact = stats.dirichlet_multinomial([f32(a), f32(2 * a), f32(a)], 10).logpmf(x.astype(int))
        yield (
            "DirichletMultinomial",
            (a,),
            lambda a=a: dist.DirichletMultinomial(jnp.array([a, 2 * a, a]), 10),
            x,
            exact,
        )
    for n in (10.0, 1e4, 1e7):
        p = np.float32([0.2, 0.3, 0.5]).astype(float)
        x = np.round(n * p)[None]
        exact = stats.multinomial(int(n), p / p.sum()).logpmf(x.astype(int))
        yield "MultinomialProbs", (n,), lambda n=n: dist.MultinomialProbs(jnp.array([0.2, 0.3, 0.5]), int(n)), x, exact
    for df in RANGE:
        x = np.array([0.0, 1, 30])
        exact = stats.t(f32(df)).logpdf(x) if df < 1e8 else stats.norm.logpdf(x)
        yield "StudentT", (df,), lambda df=df: dist.StudentT(df), x, exact
    for a in (0.5, 30.0, 1e3, 1e6, 1e8):
        x = np.float32(a * (1 + np.array([-0.5, 0, 0.5]) / np.sqrt(a)) + 1e-3).astype(float)
        yield "Gamma", (a,), lambda a=a: dist.Gamma(a, 1.0), x, stats.gamma(f32(a)).logpdf(x)
        y = np.float32(1 / x).astype(float)
        yield "InverseGamma", (a,), lambda a=a: dist.InverseGamma(a, 1.0), y, stats.invgamma(f32(a)).logpdf(y)
        z = np.float32(0.25 + np.array([-0.5, 0, 0.5]) * np.sqrt(0.05 / (a + 1))).astype(float)
        yield "Beta", (a,), lambda a=a: dist.Beta(a, 3 * a), z, stats.beta(f32(a), f32(3 * a)).logpdf(z)
        w = np.float32(np.array([-1, 0, 2]) / np.sqrt(a + 1)).astype(float)
        exact = stats.vonmises(a).logpdf(w) if a < 1e5 else None
        yield "VonMises", (a,), lambda a=a: dist.VonMises(0.0, a), w, exact
    for name, family, law in (
        ("Normal", dist.Normal, stats.norm),
        ("Cauchy", dist.Cauchy, stats.cauchy),
        ("Logistic", dist.Logistic, stats.logistic),
        ("Laplace", dist.Laplace, stats.laplace),
    ):
        for loc in (-300.0, -30.0, -3.0, 0.3, 3.0, 40.0, 300.0):
            x, grid = np.float32([0.1, 0.5, 0.9]).astype(float), np.linspace(0, 1, 20_001)
            steps = law(loc).logpdf(grid)
            mass = logsumexp((steps[1:] + steps[:-1]) / 2) - np.log(20_000)
            exact = law(loc).logpdf(x) - mass
            yield (
                f"Truncated{name}",
                (loc, 0, 1),
                lambda f=family, m=loc: dist.TruncatedDistribution(f(m), 0.0, 1.0),
                x,
                exact,
            )
            exact = law(loc).logpdf(x) - law(loc).logsf(0)
            yield (
                f"LeftTruncated{name}",
                (loc, 0),
                lambda f=family, m=loc: dist.TruncatedDistribution(f(m), low=0.0),
                x,
                exact,
            )
            exact = law(loc).logpdf(-x) - law(loc).logcdf(0)
            yield (
                f"RightTruncated{name}",
                (loc, 0),
                lambda f=family, m=loc: dist.TruncatedDistribution(f(m), high=0.0),
                -x,
                exact,
            )
    for make, law, x in (
        (lambda: dist.Normal(1.0, 2.0), stats.norm(1, 2), [-60.0, 0, 5, 100]),
        (lambda: dist.LogNormal(1.0, 0.5), stats.lognorm(0.5, scale=np.e), [1e-3, 3, 1e3]),
        (lambda: dist.Logistic(0.0, 2.0), stats.logistic(0, 2), [-100.0, 3, 200]),
        (lambda: dist.Exponential(2.0), stats.expon(scale=0.5), [1e-6, 1, 200]),
        (lambda: dist.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2), [1e-4, 1, 80]),
        (lambda: dist.Gumbel(0.0, 1.0), stats.gumbel_r(0, 1), [-3.0, 0, 60]),
        (lambda: dist.HalfNormal(1.0), stats.halfnorm(), [1e-4, 1, 30]),
        (lambda: dist.StudentT(4.0), stats.t(4), [-100.0, 0.5, 1000]),
        (lambda: dist.Gamma(2.5, 1.0), stats.gamma(2.5), [1e-3, 5, 150]),
        (lambda: dist.InverseGamma(2.5, 1.0), stats.invgamma(2.5), [0.02, 1, 100]),
        (lambda: dist.Pareto(1.0, 2.0), stats.pareto(2.0), [1.5, 1e6]),
    ):
        x, name, ones = np.float32(x).astype(float), type(make()).__name__, np.ones(len(x))
        yield f"LeftCensored{name}", (), lambda m=make, o=ones: dist.LeftCensoredDistribution(m(), o), x, law.logcdf(x)
        yield f"RightCensored{name}", (), lambda m=make, o=ones: dist.RightCensoredDistribution(m(), o), x, law.logsf(x)


CASES = list(sweep())


@cache
def errors(number):
    return error(*CASES[number][2:])


BOUND = 2e-3
"""Of a nat, and of the hundredth part of the value: what kayn's forms may be wrong by in float32."""


@pytest.mark.parametrize("family", dict.fromkeys(case[0] for case in CASES))
def test_stable_forms_in_float32_against_scipy(family):
    for number, (name, parameters, *_) in enumerate(CASES):
        if name == family:
            assert errors(number)[0] < BOUND, (name, parameters)


NUMPYRO_FAILS = {
    "NegativeBinomial2", "Poisson", "BinomialProbs", "BinomialLogits", "BetaBinomial", "BetaNegativeBinomial", "DirichletMultinomial",
    "MultinomialProbs", "StudentT", "Gamma", "InverseGamma", "Beta", "VonMises", "TruncatedNormal", "TruncatedLogistic", "TruncatedLaplace",
    "LeftTruncatedNormal", "LeftTruncatedLogistic", "LeftTruncatedLaplace", "RightTruncatedNormal", "RightTruncatedLogistic", "RightTruncatedLaplace",
}  # fmt: skip
"""Families whose own float32 log density is wrong by 0.05 nats and more somewhere in the sweep, right-censored ones aside: all are."""


def test_where_numpyro_fails_in_float32_is_as_documented():
    found = {case[0] for number, case in enumerate(CASES) if errors(number)[1] > 0.05}
    censored = {n for n in found if "Censored" in n}
    assert {n for n in censored if n.startswith("Right")} >= {"RightCensoredNormal", "RightCensoredExponential"}
    assert found - censored == NUMPYRO_FAILS


def right_below(truth):
    """A count law that lies above a rate, and is right below."""

    class Lie(dist.Poisson):
        def log_prob(self, value):
            return super().log_prob(value) + jnp.where(self.rate > truth, 400.0, 0.0)

    return Lie


COUNTS = jnp.array([18, 20, 25])


def lying(y):
    rate = numpyro.sample("rate", dist.LogNormal(3.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", right_below(30.0)(rate), obs=y)


def below_the_lie():
    """Log evidence of what is left of `lying` when the part that is no density counts as impossible, by quadrature."""
    grid = np.linspace(1e-3, 30, 20_001)
    joint = stats.poisson(grid[:, None]).logpmf(np.asarray(COUNTS)).sum(1) + stats.lognorm(1, scale=np.exp(3)).logpdf(
        grid
    )
    return logsumexp(joint) + np.log(grid[1] - grid[0])


def test_probability_above_one_is_named_and_has_no_weight():
    with pytest.warns(kayn.NumericsWarning, match=r"'y' \(Lie\) .* at index \(0,\) \(value 18, rate = 3"):
        posterior = kayn.Importance(lying, num_particles=100, num_replicates=20).run(0, None, COUNTS)
    # within four of its own standard errors: a false alarm in 16,000
    assert abs(posterior.log_evidence - below_the_lie()) < 4 * posterior.log_evidence_error + 1e-3
    assert any("'y'" in line for line in posterior.check())
    with pytest.warns(kayn.NumericsWarning, match="'y'"):
        scores = posterior.log_predictive(0, 50, jnp.array([40, 40, 40]))
    assert scores.joint < 0
    assert (posterior.log_likelihood(0, 50)["y"] <= 0).all()


@pytest.mark.parametrize("loss", [kayn.VI(5), kayn.RWS(5), kayn.VIMCO(5)])
def test_a_loss_is_no_huge_evidence(loss):
    from kayn.guides import FactorisedGuide

    guide = FactorisedGuide.from_model(lying, (COUNTS,), {}, {})
    svi = SVI(lying, guide, numpyro.optim.Adam(1e-2), loss)
    state = svi.init(jax.random.key(0), COUNTS)
    state, value = svi.update(state, COUNTS)
    assert value > 0
    assert all(np.isfinite(p).all() for p in svi.get_params(state).values())


def test_data_at_a_pole():
    def model(y, a=None):
        a = numpyro.sample("a", dist.LogNormal(0.0, 1.0)) if a is None else a
        b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Beta(a, b), obs=y)
            numpyro.sample("z", dist.Beta(0.5, 0.5), obs=0.0 * y + 0.5)

    y = jnp.array([0.5, 0.0, 0.3])
    with pytest.warns(kayn.NumericsWarning, match=r"'y' \(Beta\).*value 0, a = 0\."):
        posterior = kayn.Importance(model).run(0, None, y)
    assert posterior.log_evidence == -np.inf

    def fixed(y):
        numpyro.sample("b", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Beta(0.5, 0.5), obs=y)

    with pytest.raises(kayn.DataError, match=r"'y' has 1 values of 3 at which its log density is \+inf.*\(1,\)"):
        kayn.Importance(fixed).run(0, None, y)


def test_peaks_and_positive_factors_are_no_lies():
    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("potential", 500.0 + 0.0 * x)
        numpyro.sample("y", dist.Normal(0.0, 1e-10), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error", kayn.NumericsWarning)
        posterior = kayn.Importance(model).run(0, None, jnp.array(0.0))
    assert posterior.log_evidence == pytest.approx(500 + 10 * np.log(10) - 0.5 * np.log(2 * np.pi), abs=1e-2)
