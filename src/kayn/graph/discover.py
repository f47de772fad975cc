"""From a traced model to its factor graph: plates, latents, factors, and the links between plates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kayn.errors import ModelError
from kayn.graph.aligned import Aligned
from kayn.graph.data_checks import check_data
from kayn.graph.dependence import read_program
from kayn.graph.expressions import Made, Node, Nodes, Operation, evaluate, nested_through
from kayn.graph.marks.resolve import resolve
from kayn.graph.predictor_terms import CONSTANT, read_parts
from kayn.graph.types import MIXED, AliasOf, Argument, Density, Graph, Kind, Latent, Link, Output, Plate, Read
from kayn.programs.outputs import OutputName, Part
from kayn.programs.scans import Alias
from kayn.programs.sites import Site
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.support.names import fresh, in_model

RESULTS = (Part.DENSITY, Part.VALUE)
"""Outputs that a graph is made of; all others say something about one."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A graph together with the expressions that compute its links' index vectors."""

    graph: Graph
    nodes: Nodes
    links: list[Node]

    def index(self, key: Any, inputs: Sequence[Array], memo: dict[int, Array]) -> Array:
        """The index vector of link `key`: int [source plate size], values in the target plate."""
        return evaluate(self.links[key], inputs, memo)

    def nest(self, inner: int, outer: int, inner_size: int, outer_size: int) -> int | None:
        """The key of the link from elements of one group plate to another, if the former are nested in the latter.

        Args:
            inner: key of the link from rows to the finer groups, of which there are `inner_size`.
            outer: key of the link from the same rows to the `outer_size` coarser groups.
        """
        sizes = inner_size, outer_size
        node = nested_through(self.nodes, self.links[inner], self.links[outer], sizes, self.links)
        if node is None:
            return None
        if node not in self.links:
            self.links.append(node)
        return self.links.index(node)


def adopt(
    structure: Structure, output: Output, nodes: Nodes, links: Sequence[Node], inputs: Sequence[Array]
) -> tuple[Structure, Output]:
    """Bring an output of another program (a query, a guide's density) into a structure.

    Args:
        nodes, links: the expressions that the output's link keys refer to.
        inputs: constants and inputs of the other program.

    Returns:
        The structure with the links it did not have yet, as values, and the output with keys into it.
    """
    table = list(structure.links)
    keys = []
    for link in links:
        value = evaluate(link, inputs)
        number = nodes.concrete(link)
        known = [structure.nodes.concrete(n) for n in table]
        equal = [i for i, k in enumerate(known) if number is not None and k is not None and np.array_equal(k, number)]
        if not equal:
            table.append(Node(None, (), Operation(Made.LITERAL), literal=value))
        keys.append(equal[0] if equal else len(table) - 1)
    reads = tuple(
        replace(r, through=tuple((p, replace(h, key=keys[h.key]) if isinstance(h, Link) else h) for p, h in r.through))
        for r in output.reads
    )
    return replace(structure, links=table), replace(output, reads=reads)


def discover(program: Program, known: Sequence[Array]) -> Structure:
    """Find the structure of a traced model.

    Args:
        known: values of the jaxpr's constants and inputs (None or tracers where unknown).

    Raises:
        DataError: observed values are NaN, infinite or outside the support, or an index is out of range.
        ModelError: the program has no latent.
    """
    plates = {n: Plate(n, s.shape[0], s.batch_shape[0]) for n, s in program.sites.items() if s.kind == "plate"}
    for site in program.sites.values():
        for name, dim, size in site.frames:  # plates inside loops, and the loops' steps
            leading = site.steps is not None and dim == site.step_dim - len(site.batch_shape)
            plates.setdefault(name, Plate(name, size, size))
            if leading:
                plates[name] = replace(plates[name], steps=True)
    latents = [_latent(s, plates) for s in program.sites.values() if s.kind == "sample" and not s.observed]
    aliases = [_alias(a, program, latents) for a in program.aliases]
    if not latents:
        raise ModelError(
            "the model has no latent sample site, so there is nothing to infer; check that obs= is not given everywhere"
        )
    inputs = [*latents, *(a.latent for a in aliases)]
    found, nodes = read_program(program, inputs, known)
    found = resolve(program, inputs, [n for n in program.outputs if n.part in RESULTS], found, nodes)
    check_data(program, found, nodes)

    builder = _Builder(plates, nodes, {z.name: z for z in inputs})
    for output, annotation in found.items():
        builder.add(output, annotation, program)
    densities = _densities(program, found)
    outputs = tuple(replace(o, density=densities.get(o.name)) for o in builder.finish())
    rename = builder.rename
    kept = {rename(p): plates[rename(p)] for p in (*plates, *builder.plates)}
    priors = {o.name: o.latents for o in outputs if o.kind is Kind.PRIOR}

    def renamed(z: Latent) -> Latent:
        parents = tuple(p for p in priors.get(z.name, ()) if p != z.name)
        return replace(z, plates=tuple((rename(p), d) for p, d in z.plates), parents=parents)

    graph = Graph(
        tuple(kept.values()),
        tuple(renamed(z) for z in latents),
        outputs,
        tuple(replace(a, latent=renamed(a.latent), time=rename(a.time)) for a in aliases),
    )
    return Structure(graph, nodes, builder.links)


def discover_output(
    structure: Structure, program: Program, name: OutputName, known: Sequence[Array], inputs: Sequence[Array]
) -> tuple[Structure, Output]:
    """How one output of another program reads a structure's latents.

    Args:
        program: a traced function or guide; those of its inputs that are latents of the graph are read.
        known: constants and inputs of that program, None or tracers where unknown.
        inputs: the same for evaluating its links.

    Returns:
        The structure with plates for the output's own dimensions and links added, and the output.
    """
    graph = structure.graph
    plates = {p.name: p for p in graph.plates}
    names = (*graph.latent_names, *(a.latent.name for a in graph.aliases))
    latents = [graph.latent(n) for n in program.inputs if n in names]
    found, nodes = read_program(program, latents, known)
    found = resolve(program, latents, [name], found, nodes)
    builder = _Builder(plates, nodes, {z.name: z for z in latents})
    builder.add(name, found[name], program)
    output = replace(builder.finish()[0], density=_densities(program, found).get(name.site))
    extended = replace(structure, graph=replace(graph, plates=tuple(plates.values())))
    return adopt(extended, output, nodes, builder.links, inputs)


def _densities(program: Program, found: Mapping[OutputName, Any]) -> dict[str, Density]:
    """The densities of sites that are exponential families, by site."""
    arguments: dict[str, list[Argument]] = {}
    for variable, name in zip(program.jaxpr.outvars, program.outputs, strict=True):
        if name.part is Part.ARGUMENT:
            latents = () if isinstance(found[name], Node) else dict.fromkeys(latent for latent, _ in found[name])
            aval = variable.aval
            arguments.setdefault(name.site, []).append(
                Argument(name.argument, aval.shape, str(aval.dtype), tuple(latents))
            )
    parts = read_parts(program) if arguments else {}

    def density(site: str, own: Sequence[Argument]) -> Density:
        factor = program.rows.get(site) or program.sites[site]
        family = factor.exponential_family
        assert family is not None, "others have no arguments"
        sets: Collection[frozenset[str]] = ()
        if family.predictor is not None:
            found = parts.get(Part.ARGUMENT.of(site, family.predictor.argument), CONSTANT)
            sets = found.factors if family.predictor.exponential else found.terms
        terms = tuple(sorted(tuple(sorted(names)) for names in sets))
        return Density(family, factor.independent_ndim, tuple(own), terms)

    return {site: density(site, own) for site, own in arguments.items()}


def _alias(alias: Alias, program: Program, latents: Sequence[Latent]) -> AliasOf:
    base = next(z for z in latents if z.name == alias.base)
    time = next(name for name, dim in base.plates if dim == alias.dim)
    latent = replace(base, name=alias.name)
    if alias.end:
        plates = tuple((name, dim - (dim > alias.dim)) for name, dim in base.plates if dim != alias.dim)
        shape = base.shape[: alias.dim] + base.shape[alias.dim + 1 :]
        latent = replace(latent, shape=shape, batch_ndim=base.batch_ndim - 1, plates=plates)
    return AliasOf(latent, alias.base, alias.lag, alias.end, time)


def _latent(site: Site, plates: dict[str, Plate]) -> Latent:
    declared = {len(site.batch_shape) + dim: name for name, dim, _ in site.frames}
    runs: list[tuple[str, int]] = []
    for dim, size in enumerate(site.batch_shape):
        name = declared.get(dim)
        if name is None and size > 1:
            name = _implicit(site.name, dim, plates)
            plates[name] = Plate(name, size, size, implicit=True)
        if name is not None:
            runs.append((name, dim))
    return Latent(
        site.name,
        site.shape,
        site.dtype,
        len(site.batch_shape),
        tuple(runs),
        site.discrete,
        site.support_size,
        endless=site.support is not None and site.support.endless,
    )


def _implicit(site: str, dim: int, plates: Mapping[str, Plate]) -> str:
    """The name of the plate that a site's dimension is, where the user has not declared one."""
    return fresh(f"{in_model(site)}_dim_{dim}", {n for n, p in plates.items() if not p.implicit})


class _Builder:
    """Names the dimensions of every output and turns annotations into reads, in two passes.

    The first pass collects, and identifies implicit plates that run in step with another plate; the second names.
    """

    def __init__(self, plates: dict[str, Plate], nodes: Nodes, latents: Mapping[str, Latent]):
        self.plates, self.nodes, self.latents = plates, nodes, latents
        self.same: dict[str, str] = {}
        self.pending: list[tuple[str, Kind, list[str], Mapping]] = []
        self.links: list[Node] = []

    def rename(self, plate: str) -> str:
        while plate in self.same:
            plate = self.same[plate]
        return plate

    def add(self, output: OutputName, annotation: Any, program: Program) -> None:
        """Collect an output, unless it is neither a density nor a value."""
        if output.part not in RESULTS:
            return
        name = output.site
        site = program.rows.get(name) or program.sites.get(name)
        if output.part is Part.VALUE:
            kind = Kind.VALUE
        else:
            kind = Kind.LIKELIHOOD if site is not None and site.observed else Kind.PRIOR
        shape = program.aval(output).shape
        if isinstance(annotation, Node):
            annotation = {}
        declared = {len(shape) + dim: p for p, dim, _ in site.frames} if site is not None else {}
        dims = [self._dim(name, kind, d, size, declared.get(d), annotation) for d, size in enumerate(shape)]
        self.pending.append((name, kind, dims, annotation))

    def _dim(self, name: str, kind: Kind, dim: int, size: int, declared: str | None, annotation: Mapping) -> str:
        declared = declared if declared is not None and self.plates[declared].size == size else None
        aligned = [k[1] for k, v in annotation.items() if isinstance(v, Aligned) and v.dim == dim and v.link is None]
        if kind is Kind.VALUE:
            if aligned or declared:
                return aligned[0] if aligned else declared  # type: ignore[return-value]
        elif declared is not None:
            for plate in aligned:
                self._unify(declared, plate)
            return declared
        elif size == 1:
            return ""
        elif aligned:
            for plate in aligned[1:]:
                self._unify(aligned[0], plate)
            return aligned[0]
        own = _implicit(name, dim, self.plates)
        self.plates.setdefault(own, Plate(own, size, size, implicit=True))
        return own

    def _unify(self, first: str, second: str) -> None:
        first, second = self.rename(first), self.rename(second)
        a, b = self.plates[first], self.plates[second]
        if first != second and a.size == b.size and (b.implicit or a.implicit):
            keep, drop = (first, second) if b.implicit else (second, first)
            self.same[drop] = keep

    def finish(self) -> list[Output]:
        return [
            Output(name, kind, tuple(self.rename(d) for d in dims), self._reads(dims, annotation))
            for name, kind, dims, annotation in self.pending
        ]

    def _reads(self, dims: Sequence[str], annotation: Mapping) -> tuple[Read, ...]:
        names = list(dict.fromkeys(latent for latent, _ in annotation))
        return tuple(
            Read(
                name,
                tuple(
                    (self.rename(plate), self._through(dims, plate, annotation.get((name, plate), MIXED)))
                    for plate, _ in self.latents[name].plates
                ),
            )
            for name in names
        )

    def _through(self, dims: Sequence[str], plate: str, value: Any) -> str | Link:
        if self.plates[plate].size == 1 and self.rename(plate) in map(self.rename, dims):
            return self.rename(plate)  # there is no other element to read
        if value is MIXED or not dims[value.dim]:
            return MIXED
        source, target = self.rename(dims[value.dim]), self.rename(plate)
        node = value.link
        if node is None:
            if source == target:
                return target
            node = self.nodes.constant(np.arange(self.plates[target].size, dtype=np.int32))
        elif source == target:
            index = self.nodes.concrete(node)
            identity = index is not None and np.array_equal(index, np.arange(self.plates[target].size))
            return target if identity else MIXED
        node = self.nodes.canonical(node)
        if node not in self.links:
            self.links.append(node)
        return Link(source, target, self.links.index(node))
