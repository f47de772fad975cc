"""A model without a guide: which discrete latents are summed out, and which a guide of kayn's own draws; which latents
are read in unconstrained space, since their support depends on others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from kayn.axes.choose import choose_layout
from kayn.axes.minibatches import subsampled_plates
from kayn.axes.request import Request
from kayn.axes.types import Layout
from kayn.errors import StructureError
from kayn.evidence.as_drawn import in_running_sums, inspected_as_drawn
from kayn.evidence.free_events import with_freed_events
from kayn.evidence.read import read_model
from kayn.graph.types import Graph
from kayn.guides.start import supports_that_depend
from kayn.programs.dependent_supports import ReadUnbounded, unconstrained
from kayn.programs.sites import Inspected, Site, summed_out
from kayn.support.names import refuse_reserved

MOST_ENTRIES = 2**23
"""Entries of a factor up to which a latent is summed out: a tenth of a second on a core."""
MOST_FLOPS = 2**28
"""Multiply-adds of a contraction, which takes about as long."""


def inspected_for(
    guide: Callable | None, model: Callable, args: tuple, kwargs: Mapping, params: Mapping, request: Request
) -> Inspected:
    """A model as its guide draws it: a user's, or one of kayn's own where there is none.

    Raises:
        ModelError: as `Inspected.of`, and for a site whose name is kept for kayn.
    """
    inspected = inspected_as_drawn(model, guide, args, kwargs, params)
    if guide is not None:
        return inspected
    refuse_reserved(inspected.sites)
    return _summed(in_running_sums(_unbounded(inspected)), request)


def _unbounded(inspected: Inspected) -> Inspected:
    """A model whose latents are read in unconstrained space where their support depends on other latents.

    Those in loops, and those with a mask or a scale, which would change the density of their place there, are left.
    """
    fn, args, kwargs, params, sites, _ = (getattr(inspected, f.name) for f in fields(inspected))
    latents = {n: s for n, s in sites.items() if s.kind == "sample" and not s.observed}
    names = [n for n, s in latents.items() if _may_depend(s)]
    if not names:
        return inspected
    plates = subsampled_plates(sites)
    found = supports_that_depend(fn, args, kwargs, params, latents, names, plates, unconstrained)
    return Inspected.of(ReadUnbounded(fn, found), args, kwargs, params) if found else inspected


def _may_depend(site: Site) -> bool:
    if site.discrete or site.delta or site.steps is not None or site.scaled:
        return False
    return site.support is None or None in (site.support.lower, site.support.upper)


def _summed(inspected: Inspected, request: Request) -> Inspected:
    """A model whose discrete latents are enumerated as far as that can be afforded, without being asked to, and whose
    events are taken apart where that serves (`kayn.evidence.free_events`).

    One is not where its axis cannot keep an index of its own over its plates, or shares a group, or where its values
    would make a factor or the contraction too large; `Site.why_drawn` says so, and kayn's own guide draws it.
    """
    request = request.about(inspected.sites)
    latents = {n: s for n, s in inspected.sites.items() if s.kind == "sample" and not s.observed and s.discrete}
    free = {n: s.num_values for n, s in latents.items() if not s.enumerate and s.num_values is not None}
    why = {n: "its values cannot be listed" for n, s in latents.items() if s.num_values is None}
    while free:
        own = _decided(inspected, why)
        found = _too_dear(own, free, request)
        if found is None:
            return with_freed_events(own, request)
        name, why[name] = found
        del free[name]
    return with_freed_events(_decided(inspected, why), request)


def _decided(inspected: Inspected, why: dict[str, str]) -> Inspected:
    sites = summed_out(inspected.sites, why)
    return replace(inspected, sites={n: replace(s, why_drawn=why.get(n, "")) for n, s in sites.items()})


def _too_dear(inspected: Inspected, free: dict[str, int], request: Request) -> tuple[str, str] | None:
    """One of some enumerated latents that had better be drawn, and why; None if there is none."""
    most = max(free, key=lambda n: free[n])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say is said when the problem is built
            structure = read_model(inspected).structure
        layout = choose_layout(structure, request)
    except StructureError as error:
        if error.enumerated and error.enumerated not in free:
            raise
        return error.enumerated or most, error.why or f"with its {free[most]} values {str(error).partition(';')[0]}"
    # within plates a guide's particles are no fewer; without, they could share an axis with others
    large = {n: v for n, v in free.items() if v > request.particles_of(n) or not layout.axis_of(n).scope}
    for name in sorted(large, key=lambda n: -large[n]):
        entries = _entries(structure.graph, layout, name)
        if entries > MOST_ENTRIES:
            return name, f"its {large[name]} values would make a factor of {entries:.2g} entries"
    if large and layout.plan.flops > MOST_FLOPS:
        name = max(large, key=lambda n: large[n])
        return name, f"its {large[name]} values would make {layout.plan.flops:.2g} multiply-adds of the contraction"
    return None


def _entries(graph: Graph, layout: Layout, latent: str) -> int:
    """Entries of the largest factor that reads a latent."""
    size = {p.name: p.size for p in graph.plates}

    def of(names: tuple[str, ...], dims: tuple[str, ...]) -> int:
        axes = {layout.axis_of(n).name: layout.axis_of(n).size for n in names}
        return math.prod(axes.values()) * math.prod(size[d] for d in dims if d)

    bases = {a.latent.name: a.base for a in graph.aliases}
    reading = [o for o in graph.factors if any(bases.get(n, n) == latent for n in o.latents)]
    return max((of(o.latents, o.dims) for o in reading), default=0)
