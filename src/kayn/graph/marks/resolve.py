"""Where the symbolic reading of a program gives an index up, ask the numbers: marks by element, once a program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kayn.graph.aligned import Aligned, Key
from kayn.graph.expressions import Node, Nodes
from kayn.graph.lost import Lost
from kayn.graph.marks import bodies, moves, places, products
from kayn.graph.marks.algebra import Mark, own
from kayn.graph.marks.links import as_annotation, filled, index_along, known_reads
from kayn.graph.marks.values import Values
from kayn.graph.marks.walk import Reading, Walk
from kayn.graph.types import MIXED, Latent
from kayn.programs.outputs import OutputName
from kayn.programs.slices import needed_equations
from kayn.programs.supports import BOX, Support
from kayn.programs.trace import Program

RULES = {**moves.RULES, **places.RULES, **products.RULES}


def resolve(
    program: Program,
    latents: Sequence[Latent],
    outputs: Sequence[OutputName],
    found: Mapping[OutputName, Any],
    nodes: Nodes,
) -> dict[OutputName, Any]:
    """What each output reads, with indices for what was mixed, where every entry reads one element at most.

    Args:
        outputs: those whose reads matter.
        found: annotations of all outputs; what was not mixed is kept.
        nodes: the program's expressions, with the line of the model that loses an element (`Nodes.lost`).
    """
    sizes = {(z.name, p): z.shape[d] for z in latents for p, d in z.plates if z.shape[d] > 1}
    open_ = {n: keys for n in outputs if (keys := _open(program, n, found[n], sizes))}
    if not open_:
        return dict(found)
    wanted = {k for keys in open_.values() for k in keys}
    marks, lost = _marks(program, latents, list(open_), wanted, nodes)
    out = dict(found)
    for name, keys in open_.items():
        read = {k: index_along(marks[name][k], sizes[k]) for k in keys if k in marks[name]}
        some = {k: f for k, f in read.items() if f is not None}
        others = known_reads(nodes, found[name], _shape(program, name))
        out[name] = {**found[name], **as_annotation(nodes, filled(some, sizes, others), sizes)}
    nodes.lost.update({k: where for k, where in lost.items() if where.line or k not in nodes.lost})
    return out


def _shape(program: Program, name: OutputName) -> tuple[int, ...]:
    return tuple(program.aval(name).shape)


def _open(program: Program, name: OutputName, annotation: Any, sizes: Mapping[Key, int]) -> list[Key]:
    """What is mixed in an output that has a dimension for an index to lie along."""
    if isinstance(annotation, Node) or max(_shape(program, name), default=1) == 1:
        return []
    names = {latent for latent, _ in annotation}
    return [k for k in sizes if k[0] in names and not isinstance(annotation.get(k, MIXED), Aligned)]


def _marks(
    program: Program, latents: Sequence[Latent], names: Sequence[OutputName], keys: set[Key], nodes: Nodes
) -> tuple[dict[OutputName, Mapping[Key, Mark]], dict[Key, Lost]]:
    inputs, by_name, count = [], {z.name: z for z in latents}, len(program.consts)
    for position in range(count + len(program.jaxpr.invars)):
        place = position - count
        latent = by_name.get(program.inputs[place]) if 0 <= place < len(program.inputs) else None
        inputs.append(Reading(nodes.leaf(position), {} if latent is None else _of_latent(latent, keys)))
    walk = Walk(Values(nodes, _trial(program, latents, nodes)), RULES, bodies.BODIES)
    positions = [program.outputs.index(n) for n in names]
    out = walk.run(program.jaxpr, inputs, needed_equations(program.jaxpr, positions)[0])
    return {n: out[i].marks for n, i in zip(names, positions, strict=True)}, walk.lost


def _of_latent(latent: Latent, keys: Collection[Key]) -> dict[Key, Mark]:
    return {(latent.name, p): own(latent.shape, d) for p, d in latent.plates if (latent.name, p) in keys}


def _trial(program: Program, latents: Sequence[Latent], nodes: Nodes) -> list[Any]:
    """Values for all inputs, latents' somewhere in their supports."""
    rng, values, count = np.random.default_rng(0), list(nodes.known), len(program.consts)
    bases = {a.name: a.base for a in program.aliases}
    for latent in latents:
        if latent.name in program.inputs:
            site = program.sites.get(bases.get(latent.name, latent.name))
            value = _inside(None if site is None else site.support, latent.shape, rng)
            values[count + program.inputs.index(latent.name)] = value.astype(latent.dtype)
    return values


def _inside(support: Support | None, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    low, high = (support.lower, support.upper) if support is not None and support.kind == BOX else (None, None)
    if low is not None and high is not None and np.isfinite([low, high]).all():
        found = low + (high - low) * rng.uniform(0.2, 0.8, shape)
    elif low is not None and np.isfinite(low):
        found = low + np.exp(0.5 * rng.normal(size=shape))
    elif high is not None and np.isfinite(high):
        found = high - np.exp(0.5 * rng.normal(size=shape))
    else:
        found = 0.5 * rng.normal(size=shape)
    return np.round(found) if support is not None and support.whole else found
