"""What becomes of densities that are none: named, and without weight."""

import warnings

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
from kayn import meters


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
    from kayn.guides.factorised import FactorisedGuide

    guide = FactorisedGuide.from_model(lying, (COUNTS,), {}, {})
    svi = SVI(lying, guide, numpyro.optim.Adam(1e-2), loss)
    state = svi.init(jax.random.key(0), COUNTS)
    state, value = svi.update(state, COUNTS)
    assert value > 0
    assert all(np.isfinite(p).all() for p in svi.get_params(state).values())


def test_runs_without_a_posterior_say_so_too():
    def lying(y):
        rate = numpyro.sample("rate", dist.LogNormal(3.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", right_below(21.0)(rate), obs=y)

    with pytest.warns(kayn.NumericsWarning, match="'y' has a log density of .inf"):
        result = kayn.QEM(lying).run(0, 8, COUNTS)
    assert np.isfinite(result.log_evidence).all()
    assert result.log_evidence.max() < 0
    with pytest.warns(kayn.NumericsWarning, match="'y' has a log density of .inf"):
        meter = meters.log_evidence(lying, result.guide, result.guide.start, COUNTS, num_particles=50)
    assert meter.total < 0


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


@pytest.mark.parametrize("scale", [1e-10, 1e-30])
def test_peaks_and_positive_factors_are_no_lies(scale):
    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("potential", 500.0 + 0.0 * x)
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error", kayn.NumericsWarning)
        posterior = kayn.Importance(model).run(0, None, jnp.array(0.0))
    assert posterior.log_evidence == pytest.approx(500 - np.log(scale) - 0.5 * np.log(2 * np.pi), abs=1e-2)
