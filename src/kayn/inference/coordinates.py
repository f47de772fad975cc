"""A model's density in the coordinates of kayn's own guide, one particle of everything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from kayn.axes.request import make_request
from kayn.axes.types import proposal_name
from kayn.evidence.draws import draws_from_runs
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.weights import proposal_terms, weigh_against
from kayn.guides.factorised import FactorisedGuide, GuideSite
from kayn.guides.normal import Gaussian, Normal
from kayn.programs.sites import Inspected
from kayn.support.arrays import Array


def coordinate_density(
    guide: FactorisedGuide, inspected: Inspected, params: Mapping[str, Array]
) -> tuple[Problem, Callable[[Mapping, Mapping[str, Array]], Array]]:
    """The model with one particle of every latent; and, of its numbers and the coordinates of all sites, the log
    density of model and data in these coordinates, a scalar in nats, summed over latents that are enumerated."""

    def plain(site: GuideSite) -> GuideSite:
        family = Normal(site.family.event_dim, gaussian(site).transform)
        return replace(site, family=family, start=family.standard(np.shape(site.start["loc"]), float), wide=None)

    own = replace(guide, sites=tuple(map(plain, guide.sites)))
    params = {**own.start, **params}
    request = make_request(1, draws="even")
    args, kwargs = inspected.args, inspected.kwargs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say has been said of the guide's own problem
        problem = build_problem(inspected.fn, own, args, kwargs, params, request, inspected=inspected)
    transforms = {s.name: gaussian(s).transform for s in guide.sites}
    axes, size = problem.layout.axes, problem.layout.plan.size
    enumerated = [a for a in axes if a.enumerated]

    def log_density(numbers: Mapping, u: Mapping[str, Array]) -> Array:
        z = {n: transforms[n](v) for n, v in u.items()}
        draws = draws_from_runs(problem, numbers, params, {n: v[None] for n, v in z.items()}, {})
        terms = proposal_terms(problem, numbers, draws, params, enumerated)
        terms |= {proposal_name(a): jnp.zeros([*(size[p] for p in a.scope), 1]) for a in axes if not a.enumerated}
        volume = sum(jnp.sum(transforms[n].log_abs_det_jacobian(v, z[n])) for n, v in u.items())
        return weigh_against(problem, numbers, draws, params, terms).log_evidence() + volume

    return problem, log_density


def gaussian(site: GuideSite) -> Gaussian:
    """Its family, where that is known to be Normal."""
    assert isinstance(site.family, Gaussian)
    return site.family
