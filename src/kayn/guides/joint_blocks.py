"""Which coordinates of kayn's own guide get a joint covariance: those that share a particle.

All combinations of particles of different axes are weighed, so that independent guides do for these. Coordinates on one
axis are only ever seen together, one particle at a time, and where they are correlated in the posterior independent
Normals hardly ever propose what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kayn.axes.memory import bytes_beside, step_bytes
from kayn.axes.types import Axis, Layout
from kayn.graph.types import Graph
from kayn.guides.factorised import FactorisedGuide, GuideSite
from kayn.guides.joint import Coordinates, JointPart
from kayn.guides.normal import Gaussian, MultivariateNormal, Normal
from kayn.guides.skewed import Skewed
from kayn.programs.outputs import Part
from kayn.programs.trace import Program

LARGEST_BLOCK = 256
"""Coordinates up to which those that share a particle get a full covariance."""


def joined(guide: FactorisedGuide, layout: Layout, graph: Graph, model: Program) -> FactorisedGuide:
    """The guide with one joint Normal for all coordinates that share a particle, as far as they are Normal.

    Where there are more than `LARGEST_BLOCK`, sites of few coordinates come first. Sites whose elements a model may
    leave out, that are the steps of a loop or are drawn in minibatches stay as they are.
    """
    chosen: dict[str, GuideSite] = {}
    room = layout.memory - layout.beside - step_bytes(layout.plan)
    for axis in layout.axes:
        block = _block(axis, [s for s in guide.sites if s.name in axis.latents and _may(s, graph, model)], graph)
        total = sum(c.length for _, c in block)
        beside = bytes_beside(0, total**2 * math.prod(block[0][1].batch)) if block else 0
        # one site whose elements are apart has a covariance of its own
        alone = len(block) == 1 and isinstance(block[0][0].family, MultivariateNormal) and _apart(*block[0])
        if total < 2 or alone or beside > room:
            continue
        room -= beside
        chosen |= {s.name: s for s in _parts(block)}
    return replace(guide, sites=tuple(chosen.get(s.name, s) for s in guide.sites)) if chosen else guide


def _apart(site: GuideSite, coordinates: Coordinates) -> bool:
    """Whether each element of a site's plates has a vector of its own."""
    batch = coordinates.shape[: site.batch_ndim]
    return all(n == 1 for d, n in enumerate(batch) if d not in coordinates.apart)


def _may(site: GuideSite, graph: Graph, model: Program) -> bool:
    steps = any(graph.plate(p).steps for p in graph.latent(site.name).plate_names)
    masked = Part.MASK.of(site.name) in model.outputs
    return type(site.family) in (Normal, Skewed, MultivariateNormal) and not (steps or masked or site.subsampled)


def _block(axis: Axis, sites: Sequence[GuideSite], graph: Graph) -> list[tuple[GuideSite, Coordinates]]:
    """The sites of an axis that become joint and their coordinates, in the guide's order; none where their plates are
    not in the same places."""
    dims = [dict(graph.latent(s.name).plates) for s in sites]
    orders = {tuple(sorted(axis.scope, key=own.__getitem__)) for own in dims}
    if len(orders) != 1:
        return []
    found = [
        (s, Coordinates(np.shape(s.start["loc"]), tuple(sorted(own[p] for p in axis.scope))))
        for s, own in zip(sites, dims, strict=True)
    ]
    left, few = LARGEST_BLOCK, set()
    for site, coordinates in sorted(found, key=lambda own: own[1].length):
        if coordinates.length <= left:
            left -= coordinates.length
            few.add(site.name)
    return [own for own in found if own[0].name in few]


def _parts(block: Sequence[tuple[GuideSite, Coordinates]]) -> list[GuideSite]:
    names, width, found = tuple(s.name for s, _ in block), 0, []
    for place, (site, coordinates) in enumerate(block):
        assert isinstance(site.family, Gaussian)
        part = JointPart(site.family.event_dim, site.family.transform, coordinates, names, place, width)
        start = part.standard(coordinates.shape, np.asarray(site.start["loc"]).dtype)
        found.append(replace(site, family=part, start=start, wide=None))
        width += coordinates.length
    return found
