"""The memory budget: what a step is said to take, what it takes, and what happens when it would not fit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI

import kayn
from kayn import QEM, StructureError
from kayn.memory import device_memory, memory_budget

rng = np.random.default_rng(0)
GROUP = np.sort(rng.integers(0, 40, 3000))
X = rng.normal(size=3000)
Y = rng.normal(size=3000)


def slopes(group, x, y):
    """Four particle axes meet in the likelihood."""
    mu, nu = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in ("mu", "nu"))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 40):
        alpha, beta = numpyro.sample("alpha", dist.Normal(mu, 1.0)), numpyro.sample("beta", dist.Normal(nu, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(alpha[group] + beta[group] * x, sigma), obs=y)


def pairs(y):
    """The contraction needs more than any factor."""
    with numpyro.plate("groups", 200):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        c = numpyro.sample("c", dist.Normal(a, 1.0))
        d = numpyro.sample("d", dist.Normal(b + c, 1.0))
        numpyro.sample("y", dist.Normal(d, 1.0), obs=y)


CASES = {
    "slopes": (slopes, (GROUP, X, Y)),
    "pairs": (pairs, (np.zeros(200),)),
}


def taken(model, args, num_particles, memory=None):
    """Bytes of temporaries of a compiled QEM step, and the estimate."""
    qem = QEM(model, num_particles=num_particles, memory=memory)
    state = qem.init(0, *args)
    compiled = qem._advance.lower(qem.problem.numbers, state, 1.0, 1).compile()
    analysis = kayn.analyze(model, *args, num_particles=num_particles, memory=memory)
    return compiled.memory_analysis().temp_size_in_bytes, analysis.peak_bytes


@pytest.mark.parametrize(("name", "num_particles"), [("slopes", 8), ("slopes", 16), ("pairs", 16)])
def test_the_estimate_is_an_upper_one_and_not_far_off(name, num_particles):
    actual, estimate = taken(*CASES[name], num_particles)
    assert actual <= estimate <= 8 * actual


@pytest.mark.parametrize(
    ("name", "memory"), [("slopes", "60MB"), ("slopes", 2e6), ("pairs", "20MB"), ("pairs", "1 MB")]
)
def test_a_budget_is_kept(name, memory):
    actual, estimate = taken(*CASES[name], 16, memory)
    assert max(actual, estimate) <= memory_budget(memory)
    posterior = kayn.Importance(CASES[name][0], num_particles=16, memory=memory).run(0, None, *CASES[name][1])
    assert np.isfinite(posterior.log_evidence)


def test_gradients_keep_it_too():
    model, args = CASES["pairs"]
    loss = kayn.VI(16, memory="20MB")
    svi = SVI(model, kayn.FactorisedGuide.from_model(model, args), numpyro.optim.Adam(0.01), loss)
    state = svi.init(jax.random.key(0), *args)
    compiled = jax.jit(lambda s: svi.update(s, *args)).lower(state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6


def test_what_cannot_fit_says_what_would():
    with pytest.raises(StructureError, match=r"over memory=200 kB; num_particles=\d+ would fit") as error:
        kayn.analyze(slopes, GROUP, X, Y, num_particles=200, memory=200_000)
    fits = int(re.search(r"num_particles=(\d+) would", str(error.value))[1])
    assert 1 <= fits < 200
    assert kayn.analyze(slopes, GROUP, X, Y, num_particles=fits, memory=200_000).peak_bytes <= 200_000
    with pytest.raises(StructureError):
        kayn.analyze(slopes, GROUP, X, Y, num_particles=fits + 1, memory=200_000)
    with pytest.raises(StructureError, match="not even one particle"):
        kayn.analyze(slopes, GROUP, X, Y, num_particles=5, memory=10)


def test_many_parents_are_grouped():
    """Eight scalar parents of one site at K = 30 would be 30^9 entries."""

    def model(y):
        parents = [numpyro.sample(f"p{i}", dist.Normal(0.0, 1.0)) for i in range(8)]
        with numpyro.plate("rows", 5):
            z = numpyro.sample("z", dist.Normal(sum(parents), 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    analysis = kayn.analyze(model, np.zeros(5), num_particles=30, memory="100MB")
    assert analysis.peak_bytes <= 100e6
    assert analysis.couplings
    posterior = kayn.Importance(model, num_particles=30, num_replicates=400, memory="100MB").run(0, None, np.zeros(5))
    # y is normal around the parents' sum: variance 8 shared, 2 of its own
    exact = dist.MultivariateNormal(jnp.zeros(5), 8.0 + 2.0 * jnp.eye(5)).log_prob(jnp.zeros(5))
    error = float(posterior.log_evidence_error)
    assert error < 0.1
    assert abs(float(posterior.log_evidence) - float(exact)) < 5 * error


def test_budgets_are_read():
    assert memory_budget("2GB") == 2 * 10**9
    assert memory_budget(" 1.5 GiB ") == 3 * 2**29
    assert memory_budget("512") == 512
    assert memory_budget(1000) == 1000
    assert memory_budget(None) == device_memory() // 2
    assert device_memory() > 2**28
