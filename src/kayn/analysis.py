"""What kayn understood of a model, before anything runs: latents, factors, links, particle axes, couplings and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kayn.axes.memory import step_bytes
from kayn.axes.request import TARGET_ELEMENTS, make_request
from kayn.axes.types import Axis, Coupling, Layout
from kayn.contraction.plan import Plan
from kayn.contraction.steps.sliced import sums_in_parts
from kayn.evidence.free_events import kept_whole
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.unguided import inspected_for
from kayn.factors import by_terms
from kayn.factors.choose_form import choose
from kayn.factors.task import reduction
from kayn.graph.lost import Lost
from kayn.graph.types import MIXED, Graph, Latent, Link, Output
from kayn.guides.factorised import FactorisedGuide, Unstarted
from kayn.programs.tables import as_arguments
from kayn.support.memory import format_bytes
from kayn.support.names import in_model, shown, whole
from kayn.support.options import Couple, Elements, Groups, Guide, Memory, Model, Params, Particles, PathOption, Strategy
from kayn.support.prints import Printed
from kayn.support.table import format_table
from kayn.support.validate import checked


@dataclass(frozen=True, repr=False)
class Analysis(Printed):
    """The structure of a model and the contraction planned for it; `print` it, or `render` it as a graph.

    Attributes:
        graph: plates, latents and factors.
        layout: particle axes, couplings and the contraction plan.
        sums: factors that are terms of a sum: a log density that adds up rows is read row by row.
        advice: how to write what made latents give up an index, a line each.
        discrete: what is done about discrete latents that the model does not ask to enumerate, a line each.
        vectors: what makes the many elements of vectors share a particle, a line each.
    """

    graph: Graph
    layout: Layout
    guide_parents: tuple[tuple[str, tuple[str, ...]], ...]
    sums: tuple[str, ...] = ()
    discrete: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The particle axes, those of enumerated latents included."""
        return self.layout.axes

    @property
    def unbounded(self) -> tuple[str, ...]:
        """Latents that are read in unconstrained space given others, on which their support depends."""
        return tuple(in_model(n) for n in self.graph.latent_names if in_model(n) != n)

    @property
    def plan(self) -> Plan:
        """The contraction over these axes, step by step; `print` it for shapes and operations."""
        return self.layout.plan

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """What latents had to give up, and why; empty where every combination is weighed."""
        return self.layout.couplings

    @property
    def links(self) -> tuple[Link, ...]:
        """Distinct links from row plates to group plates."""
        found = [h for o in self.graph.factors for r in o.reads for _, h in r.through if isinstance(h, Link)]
        return tuple(dict.fromkeys(found))

    @property
    def log10_combinations(self) -> float:
        """log10 of the number of particle combinations that are weighed."""
        return self.plan.log10_combinations

    @property
    def flops(self) -> int:
        """Multiply-adds of one contraction."""
        return self.plan.flops

    @property
    def peak_bytes(self) -> int:
        """An upper estimate of the temporary memory of one step, its gradient included."""
        return step_bytes(self.plan) + self.layout.beside

    def __str__(self) -> str:
        """Tables of latents, factors, links and couplings, then the contraction and what a step costs."""
        sections = [
            "Latents",
            format_table(
                ("latent", "shape", "plates", "particle axis", "K", "scope", "parents", "guide parents"),
                [self._latent_row(z.name) for z in self.graph.latents],
            ),
            "Factors",
            format_table(
                ("factor", "kind", "plates", "particle axes", "evaluated"),
                [self._factor_row(o) for o in self.graph.factors],
            ),
        ]
        if reads := [tuple(map(shown, row)) for z in self.graph.latents for row in self._read_rows(z)]:
            sections += [
                "Reads (which elements of a latent an entry of a factor reads)",
                format_table(("latent", "plate", "its own", "one, by an index", "several at once"), reads),
            ]
        if self.links:
            rows = [(shown(k.source), k.target, shown(", ".join(self._linked(k)))) for k in self.links]
            sections += [
                "Links (rows -> groups, found in the model's indexing)",
                format_table(("rows", "groups", "latents read"), rows),
            ]
        if self.sums:
            sections += ["Sums (log densities that add up their terms, each term a factor)", *self._sum_lines()]
        if self.unbounded:
            sections += [
                "Latents whose support depends on others, read in unconstrained space given these: "
                + ", ".join(self.unbounded)
            ]
        if self.discrete:
            sections += [
                "Discrete latents that the model does not ask to enumerate",
                *(f"  {d}" for d in self.discrete),
            ]
        if self.couplings:
            sections += ["Couplings (fewer combinations, still unbiased)", *(f"  {c}" for c in self.couplings)]
            sections += [f"  to keep it: {line}" for line in self.advice]
        else:
            sections += ["Couplings: none"]
        if self.vectors:
            sections += ["Vectors whose elements share a particle, as several are read at once"]
            sections += [f"  {line}" for line in self.vectors]
        sections.append(
            f"10^{self.log10_combinations:.1f} combinations of particles; contraction: {self.flops:.3g} multiply-adds, "
            f"at most {format_bytes(self.peak_bytes)} of temporary memory"
        )
        for step in sums_in_parts(self.plan):
            names = shown("+".join(next(a for a in self.axes if a.name == step.axis).latents))
            sections.append(f"To fit, the particles of {names} are summed in {step.parts} parts, one after the other")
        return "\n".join(sections)

    @checked()
    def render(self, filename: PathOption = None) -> Any:
        """A `graphviz.Digraph` of latents, factors and plates; written to `filename`
        (its suffix gives the format) if given.

        Needs the extra `kayn[graph]`.
        """
        from kayn.render import render

        return render(self.graph, self.layout, filename)

    def plot(self) -> Any:
        """A `matplotlib.figure.Figure` of latents, data and plates, one colour for each particle axis.

        Needs the extra `kayn[plots]`; `render` is the same by graphviz.
        """
        from kayn.render import picture

        return picture(self.graph, self.layout)

    def _sum_lines(self) -> list[str]:
        terms = [(whole(n), self.graph.output(n).dims) for n in self.sums]
        words = [(site, " x ".join(str(self.graph.plate(d).size) for d in dims if d) or "1") for site, dims in terms]
        sites = dict.fromkeys(site for site, _ in words)
        return [f"  {s}: {' + '.join(size for site, size in words if site == s)} terms" for s in sites]

    def _latent_row(self, name: str) -> tuple[str, ...]:
        latent, axis = self.graph.latent(name), self.layout.axis_of(name)
        kind = "enumerated" if axis.enumerated else ""
        parents = dict(self.guide_parents).get(name, ())
        row = (
            name,
            str(tuple(latent.shape)),
            ", ".join(latent.plate_names) or "-",
            "+".join(axis.latents) if len(axis.latents) > 1 else kind or "own",
            str(axis.size),
            ", ".join(axis.scope) or "-",
            ", ".join(latent.parents) or "-",
            ", ".join(parents) or "-",
        )
        return tuple(map(shown, row))

    def _read_rows(self, latent: Latent) -> list[tuple[str, ...]]:
        """For every plate of a latent, the factors that read its elements in each way."""
        reads = [(whole(o.name), r) for o in self.graph.factors for r in o.reads if r.latent == latent.name]
        rows = []
        for plate in (p for p in latent.plate_names if self.graph.plate(p).size > 1):
            by_way: dict[Any, list[str]] = {plate: [], Link: [], MIXED: []}
            for factor, read in reads:
                how = read.of(plate)
                by_way[Link if isinstance(how, Link) else MIXED if how == MIXED else plate].append(factor)
            named = (shown(", ".join(dict.fromkeys(names))) or "-" for names in by_way.values())
            rows.append((latent.name, shown(plate), *named))
        return rows

    def _factor_row(self, output: Output) -> tuple[str, ...]:
        axes = dict.fromkeys("+".join(self.layout.axis_of(n).latents) for n in output.latents)
        row = (
            output.name,
            output.kind.value,
            ", ".join(d for d in output.dims if d) or "-",
            ", ".join(axes) or "-",
            self._way(output),
        )
        return tuple(map(shown, row))

    def _way(self, output: Output) -> str:
        """Term by term, by the terms of a predictor, or as a matrix product of statistics and naturals,
        each with its particle axes."""
        slot = next(i for i, term in enumerate(self.plan.terms) if term.name == output.name)
        way = reduction(self.graph, self.layout, slot)
        if (groups := by_terms.choose(way)) is not None:
            return "predictor, " + " + ".join(f"[{', '.join('+'.join(a.latents) for a in g)}]" for g in groups)
        split = choose(way)
        return "term by term" if split is None else f"product, {split}"

    def _linked(self, link: Link) -> list[str]:
        return list(
            dict.fromkeys(r.latent for o in self.graph.factors for r in o.reads if any(h == link for _, h in r.through))
        )


@checked()
def analyze(
    model: Model,
    *args: Any,
    guide: Guide | None = None,
    num_particles: Particles | None = None,
    strategy: Strategy = "parallel",
    groups: Groups = (),
    couple: Couple = None,
    target_elements: Elements = TARGET_ELEMENTS,
    memory: Memory = None,
    params: Params = None,
    **kwargs: Any,
) -> Analysis:
    """Read the structure of a model with its arguments, choose particle axes and plan the contraction.
    Nothing is sampled.

    Args:
        model: an ordinary NumPyro model; `args` and `kwargs` are its arguments.
        guide: its guide; None means a factorised one.
        num_particles, strategy, groups, couple, target_elements, memory: as in `kayn.Importance`.
        params: values of `numpyro.param` sites.
    """
    args, kwargs, _ = as_arguments(model, args, kwargs)
    request = make_request(num_particles, strategy, groups, couple, target_elements, memory)
    inspected = inspected_for(guide, model, args, kwargs, dict(params or {}), request)
    guide = Unstarted.of(inspected).started() if guide is None else guide
    if isinstance(guide, FactorisedGuide):
        params = {**guide.start, **(params or {})}
    found = analysis_of(build_problem(model, guide, args, kwargs, params, request, inspected=inspected))
    vectors = kept_whole(inspected) if isinstance(guide, FactorisedGuide) else {}
    return replace(found, vectors=tuple(line for n, lost in vectors.items() for line in _of_vector(n, lost)))


def _of_vector(name: str, lost: Lost) -> Iterator[str]:
    yield f"{in_model(name)}: by {lost.line or lost.primitive}"
    if lost.advice:
        yield f"to keep its elements apart: {in_model(name)}: {lost.advice}"


def analysis_of(problem: Problem) -> Analysis:
    """The analysis of a model and a guide that have been read already."""
    return Analysis(
        problem.graph,
        problem.layout,
        tuple((n, p) for n, p in problem.guide.parents.items() if n in problem.graph.latent_names),
        tuple(problem.model.rows),
        tuple(_treated(problem, z) for z in problem.graph.latents if z.discrete and _of_its_own_accord(problem, z)),
        tuple(dict.fromkeys(_advice(problem))),
    )


def _advice(problem: Problem) -> Iterator[str]:
    lost = problem.structure.nodes.lost
    given_up = {(name, plate) for c in problem.layout.couplings for name in c.latents for plate in c.plates}
    for latent, plate in sorted(given_up & lost.keys()):
        mixed = any(r.latent == latent and r.of(plate) == MIXED for o in problem.graph.factors for r in o.reads)
        if mixed and lost[latent, plate].advice:
            yield f"{in_model(latent)}: {lost[latent, plate].advice}"


def _of_its_own_accord(problem: Problem, latent: Latent) -> bool:
    """Whether neither the model nor a user's guide says what is to be done about a discrete latent."""
    site = problem.model.sites[latent.name]
    return bool(site.why_drawn) or (latent.enumerated and not site.enumerate)


def _treated(problem: Problem, latent: Latent) -> str:
    if latent.enumerated:
        return f"{latent.name}: summed out, over {latent.support_size} values"
    law = problem.guide.density.sites[latent.name].family
    return f"{latent.name}: drawn from {law}, since {problem.model.sites[latent.name].why_drawn}"
