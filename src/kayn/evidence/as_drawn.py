"""A model as a guide of kayn's draws it: some of its latents in other coordinates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from kayn.axes.minibatches import subsampled_plates
from kayn.graph.running_sums import added_up
from kayn.programs.running import ReadRunning
from kayn.programs.sites import Inspected, Site
from kayn.programs.supports import BOX
from kayn.programs.unbounded import ReadUnbounded

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
    some = subsampled_plates(inspected.sites)
    sites = {n: s for n, s in inspected.sites.items() if names is None or n in names}
    able = [n for n, s in sites.items() if _are_innovations(s) and not some.keys() & {f[0] for f in s.frames}]
    if not able or inspected.drawn is None:
        return inspected
    found = added_up(inspected.drawn, able)
    if not found:
        return inspected
    return Inspected.of(ReadRunning(inspected.fn, found), inspected.args, inspected.kwargs, inspected.params)


def _are_innovations(site: Site) -> bool:
    """Whether a latent may be innovations: independent numbers, each anywhere, a batch or one event."""
    plain = site.kind == "sample" and not (site.observed or site.discrete or site.delta or site.scaled or site.added)
    if not plain or site.steps is not None or site.mask_ndim or site.unbounded or not _everything(site):
        return False
    alone = site.event_dim == site.independent_ndim and (not site.event_dim or len(site.shape) == 1)
    return alone and max(site.shape, default=1) >= SHORTEST


def _everything(site: Site) -> bool:
    support = site.support
    return support is not None and support.kind == BOX and not support.whole and _is_line(support.lower, support.upper)


def _is_line(lower: float | None, upper: float | None) -> bool:
    return lower == float("-inf") and upper == float("inf")
