"""Means that move with the number of particles: told from the replicates that there are, and said."""

import warnings

import numpy as np
import numpyro
import numpyro.distributions as dist

import kayn
from kayn.posterior import checks
from kayn.posterior.diagnostics import FALSE_ALARM, shift

GROUPS = 300
Y = np.random.default_rng(0).normal(0, np.sqrt(1.25), GROUPS).astype(np.float32)


def groups(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", GROUPS):
        x = numpyro.sample("x", dist.Normal(0, tau))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def guide(y):
    numpyro.sample("tau", dist.LogNormal(np.log(0.524), 0.21))
    with numpyro.plate("groups", GROUPS):
        numpyro.sample("x", dist.Normal(0.215 * y, 1.2 * 0.464))


def test_the_shift_of_means_is_what_few_particles_cost():
    """Twelve particles of N(0, 1.5^2) for N(1, 1): what single replicates lack is the shift, within four of its own
    standard errors and of the average's (6e-5)."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1.5, (40000, 12))
    weights = np.exp(-0.5 * (x - 1) ** 2 + 0.5 * (x / 1.5) ** 2)
    means = (weights * x).sum(1) / weights.sum(1)
    found, error = shift(np.log(weights.mean(1)), means, np.ones(()))
    lacking, noise = 1 - means.mean(), means.std() / 200
    assert lacking > 5 * noise
    assert abs(found - lacking) < 4 * np.hypot(noise, error)


def test_means_that_have_nothing_to_do_with_the_evidence_are_left_alone():
    """As often as stated, for one element as for forty: within four standard errors (6e-5 each)."""
    rng, count = np.random.default_rng(2), 2000
    for elements in (1, 40):
        runs = (shift(rng.normal(size=32), rng.normal(size=(32, elements)), np.ones(elements))[0] for _ in range(count))
        alarms = sum(bool(found.any()) for found in runs)
        # Fisher's transformation is normal for many replicates; far out in its tails, not quite for 32
        assert alarms < 2 * FALSE_ALARM * count + 4 * (FALSE_ALARM * count) ** 0.5
        assert alarms > 0


def test_a_scale_that_moves_with_the_particles_of_its_groups_is_named(monkeypatch):
    """Particles of the groups that are a little too wide: with eight in each, tau is off by 0.4 sd."""
    monkeypatch.setattr(checks, "POOR_SHIFT", 0.1)
    few, more = (said(k) for k in (8, 40))
    assert any("latent 'tau': replicates of higher evidence" in text for text in few), few
    assert not any("replicates of higher evidence" in text for text in more), more


def said(particles):
    """What is said of a posterior with so many particles in every group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.PoorFitWarning)
        posterior = kayn.Importance(groups, guide, {"tau": 30, "x": particles}, num_replicates=200).run(3, None, Y)
    return checks.check(posterior)
