"""The joint log predictive density of held-out rows as one more contraction: log Z of training and held-out data,
less that of the training data.

An average over draws of all latents rests on the few draws that happen to suit all held-out rows at once. Summed over
all combinations of particles instead, held-out rows of one group judge that group's particles alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from kayn.axes.choose import kept_layout
from kayn.evidence.problem import Problem
from kayn.evidence.read import Read, structured
from kayn.evidence.soundness import warn_of_factors
from kayn.evidence.weights import weigh
from kayn.posterior.diagnostics import log_mean
from kayn.posterior.pool import Pool
from kayn.programs.outputs import Part
from kayn.programs.sites import Inspected, Site
from kayn.programs.trace import Outputs, Program
from kayn.support.arrays import Array, PyTree, local
from kayn.support.names import RESERVED
from kayn.xla.compilation import is_traced, seldom_options
from kayn.xla.jit import QuickJit

SAID = (Part.DENSITY, Part.ARGUMENT)
"""What a factor of held-out data is made of."""


def _factor(site: str) -> str:
    """The factor of a site's held-out data."""
    return f"{RESERVED}held out:{site}"


def contracted_joint(posterior: Pool, read: Read) -> Array | None:
    """`log p(held-out data | training data)`, a scalar, or None where it is no small contraction of the posterior's
    particles.

    So it is where a latent has another shape under the new arguments, in scans and subsampled plates, and where the
    held-out rows tie latents together that the training rows do not.

    Args:
        read: the model under the held-out data, which count as one each.
    """
    problem = _extended(posterior, read)
    if problem is None:
        return None

    def log_z(numbers: PyTree, draws: Any) -> Array:
        weighed = weigh(problem, numbers, draws, posterior.params)
        return weighed.log_evidence(), weighed.unsound

    run = QuickJit(
        lambda numbers, draws: jax.lax.map(lambda d: log_z(numbers, d), draws), open_consts=True, options=seldom_options
    )
    found, unsound = run(problem.numbers, posterior.draws)
    held_out = {_factor(n): n for n in read.sites}
    warn_of_factors({held_out[n]: f for n, f in unsound.items() if n in held_out})
    # replicates count as everywhere in a posterior; impossible ones do not
    found, before, shares = local(found), local(posterior.log_evidences), local(posterior._shares)
    xp: Any = jnp if is_traced((found, before)) else np
    ratios = xp.where(shares > 0, found - xp.where(shares > 0, before, 0.0), -xp.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        return jnp.asarray(log_mean(ratios + xp.log(shares * len(shares))), ratios.dtype)


def _extended(posterior: Pool, read: Read) -> Problem | None:
    """The posterior's problem with the held-out data as further factors, and the same particle axes."""
    problem, new = posterior.problem, read.sites
    program, latents = problem.model, posterior.drawn_names
    sites = program.sites
    if any(sites[n].steps is not None for n in latents) or program.subsamples or read.program.subsamples:
        return None
    if any(n not in new or new[n].observed or not _alike(new[n], sites[n]) for n in latents):
        return None
    if any(s.kind == "sample" and not s.observed and n not in latents for n, s in new.items()):
        return None
    both = _both(program.plain or program, read.program.plain or read.program, posterior.params)
    call = posterior.call
    extended = structured(Inspected(problem.fn, call.args, call.kwargs, posterior.params, both.sites), both)
    layout = kept_layout(extended.structure, problem.layout)
    if layout is None:
        return None
    return replace(problem, model=extended.program, structure=extended.structure, layout=layout)


def _alike(first: Site, second: Site) -> bool:
    return (first.shape, first.dtype) == (second.shape, second.dtype)


def _both(first: Program, second: Program, params: Mapping[str, PyTree]) -> Program:
    """A program of training and held-out data: the latter's log likelihoods as factors."""
    held_out = {
        n: replace(
            s, name=_factor(n), batch_shape=_rows(second, n), shape=(*_rows(second, n), 0), frames=(), law=dist.Unit
        )
        for n, s in second.sites.items()
        if s.kind == "sample" and s.observed and not s.follows(dist.Unit)
    }

    def run(values: Mapping[str, Array], params: PyTree) -> Outputs:
        def of(program: Program) -> Outputs:
            outputs = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, program.consts))(*program.leaves(values, params, {}))
            return dict(zip(program.outputs, outputs, strict=True))

        # arguments too, so that these factors may take the forms of those of the training data
        mine = [(o, held_out[o.site].name) for o in second.outputs if o.site in held_out and o.part in SAID]
        scores = of(second)
        return {**of(first), **{o.part.of(name, o.argument): scores[o] for o, name in mine}}

    values = {n: jax.ShapeDtypeStruct(first.sites[n].shape, first.sites[n].dtype) for n in first.inputs}
    own = {**first.own(params), **second.own(params)}
    closed, found = jax.make_jaxpr(run, return_shape=True)(values, own)
    sites = {**first.sites, **{s.name: s for s in held_out.values()}}
    outputs = tuple(sorted(found))
    return replace(
        first, jaxpr=closed.jaxpr, consts=tuple(closed.consts), outputs=outputs, sites=sites, params=tuple(sorted(own))
    )


def _rows(program: Program, name: str) -> tuple[int, ...]:
    return program.aval(Part.DENSITY.of(name)).shape
