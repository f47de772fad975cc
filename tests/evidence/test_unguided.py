"""Discrete latents that the model does not ask to enumerate, and no guide draws."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

import kayn

S = numpyro.sample
Y = np.array([-1.2, 0.3, 1.9, 2.2])
ASKED = {"enumerate": "parallel"}


def mixture(y, infer=None):
    mu = S("mu", dist.Normal(0, 2))
    with numpyro.plate("rows", len(y)):
        z = S("z", dist.Categorical(jnp.array([0.3, 0.7])), infer=infer)
        S("y", dist.Normal(z * mu, 1), obs=y)


def switch(y, infer=None):
    at = S("at", dist.DiscreteUniform(0, len(y) - 1), infer=infer)
    a, b = S("a", dist.Normal(0, 2)), S("b", dist.Normal(0, 2))
    with numpyro.plate("rows", len(y)):
        S("y", dist.Normal(jnp.where(jnp.arange(len(y)) < at, a, b), 1), obs=y)


X = np.array([[1.0, 0.5], [0.2, -1.0], [-0.7, 0.4], [0.1, 1.1]])


def chosen(y):
    """Every row reads all indicators at once."""
    with numpyro.plate("columns", 2):
        g = S("g", dist.Bernoulli(0.3))
    with numpyro.plate("rows", len(y)):
        S("y", dist.Normal(X @ g, 1), obs=y)


def crowd(y):
    z = [S(f"z{i}", dist.Categorical(jnp.ones(9) / 9)) for i in range(9)]
    S("y", dist.Normal(sum(z), 1.0), obs=y)


def vector(y):
    z = S("z", dist.Bernoulli(0.3 * jnp.ones(2)).to_event(1))
    S("y", dist.Normal(z.sum(), 1), obs=y)


def counts(y):
    S("y", dist.Normal(S("n", dist.Poisson(2.0)), 1), obs=y)


def trials(y):
    """The number of values of the second is not known before the program runs."""
    n = S("n", dist.Poisson(3.0))
    S("y", dist.Normal(S("k", dist.Binomial(n, 0.5)), 1), obs=y)


def shares(y):
    S("y", dist.Normal(S("c", dist.Multinomial(5, jnp.ones(3) / 3))[0], 1), obs=y)


TREATED = {
    "a class of each row": (mixture, Y, ["z: summed out, over 2 values"]),
    "a place in time": (switch, Y, ["at: summed out, over 4 values"]),
    "read together": (chosen, Y, ["g: drawn from BernoulliProbs, since it cannot keep an index of its own over plate"]),
    "one event": (vector, 1.0, ["z: drawn from BernoulliProbs, since its values cannot be listed"]),
    "no end": (counts, 1.0, ["n: drawn from RoundedNormal, since its values cannot be listed"]),
    "an unknown end": (trials, 1.0, ["n: drawn from RoundedNormal", "k: drawn from RoundedNormal"]),
}


@pytest.mark.parametrize("name", TREATED)
def test_what_is_done_is_said(name):
    model, y, lines = TREATED[name]
    found = kayn.analyze(model, y)
    assert len(found.discrete) == len(lines)
    for line, start in zip(found.discrete, lines, strict=True):
        assert line.startswith(start)
        assert line in str(found)


def test_nothing_is_said_where_the_model_or_a_guide_says_it():
    def guide(y):
        S("n", dist.Poisson(1.5))

    assert not kayn.analyze(mixture, Y, infer=ASKED).discrete
    assert not kayn.analyze(counts, 1.0, guide=guide).discrete


def test_as_many_are_summed_out_as_can_be_afforded():
    found = kayn.analyze(crowd, 30.0)
    summed = [d for d in found.discrete if "summed out" in d]
    drawn = [d for d in found.discrete if "would make a factor of" in d]
    assert len(summed) + len(drawn) == 9
    assert len(summed) >= 4
    assert found.flops < 2**28


def test_one_of_a_group_is_drawn():
    found = kayn.analyze(mixture, Y, groups=[("mu", "z")])
    assert found.discrete == ("z: drawn from BernoulliProbs, since it shares an axis with 'mu'",)


@pytest.mark.parametrize("model", [mixture, switch])
def test_as_if_the_model_had_asked(model):
    own, asked = (kayn.Importance(model, num_replicates=3).run(0, None, Y, **how) for how in ({}, {"infer": ASKED}))
    np.testing.assert_array_equal(own.log_evidences, asked.log_evidences)
    name = "z" if model is mixture else "at"
    for value, share in asked.probabilities(name).items():
        np.testing.assert_array_equal(own.probabilities(name)[value], share)


def test_what_a_users_guide_leaves_out_is_summed_out():
    def guide(y):
        S("mu", dist.Normal(0, 2))

    found = kayn.analyze(mixture, Y, guide=guide)
    assert found.discrete == ("z: summed out, over 2 values",)


def exact(model, y, names, values):
    logs = []
    for combination in itertools.product(values, repeat=len(names)):
        given = dict(zip(names, map(jnp.asarray, combination), strict=True))
        logs.append(float(log_density(model, (y,), {}, given)[0]))
    return np.logaddexp.reduce(logs), np.array(logs)


def test_drawn_indicators_are_answered():
    """By enumeration of both at once; z-score within 4: 6e-5."""
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    log_z, logs = exact(chosen, Y, ["g"], pairs)
    posterior = kayn.fit(chosen, (Y,), progress=False).posterior(num_replicates=200)
    assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_error + 1e-4
    want = np.exp(logs - log_z) @ np.array(pairs)
    np.testing.assert_allclose(posterior.mean("g"), want, atol=0.02)


def test_the_starting_guide_reaches_every_count():
    """From the prior, without a fit: by enumeration of the counts up to 40; z-score within 4: 6e-5."""
    log_z, _ = exact(counts, 6.0, ["n"], range(40))
    found = kayn.Importance(counts, num_particles=20, num_replicates=2000).run(0, None, 6.0)
    assert abs(found.log_evidence - log_z) < 4 * found.log_evidence_error


def test_reweighted_wake_sleep_learns_counts():
    log_z, _ = exact(counts, 6.0, ["n"], range(40))
    fit = kayn.fit(counts, (6.0,), method="rws", progress=False, num_steps=100)
    assert fit.posterior().log_evidence == pytest.approx(log_z, abs=0.03)


def test_values_that_depend_on_each_other_need_a_guide():
    with pytest.raises(kayn.GuideError, match="latent 'c' follows MultinomialProbs, whose values depend on each other"):
        kayn.fit(shares, (1.0,), progress=False)


def test_a_chain_of_many_states_is_drawn():
    """Its steps are matrices of 2,000 squared."""
    states = jnp.arange(2000.0)

    def chain(y):
        def step(z, y):
            z = S("z", dist.Categorical(logits=-0.5 * (states - z) ** 2))
            S("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    assert kayn.analyze(chain, Y).discrete == (
        "z: drawn from RoundedNormal, since its 2000 values would make a factor of 1.6e+07 entries",
    )
