"""Events of independent elements, taken for dimensions of a batch: `Normal(0, 1).expand([300]).to_event(1)` says of 300
numbers what a plate says of them, and each may have particles of its own."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace

from kayn.programs.sites import Site


def with_free_elements(sites: Mapping[str, Site]) -> tuple[str, ...]:
    """Latents whose events are of several independent elements, each of which could be drawn by itself."""

    def could(site: Site) -> bool:
        latent = site.kind == "sample" and not site.observed and (site.steps is None or site.walk)
        plain = not (site.discrete or site.delta or site.added or site.auxiliary or site.scaled or site.mask_ndim)
        return latent and plain and math.prod(_elements(site)) > 1

    return tuple(n for n, s in sites.items() if could(s))


def freed(sites: Mapping[str, Site], names: Container[str]) -> dict[str, Site]:
    """Sites of which some have the independent elements of their events among the dimensions of their batch."""

    def changed(site: Site) -> Site:
        own, count = _elements(site), site.independent_ndim
        frames = tuple((plate, dim - count, size) for plate, dim, size in site.frames)
        return replace(site, batch_shape=(*site.batch_shape, *own), frames=frames, independent_ndim=0, freed=count)

    return {n: changed(s) if n in names and s.independent_ndim else s for n, s in sites.items()}


def _elements(site: Site) -> tuple[int, ...]:
    first = len(site.batch_shape)
    return site.shape[first : first + site.independent_ndim]
