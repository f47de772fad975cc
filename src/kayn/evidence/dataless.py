"""Latents that no data lie below: their posterior given the others is their prior, so there is nothing to learn.

An independent Normal for such a latent need not reach what its prior can be (the width of a funnel spans many powers of
e). As the model draws it, it is reached. Distributions of a user's own are taken at their log density alone: how they
draw need not agree with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpyro.distributions as dist

from kayn.axes.types import Axis
from kayn.evidence.missing import is_observed
from kayn.evidence.problem import Problem
from kayn.guides.factorised import FactorisedGuide
from kayn.guides.start import Conditional
from kayn.programs.outputs import Part

IMPROPER = (dist.ImproperUniform, dist.Unit, dist.Delta)
"""Laws whose densities do not integrate to one."""


def without_data(problem: Problem, among: Iterable[str]) -> tuple[str, ...]:
    """Those of some latents that nothing but others of them reads, with a proper prior given the rest.

    Children come before their parents. Models with loops, minibatches or random keys are left out: their programs
    cannot be run for a part of their latents.
    """
    graph, program = problem.graph, problem.model
    unknown = program.subsamples or graph.aliases or any(p.steps for p in graph.plates)
    if unknown or any(s.kind in ("key", "mutable") for s in program.sites.values()):
        return ()
    known = set(among)
    # outputs that are no sites are factors too, whatever they are
    reads = {
        o.name: set(o.latents)
        for o in graph.factors
        if o.name not in program.sites or not program.sites[o.name].observed or is_observed(program, o.name)
    }
    left = [z for z in known if reads.get(z, {""}) <= known and _is_proper(problem, z)]
    found: list[str] = []
    while True:
        end = next((z for z in left if not any(z in own for o, own in reads.items() if o != z)), None)
        if end is None:
            return tuple(found)
        found.append(end)
        left.remove(end)
        del reads[end]


def is_prior(problem: Problem) -> bool:
    """Whether a model has latents and no data, so that its log evidence is zero."""
    latents = problem.graph.latent_names
    sites = problem.model.sites.values()
    observed = any(s.kind == "sample" and s.observed and is_observed(problem.model, s.name) for s in sites)
    return bool(latents) and not observed and len(without_data(problem, latents)) == len(latents)


def _is_proper(problem: Problem, name: str) -> bool:
    site = problem.model.sites[name]
    masked = Part.MASK.of(name) in problem.model.outputs
    own = site.users or site.follows(*IMPROPER)
    return not (own or masked or site.scaled or site.added or site.discrete)


def keep_priors(
    problem: Problem, guide: FactorisedGuide, model: Callable, build: Callable[[FactorisedGuide], Problem]
) -> tuple[Problem, FactorisedGuide]:
    """A factorised guide whose latents without data follow the prior given the others, and its problem.

    Both are unchanged where there are none, and where a latent would then no longer have its particles to itself.

    Args:
        build: a guide to its problem.
    """
    names = without_data(problem, [s.name for s in guide.sites])
    if not names:
        return problem, guide
    order = tuple(s.name for s in guide.sites if s.name in names)
    changed = guide.without(Conditional(model, order))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say has been said of the first
        built = build(changed)
    if _indexed(built) != _indexed(problem):
        return problem, guide
    return built, changed


def _indexed(problem: Problem) -> set[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Which latents share particles, over which plates these are apart, and how many there are."""

    def own(axis: Axis) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        return axis.latents, axis.scope, axis.size

    return set(map(own, problem.layout.axes))
