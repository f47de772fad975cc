"""Which latents share a particle axis, and over which plates an axis has an index of its own.

A strategy proposes axes; couplings then remove what the factor graph cannot support: a plate whose elements a factor
mixes, or two crossed groupings. Every coupling keeps the estimate valid (the same unbiased evidence, over fewer
combinations of particles) and is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kayn.axes.memory import cut_to_fit
from kayn.axes.types import Axis, axis_name, axis_of, proposal_name
from kayn.contraction.build import plan_contraction
from kayn.contraction.plan import Chained, Plan, PlateLink, Term
from kayn.graph.discover import Structure
from kayn.graph.types import Graph, Link, Output


def plan_axes(structure: Structure, axes: Sequence[Axis], outputs: Sequence[Output]) -> Plan:
    """Plan the contraction of some outputs over fixed particle axes.

    Raises:
        Stuck: no elimination order exists.
    """
    sizes = {p.name: p.size for p in structure.graph.plates}
    batched = with_aliases(structure.graph, axes)
    terms = [output_term(batched, o) for o in outputs]
    terms += [Term(proposal_name(a), (*a.scope, a.name)) for a in axes]

    def nest(inner: Any, outer: Any, fine: str, coarse: str) -> Any:
        return structure.nest(inner, outer, sizes[fine], sizes[coarse])

    return plan_contraction(
        terms,
        {a.name: a.size for a in batched},
        {a.name: frozenset(a.scope) for a in batched},
        sizes,
        scales={p.name: p.scale for p in structure.graph.plates},
        exact=frozenset(a.name for a in batched if a.enumerated),
        nest=nest,
        chains=_chains(structure.graph, axes),
    )


def plan_within(structure: Structure, axes: Sequence[Axis], outputs: Sequence[Output], memory: int) -> Plan:
    """As `plan_axes`, a sum cut into parts where a step would take more memory; it may still,
    where that does not help."""
    return cut_to_fit(plan_axes(structure, axes, outputs), memory)


def with_aliases(graph: Graph, axes: Sequence[Axis]) -> list[Axis]:
    """The axes, and behind them one for each other step at which chained axes are read.

    Where an axis has no index of its own over the steps, its particles are whole paths, and so are their earlier
    states: these join the axis itself.
    """
    extended = list(axes)
    for position, axis in enumerate(axes):
        for alias in graph.aliases:
            if alias.base in axis.latents and alias.time not in axis.scope:
                grown = extended[position]
                extended[position] = replace(grown, latents=(*grown.latents, alias.latent.name))
    for axis in axes:
        groups: dict[tuple[int, bool, str], list[str]] = {}
        for alias in graph.aliases:
            if alias.base in axis.latents and alias.time in axis.scope:
                groups.setdefault((alias.lag, alias.end, alias.time), []).append(alias.latent.name)
        for (_, end, time), names in groups.items():
            scope = tuple(p for p in axis.scope if p != time or not end)
            extended.append(Axis(axis_name(names), tuple(names), scope, axis.size, axis.enumerated, axis.name))
    return extended


def _chains(graph: Graph, axes: Sequence[Axis]) -> dict[str, Chained]:
    batched = with_aliases(graph, axes)
    out = {}
    for axis in axes:
        mine = [a for a in graph.aliases if a.base in axis.latents and a.time in axis.scope]
        if mine:

            def names(end: bool, mine: Sequence[Any] = mine) -> tuple[str, ...]:
                ordered = sorted((a for a in mine if a.end == end), key=lambda a: a.lag)
                return tuple(dict.fromkeys(axis_of(batched, a.latent.name).name for a in ordered))

            out[axis.name] = Chained(mine[0].time, names(False), names(True))
    return out


def output_term(axes: Sequence[Axis], output: Output) -> Term:
    """The contraction term of an output: its plates, then the particle axes it depends on."""
    mine = list(dict.fromkeys(axis_of(axes, n) for n in output.latents))
    links = []
    for read in output.reads:
        for plate in axis_of(axes, read.latent).scope:
            how = read.of(plate)
            if isinstance(how, Link):
                links.append(PlateLink(how.source, how.target, how.key))
    return Term(output.name, (*(d for d in output.dims if d), *(a.name for a in mine)), tuple(dict.fromkeys(links)))
