"""Models whose log evidence under the structure that kayn finds is compared with enumeration."""

from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from kayn.axes.request import make_request
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import build_problem
from kayn.evidence.weights import log_evidence, weigh
from tests.laws.oracle import QUICK, BruteForce


def normal(name, loc=0.0, scale=1.0, **options):
    return numpyro.sample(name, dist.Normal(loc, scale), **options)


def prior_of(model):
    """The model's prior as guide: its own program without the data. Sites depend on each other as in the model."""

    def hidden(site):
        return site["type"] == "deterministic" or (
            site["type"] == "sample" and (site["is_observed"] or "enumerate" in site["infer"])
        )

    return handlers.block(model, hide_fn=hidden)


def build(
    model, *args, guide=None, params=None, num_particles=2, strategy="parallel", groups=(), couple=None, **kwargs
):
    request = make_request(num_particles, strategy, groups, couple)
    return build_problem(model, guide or prior_of(model), args, kwargs, params or {}, request)


def agrees(model, *args, guide=None, params=None, masks=None, close=1e-9, **options):
    """Build, compare log Z with enumeration in float64, and return the problem."""
    with jax.enable_x64(True):
        problem = build(model, *args, guide=guide, params=params, **options)
        oracle = BruteForce(problem, model, guide or prior_of(model), args, {}, masks)
        assert oracle.combinations <= 50_000
        found, expected = _both(problem, oracle, params or {}, jax.random.key(3))
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)
        assert np.isfinite(found)
        return problem


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _both(problem, oracle, params, key):
    draws = draw_particles(problem, problem.numbers, key, params)
    slots = weigh(problem, problem.numbers, draws, params)
    return log_evidence(problem, problem.numbers, slots, params, draws.subsample), oracle.log_evidence(draws, params)
