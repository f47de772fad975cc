"""The joint log predictive density of held-out rows as one more contraction: log Z of training and held-out data,
less that of the training data.

An average over draws of all latents rests on the few draws that happen to suit all held-out rows at once. Summed over
all combinations of particles instead, held-out rows of one group judge that group's particles alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers

from kayn.axes.choose import kept_layout
from kayn.evidence.problem import Problem, read_model
from kayn.evidence.soundness import warn_of_factors
from kayn.evidence.weights import weigh
from kayn.posterior.pool import Pool
from kayn.posterior.scores import observed_scores
from kayn.programs.given import Given
from kayn.programs.sites import inspect_sites
from kayn.support.arrays import Array, PyTree
from kayn.support.names import RESERVED
from kayn.xla.jit import QuickJit

PREFIX = f"{RESERVED}held out:"


def contracted_joint(posterior: Pool, args: tuple, kwargs: Mapping) -> Array | None:
    """`log p(held-out data | training data)`, a scalar, or None where it is no small contraction of the posterior's
    particles.

    So it is where a latent has another shape under the new arguments, in scans and subsampled plates, and where the
    held-out rows tie latents together that the training rows do not.
    """
    problem = _extended(posterior, args, kwargs)
    if problem is None:
        return None

    def log_z(numbers: PyTree, draws: Any) -> Array:
        weighed = weigh(problem, numbers, draws, posterior.params)
        return weighed.log_evidence(), weighed.unsound

    run = QuickJit(lambda numbers, draws: jax.lax.map(lambda d: log_z(numbers, d), draws), open_consts=True)
    found, unsound = run(problem.numbers, posterior.draws)
    warn_of_factors({n.removeprefix(PREFIX): f for n, f in unsound.items() if n.startswith(PREFIX)})
    # replicates count equally, as everywhere in a posterior; impossible ones do not
    possible = jnp.isfinite(posterior.log_evidences)
    ratios = jnp.where(possible, found - jnp.where(possible, posterior.log_evidences, 0.0), -jnp.inf)
    return jax.nn.logsumexp(ratios) - jnp.log(jnp.sum(possible))


def _extended(posterior: Pool, args: tuple, kwargs: Mapping) -> Problem | None:
    """The posterior's problem with the held-out data as further factors, and the same particle axes."""
    problem, call = posterior.problem, posterior.call
    sites = problem.model.sites
    latents = posterior.latent_names
    if any(sites[n].steps is not None for n in latents) or posterior.draws.subsample:
        return None
    new = inspect_sites(call.model, args, kwargs, posterior.params)
    if any(n not in new or new[n].shape != sites[n].shape or new[n].observed for n in latents):
        return None
    if any(s.kind == "sample" and not s.observed and n not in latents for n, s in new.items()):
        return None
    both = _both(call.model, latents, (call.args, call.kwargs), (args, kwargs))
    found = inspect_sites(both, (), {}, posterior.params)
    found = {
        n: replace(s, enumerate=sites[n].enumerate, support_size=sites[n].support_size) if n in latents else s
        for n, s in found.items()
    }
    traced, structure = read_model(both, (), {}, posterior.params, found)
    layout = kept_layout(structure, problem.layout)
    return None if layout is None else replace(problem, model=traced, structure=structure, layout=layout)


def _both(model: Callable, latents: tuple[str, ...], train: tuple, test: tuple) -> Callable:
    """A model of training and held-out data: the latter's log likelihoods as factors."""

    def run() -> None:
        with handlers.trace() as first:
            model(*train[0], **train[1])
        known = {n: first[n]["value"] for n in latents}
        params = {n: s["value"] for n, s in first.items() if s["type"] == "param"}
        with handlers.block():
            again = handlers.seed(Given(model, params=params, latents=known), jax.random.key(0))
            second = handlers.trace(again).get_trace(*test[0], **test[1])
        for name, scores in observed_scores(second).items():
            numpyro.factor(PREFIX + name, scores)

    return run
