"""Which events of independent elements are read element by element, so that each can have particles of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace

from kayn.axes.choose import choose_layout
from kayn.axes.request import Request
from kayn.errors import StructureError
from kayn.evidence.read import read_model
from kayn.graph.discover import Structure
from kayn.graph.lost import Lost
from kayn.graph.types import MIXED, Graph, Kind
from kayn.guides.choice import LONGEST_VECTOR
from kayn.programs.events import freed, with_free_elements
from kayn.programs.sites import Inspected

MANY = 64
"""Elements beyond which those that share a particle lose more than latents whose indices they take."""


def with_freed_events(inspected: Inspected, request: Request) -> Inspected:
    """The model with the elements of such events as dimensions of a batch; of other models nothing changes.

    kayn's own guide then draws these elements one by one, where it would draw them together. A short vector stays one
    where a deterministic value reads several of its elements, or one by its number, too: its covariance loses little.
    """
    names = frozenset(with_free_elements(inspected.sites))
    while names:
        own = replace(inspected, sites=freed(inspected.sites, names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say is said when the problem is built
            structure = read_model(own).structure
            batch_ndims = {n: len(inspected.sites[n].batch_shape) for n in names}
            together = _read_together(structure.graph, batch_ndims)
            found = worth_freeing(structure, request, {n: d for n, d in batch_ndims.items() if n not in together})
        if found == names:
            return own
        names = found
    return inspected


def kept_whole(inspected: Inspected) -> dict[str, Lost]:
    """Latents whose many elements could be drawn one by one, but for what reads several of them: with what does.

    Args:
        inspected: the model with the events that are read element by element as batches.
    """
    sites = inspected.sites
    names = [n for n in with_free_elements(sites) if math.prod(sites[n].shape) > MANY]
    if not names:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = read_model(replace(inspected, sites=freed(sites, names))).structure
    plates = {n: structure.graph.latent(n).plate_names for n in names}
    lost = {n: [structure.nodes.lost[n, p] for p in own if (n, p) in structure.nodes.lost] for n, own in plates.items()}
    return {n: found[0] for n, found in lost.items() if found}


def _read_together(graph: Graph, batch_ndims: Mapping[str, int]) -> set[str]:
    """Those of some latents of which an output reads several elements along every dimension of their events."""

    def along(latent: str) -> set[str]:
        first = batch_ndims.get(latent, 0)
        return {plate for plate, dim in graph.latent(latent).plates if dim >= first}

    return {
        r.latent
        for o in graph.outputs
        for r in o.reads
        if all(how == MIXED for plate, how in r.through if plate in along(r.latent))
        and (o.kind is not Kind.VALUE or math.prod(graph.latent(r.latent).shape) <= LONGEST_VECTOR)
    }


def worth_freeing(structure: Structure, request: Request, batch_ndims: Mapping[str, int]) -> frozenset[str]:
    """Those of some latents whose elements had better have particle indices of their own.

    Elements that share a particle have a joint covariance as long as they are few, and lose little. Few elements are
    therefore freed only where no other latent has fewer indices for it, since its plates would cross theirs; many, the
    longest event first, wherever they come to have more indices.

    Args:
        structure: of the model with all of them freed.
        batch_ndims: of these latents, how many leading dimensions are not those of the event.
    """
    graph, size = structure.graph, {p.name: p.size for p in structure.graph.plates}
    plates = {n: tuple(p for p, dim in graph.latent(n).plates if dim >= ndim) for n, ndim in batch_ndims.items()}
    elements = {n: math.prod(size[p] for p in own) for n, own in plates.items()}

    def indices(free: Collection[str]) -> dict[str, int]:
        """How many particle indices every latent has if these are free."""
        together = tuple((n, own) for n, own in plates.items() if n not in free)
        layout = choose_layout(structure, replace(request, couple=(*request.couple, *together)))
        return {z.name: math.prod(size[p] for p in layout.axis_of(z.name).scope) for z in graph.latents}

    free: frozenset[str] = frozenset()
    try:
        now = indices(free)
        for name in sorted(plates, key=lambda n: -elements[n]):
            then = indices(free | {name})
            harmless = elements[name] > MANY or all(then[n] >= now[n] for n in now)
            if then[name] > now[name] and harmless:
                free, now = free | {name}, then
    except StructureError:  # which is raised when the problem is built
        return frozenset(plates)
    return free
