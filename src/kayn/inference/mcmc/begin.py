"""What a chain begins with: particles that all come from a guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp

from kayn.axes.types import proposal_name
from kayn.evidence.draws import Draws
from kayn.evidence.problem import model_inputs
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import proposal_terms, weigh_against
from kayn.inference.mcmc.independent import only
from kayn.inference.mcmc.sweep import Kernel
from kayn.particles.draw import supports
from kayn.support.arrays import Array


def with_all_from_guide(kernel: Kernel, index: int, state: Mapping[str, Array], runs: Mapping[str, Array]) -> Weighed:
    """A pass's combinations of particles that all come from a guide, to begin with.

    Args:
        runs: values of every guide site, [K, *shape].
    """
    one = kernel.passes[index]
    problem = replace(one.problem, denominator="paired")
    held = {n: state[n][None] for n in problem.graph.latent_names if n not in one.free}
    exact = [n for a in one.axes if a.enumerated for n in a.latents]
    inputs = model_inputs(problem, problem.numbers, kernel.params, {})
    values = {n: runs[n] for n in one.free if n not in exact} | held | supports(problem.model, exact, inputs)
    draws = Draws(
        problem.model.with_aliases(values, leading=1), problem.guide.density.with_aliases(dict(runs), leading=1), {}
    )
    asked = [a if a.enumerated else only(a, problem.guide.names) for a in one.axes]
    # latents that the guide leaves out are any of their values, all alike
    terms = proposal_terms(problem, problem.numbers, draws, kernel.params, [a for a in asked if a.latents])
    for axis in problem.layout.axes:
        if proposal_name(axis) not in terms:
            terms[proposal_name(axis)] = jnp.zeros([*(problem.layout.plan.size[p] for p in axis.scope), axis.size])
    return weigh_against(problem, problem.numbers, draws, kernel.params, terms)
