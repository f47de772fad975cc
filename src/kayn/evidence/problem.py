"""What is known of a model and a guide before any number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.choose import choose_layout
from kayn.axes.minibatches import warn_of_strangers
from kayn.axes.request import Request
from kayn.axes.types import Axis, Layout
from kayn.errors import GuideError, KaynError
from kayn.evidence.as_drawn import inspected_as_drawn
from kayn.evidence.fixed_rows import fixed_rows
from kayn.evidence.missing import warn_if_nothing_observed
from kayn.evidence.read import read_model
from kayn.graph.discover import Structure
from kayn.graph.types import Graph
from kayn.guides.factorised import FactorisedGuide
from kayn.particles.density import DENOMINATORS
from kayn.particles.draw import draw_runs
from kayn.particles.guide_program import GuideProgram, parent_plates, trace_guide
from kayn.particles.reach import refuse_smaller_ends
from kayn.particles.shared_noise import evenly
from kayn.particles.unreached import refuse_values_never_drawn
from kayn.programs.events import freed
from kayn.programs.sites import Inspected, Site, inspect_sites, share_fixed, summed_out
from kayn.programs.trace import Program
from kayn.support.arrays import Array, PyTree
from kayn.support.keys import as_key
from kayn.support.names import refuse_reserved
from kayn.support.prints import Outlined
from kayn.support.validate import parameter_values
from kayn.xla.compilation import compiled_now
from kayn.xla.shared import Kept

DRAWS = 16
"""Runs of a guide at which what it can reach given other latents is compared with the model."""


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Outlined):
    """A model, a guide and the particle axes that were chosen for them. Holds no particles."""

    model: Program
    guide: GuideProgram
    structure: Structure
    layout: Layout
    fn: Callable
    """The model as it was read, in which latents may stand for others (`kayn.programs.dependent_supports`)."""
    denominator: str = "mixture"
    programs: Kept = field(default_factory=Kept, init=False, repr=False)
    """What has been planned and compiled for questions to it, by question."""

    @property
    def graph(self) -> Graph:
        """Plates, latents and factors of the model."""
        return self.structure.graph

    @property
    def num_runs(self) -> int:
        """How often the guide runs: the largest K."""
        return max((a.size for a in self.layout.axes if not a.enumerated), default=1)

    def coordinates(self, latent: str) -> int:
        """How many numbers of a latent share a particle: those in one element of the plates over which its axis has an
        index of its own."""
        elements = math.prod(self.layout.plan.size[p] for p in self.layout.axis_of(latent).scope)
        return math.prod(self.graph.latent(latent).shape) // elements

    def together(self, axis: Axis) -> int:
        """How many numbers each particle of an axis is."""
        return sum(map(self.coordinates, axis.latents))

    @property
    def entries(self) -> int:
        """Numbers in one set of particles: values, as drawn and as used, and weights."""
        size = self.layout.plan.size
        weights = sum(math.prod(size[p] for p in a.scope) * a.size for a in self.layout.axes)
        return weights + 2 * sum(math.prod(z.shape) * self.layout.axis_of(z.name).size for z in self.graph.latents)

    @property
    def numbers(self) -> dict[str, PyTree]:
        """The arrays that the traced programs close over; pass them as arguments into compiled functions."""
        return {
            "model": self.model.consts,
            "density": self.guide.density.consts,
            "sampler": self.guide.sampler_consts,
        }


def build_problem(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping,
    params: PyTree,
    request: Request,
    denominator: str = "mixture",
    inspected: Inspected | None = None,
) -> Problem:
    """Trace model and guide, find the structure, choose axes and plan.

    Args:
        params: values (or tracers) of `numpyro.param` sites in model and guide.
        inspected: what is known of the model already.

    Raises:
        KaynError: a name in `params` belongs to no param site, or its value cannot be that site's.
    """
    if denominator not in DENOMINATORS:
        raise GuideError(f"denominator {denominator!r} is unknown; use one of {', '.join(map(repr, DENOMINATORS))}")
    params = parameter_values(params)
    inspected = inspected_as_drawn(model, guide, args, kwargs, params) if inspected is None else inspected
    sites = inspected.sites
    request = request.about(sites)
    refuse_reserved(sites)
    if isinstance(guide, FactorisedGuide):
        sites = freed(sites, guide.freed(sites))
    traced_guide = trace_guide(guide, args, kwargs, params, sites)
    _refuse_unknown(params, [*sites.values(), *traced_guide.density.sites.values()])
    sites = share_fixed(summed_out(sites, traced_guide.names), traced_guide.density.sites)
    read = read_model(replace(inspected, params=params, sites=sites))
    traced, structure = read.program, read.structure
    warn_if_nothing_observed(traced, model, args, kwargs)
    _refuse_unreachable(traced_guide, traced, params)
    mixed = parent_plates(traced_guide, structure.graph) if denominator == "mixture" else None
    parameters = sum(math.prod(jnp.shape(v)) for v in jax.tree.leaves(params))
    layout = choose_layout(structure, request, traced_guide.constraints, mixed, parameters)
    if request.draws == "even":
        traced_guide = evenly(traced_guide, guide, args, kwargs, params)
    problem = Problem(traced, traced_guide, structure, layout, inspected.fn, denominator)
    set_rows(problem, problem.numbers, params)  # which refuses those that differ
    warn_of_strangers(traced, traced_guide.density)
    return problem


def refuse_unknown_params(
    model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]
) -> None:
    """Refuse values for parameters that neither a model nor its guide has, or that cannot be theirs.

    Raises:
        KaynError: there is one.
    """
    if params:
        programs = (model, guide)
        _refuse_unknown(params, [s for f in programs for s in inspect_sites(f, args, kwargs, params).values()])


def _refuse_unknown(params: Mapping[str, PyTree], sites: Iterable[Site]) -> None:
    known = {s.name for s in sites if s.kind in ("param", "mutable")}
    unknown = [n for n in params if n not in known]
    if unknown:
        raise KaynError(
            f"params has a value for {unknown[0]!r}, but neither model nor guide has such a numpyro.param site; "
            f"they have {sorted(known)}"
        )


def _refuse_unreachable(guide: GuideProgram, model: Program, params: Mapping) -> None:
    def known(program: Program) -> list[Array]:
        indices = {n: np.arange(program.sites[n].shape[0], dtype=np.int32) for n in program.subsamples}
        return [*program.consts, *program.leaves({}, params, indices)]

    @cache
    def draw(names: frozenset[str]) -> dict[str, Array] | None:
        if not names:
            return {}
        indices = {n: np.arange(guide.density.sites[n].shape[0], dtype=np.int32) for n in guide.density.subsamples}
        numbers = (guide.sampler_consts, dict(params), indices)

        def some(consts: PyTree, params: PyTree, indices: PyTree) -> dict[str, Array]:
            runs = draw_runs(guide, consts, as_key(0), DRAWS, params, indices)
            return {n: runs[n] for n in runs if n in names}

        program = compiled_now(some, *numbers)
        return None if program is None else program(*numbers)

    inputs = (known(guide.density), known(model))
    refuse_smaller_ends(guide.density, model, inputs, draw)
    refuse_values_never_drawn(guide.density, model, inputs, draw)


def model_inputs(problem: Problem, numbers: Mapping, params: PyTree, subsample: Mapping) -> list[Array]:
    """Constants and inputs of the model's jaxpr, None in the places of latents."""
    return [*numbers["model"], *problem.model.leaves({}, dict(params or {}), subsample)]


def guide_inputs(problem: Problem, numbers: Mapping, params: PyTree, subsample: Mapping) -> list[Array]:
    """Constants and inputs of the jaxpr of the guide's density, None in the places of latents."""
    return [*numbers["density"], *problem.guide.density.leaves({}, dict(params or {}), subsample)]


def set_rows(problem: Problem, numbers: Mapping, params: PyTree) -> dict[str, Array]:
    """Indices of subsampled plates that are not drawn, see `kayn.evidence.fixed_rows`."""
    guide = problem.guide.density
    return fixed_rows(
        (problem.model, model_inputs(problem, numbers, params, {})), (guide, guide_inputs(problem, numbers, params, {}))
    )
