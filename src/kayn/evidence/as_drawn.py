"""A model as a guide of kayn's draws it: some of its latents in other coordinates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from kayn.axes.minibatches import subsampled_plates
from kayn.graph.running_sums import added_up
from kayn.programs.dependent_supports import ReadUnbounded
from kayn.programs.read_running import ReadRunning
from kayn.programs.running import Coordinates
from kayn.programs.sites import Inspected, Site
from kayn.programs.supports import BOX

SHORTEST = 3
"""Innovations below which nothing is gained by their running sum."""


def inspected_as_drawn(model: Callable, guide: Any, args: tuple, kwargs: Mapping, params: Any) -> Inspected:
    """A model as a guide reads it: with its latents in the coordinates that the guide draws them in."""
    inspected = Inspected.of(model, args, kwargs, params)
    names = frozenset(getattr(guide, "unbounded", ()))
    if not names:
        return inspected
    # where a support is everything, whatever other latents are, it is their sum that is drawn
    summed = {n for n in names if n in inspected.sites and _everything(inspected.sites[n])}
    if names - summed:
        inspected = Inspected.of(ReadUnbounded(model, names - summed), args, kwargs, params)
    return in_running_sums(inspected, summed)


def in_running_sums(inspected: Inspected, names: Collection[str] | None = None) -> Inspected:
    """A model whose innovations are read in their running sum, where that makes of them a chain.

    Args:
        names: the only latents that may be; by default all.
    """
    found = _found(inspected, names)
    if not found:
        return inspected
    fn, params, order = inspected.fn, inspected.params, list(inspected.drawn.latents if inspected.drawn else ())
    ahead: dict[str, None] = {}  # in the order in which they are needed
    for name, coordinates in found.items():
        for n in (n for n in coordinates.latents if order.index(n) > order.index(name)):
            ahead |= dict.fromkeys((*(found[n].latents if n in found else ()), n))

    def again(args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Coordinates]:
        return _found(Inspected.of(fn, args, kwargs, params), names)

    model = ReadRunning(fn, found, tuple(ahead), again)
    return Inspected.of(model, inspected.args, inspected.kwargs, params)


def _found(inspected: Inspected, names: Collection[str] | None) -> dict[str, Coordinates]:
    """What innovations are read in, by latent."""
    some = subsampled_plates(inspected.sites)
    sites = {n: s for n, s in inspected.sites.items() if names is None or n in names}
    able = {n: _axes_of_steps(s) for n, s in sites.items() if not some.keys() & {f[0] for f in s.frames}}
    able = {n: axes for n, axes in able.items() if axes}
    return added_up(inspected.drawn, able, _movable(inspected.sites)) if able and inspected.drawn is not None else {}


def _movable(sites: Mapping[str, Site]) -> list[str]:
    """Latents that may be drawn in another place of a program: those that nothing around them has changed."""
    if any(s.kind in ("param", "mutable") for s in sites.values()):
        return []  # which laws may be made of
    some = subsampled_plates(sites)

    def plain(s: Site) -> bool:
        changed = s.scaled or s.added or s.mask_ndim or s.delta or s.unbounded or s.steps is not None
        within = any(f[0] in some for f in s.frames)
        return s.kind == "sample" and not s.observed and not s.discrete and not changed and not within

    return [n for n, s in sites.items() if plain(s)]


def _axes_of_steps(site: Site) -> list[int]:
    """The dimensions, from the last, that may be steps of a latent that may be innovations: independent numbers, each
    anywhere. Events are a part of what belongs to a step, or steps come first in them."""
    plain = site.kind == "sample" and not (site.observed or site.discrete or site.delta or site.scaled or site.added)
    if not plain or site.steps is not None or site.mask_ndim or site.unbounded or not _everything(site):
        return []
    if site.event_dim != site.independent_ndim:
        return []
    return [axis for axis in range(-len(site.shape), 0) if site.shape[axis] >= SHORTEST]


def _everything(site: Site) -> bool:
    support = site.support
    return support is not None and support.kind == BOX and not support.whole and _is_line(support.lower, support.upper)


def _is_line(lower: float | None, upper: float | None) -> bool:
    return lower == float("-inf") and upper == float("inf")
