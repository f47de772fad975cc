"""Warnings are of the user's line, not of one in kayn or in a library below it."""

import warnings

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import kayn


def prior_alone():
    numpyro.sample("mu", dist.Normal(0.0, 1.0))


def centred(y):
    with numpyro.plate("groups", 3):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jnp.sort(u) * 40, 0.01).to_event(1), obs=y)


CALLS = {
    "a fit": lambda: kayn.fit(prior_alone, progress=False, num_steps=1),
    "an analysis": lambda: kayn.analyze(prior_alone),
    "a posterior": lambda: kayn.Importance(centred, num_particles=5, num_replicates=8).run(0, {}, jnp.arange(3.0)),
    "a step": lambda: kayn.QEM(prior_alone, num_particles=3).run(0, 1),
}


@pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))
def test_warnings_are_of_the_line_that_called_kayn(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    own = [w for w in caught if issubclass(w.category, kayn.KaynWarning)]
    assert own
    assert {w.filename for w in own} == {__file__}
