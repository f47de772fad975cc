"""Point masses in guides: the density of what they are computed from counts as often as theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kayn.errors import GuideError
from kayn.programs.outputs import Part
from kayn.programs.sites import Site
from kayn.programs.trace import Program


def point_sources(density: Program) -> dict[str, frozenset[str]]:
    """The latents, auxiliary sites and keys that each point mass of a guide with subsampled plates is computed from."""
    found = {}
    for name in density.sites:
        point = Part.POINT.of(name)
        if point in density.outputs:
            used = density.sliced([point])[1]
            places = {i - len(density.consts) for i in used}
            found[name] = frozenset(n for i, n in enumerate(density.inputs) if i in places)
    return found


def refuse_split_points(density: Program, model_sites: Mapping[str, Site]) -> None:
    """Refuse a density that would have to be split.

    Raises:
        GuideError: a site is drawn jointly for latents that a subsampled plate lets count unequally.
    """
    found = point_sources(density)
    for source in dict.fromkeys(n for sources in found.values() for n in sorted(sources)):
        if density.sites[source].kind == "key":
            continue  # has no density
        names = [n for n, sources in found.items() if source in sources and n in model_sites]
        counts = {n: _count(model_sites[n], model_sites) for n in names}
        own = _count(density.sites[source], density.sites)
        if any(not math.isclose(c, own) for c in counts.values()):
            told = ", ".join(f"{n!r} ({c:g} times)" for n, c in counts.items())
            raise GuideError(
                f"guide site {source!r} ({own:g} times) is drawn for {told} together, but rows of a subsampled plate "
                "count as often as given here, and one density cannot be split. Draw rows in the plate and the rest "
                "outside of it (AutoNormal, guide=None), or leave subsample_size out of the plate"
            )


def _count(site: Site, sites: Mapping[str, Site]) -> float:
    """How often a site counts because of the subsampled plates that it is in."""
    plates = [sites[plate] for plate, _, _ in site.frames if plate in sites]
    return math.prod(p.batch_shape[0] / p.shape[0] for p in plates)
