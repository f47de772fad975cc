"""A traced guide: its densities, its sampler, and which of its sites depend on which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from numpyro import handlers

from kayn.axes.types import Constraint
from kayn.errors import GuideError
from kayn.graph.aligned import Aligned
from kayn.graph.dependence import read_program
from kayn.graph.expressions import Node
from kayn.graph.types import Graph, Latent
from kayn.particles.points import refuse_split_points
from kayn.particles.reach import refuse_points, refuse_smaller_supports
from kayn.programs.given import Given
from kayn.programs.outputs import Part
from kayn.programs.randomness import Keys
from kayn.programs.roles import Fixed
from kayn.programs.seeding import InvertedDraws, seeded
from kayn.programs.sites import Site, inspect_sites, share_fixed
from kayn.programs.trace import Program, trace_program
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key


@dataclass(frozen=True)
class Noise:
    """Standard normal noise that a guide's site is placed from: `vectors` of equal length in `shape`."""

    site: str
    shape: tuple[int, ...]
    vectors: int


@dataclass(frozen=True, eq=False)
class GuideProgram:
    """A traced guide: its log densities, its sampler, and which of its sites depend on which."""

    density: Program
    sampler: Jaxpr
    sampler_consts: tuple[Array, ...]
    parents: Mapping[str, tuple[str, ...]]
    auxiliary: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    draw: Callable[[KeyArray, Mapping[str, int], Mapping[str, PyTree]], dict[str, Array]] | None = None
    """Draws all particles at once in the place of independent runs; None unless `evenly` has put it there."""
    noise: tuple[Noise, ...] = ()
    """What the sampler takes as an input, to be drawn for all runs together; empty unless `evenly` has put it there."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guide's sites."""
        return self.density.latents


def trace_guide(
    guide: Callable, args: tuple, kwargs: Mapping, params: PyTree, model_sites: Mapping[str, Site]
) -> GuideProgram:
    """Trace a guide and check it against the model.

    Raises:
        GuideError: it misses a latent, adds one, disagrees about a shape, cannot reach all values of one,
            or is a point estimate.
    """
    sites = share_fixed(inspect_sites(guide, args, kwargs, params, guide=True), model_sites)
    drawn = {n: s for n, s in sites.items() if s.kind == "sample" and not s.observed}
    _refuse_point_estimates(sites)
    _check_match(drawn, model_sites)
    refuse_smaller_supports(drawn, model_sites)
    refuse_points(guide, args, kwargs, params, sites, model_sites)
    keep = {n: max(len(s.batch_shape), s.mask_ndim) for n, s in model_sites.items() if n in drawn}
    density = trace_program(guide, args, kwargs, params, sites, keep)
    refuse_split_points(density, model_sites)
    parents = _guide_parents(density, drawn)
    sampler, consts = _trace_sampler(guide, args, kwargs, params, density)
    auxiliary = tuple(n for n in density.latents if n not in model_sites or sites[n].kind == "key")
    constraints = _constraints(density, drawn, model_sites, parents, auxiliary)
    return GuideProgram(density, sampler, consts, parents, auxiliary, constraints)


def _check_match(drawn: Mapping[str, Site], model_sites: Mapping[str, Site]) -> None:
    latents = {n: s for n, s in model_sites.items() if s.kind == "sample" and not s.observed}
    extra = [n for n, s in drawn.items() if n not in latents and (n in model_sites or not s.auxiliary)]
    if extra:
        other = model_sites.get(extra[0])
        hint = "no such latent"
        if other is not None:
            hint = "it is observed there" if other.observed else f"it is a {other.kind} site there"
        raise GuideError(
            f"guide site {extra[0]!r} is not a latent of the model ({hint}); remove it, rename it to one of "
            f"{sorted(latents)}, or (if the model has no site of its name) mark it infer={{'is_auxiliary': True}}"
        )
    for name, site in latents.items():
        if name in drawn:
            if drawn[name].shape != site.shape:
                raise GuideError(
                    f"guide site {name!r} has shape {drawn[name].shape}, the model's has {site.shape}; give the "
                    "guide the model's plates and event shape"
                )
            if drawn[name].discrete != site.discrete:
                kinds = (
                    "discrete" if drawn[name].discrete else "continuous",
                    "discrete" if site.discrete else "continuous",
                )
                raise GuideError(
                    f"guide site {name!r} is {kinds[0]} but the model's is {kinds[1]}; draw it over the model's support"
                )
        elif site.num_values is None:
            why = ", and its values cannot be summed out element by element" if site.discrete else ""
            raise GuideError(f"latent {name!r} has no guide site{why}; add a guide site")


def _guide_parents(density: Program, drawn: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    whole = [Latent(n, s.shape, s.dtype, len(s.batch_shape), (), s.discrete) for n, s in drawn.items()]
    whole += [Latent(n, s.shape, s.dtype, 0, (), True) for n, s in density.sites.items() if s.kind == "key"]
    whole += [Latent(a.name, (), "", 0, (), False) for a in density.aliases]
    unknown = [None] * (len(density.consts) + len(density.jaxpr.invars))
    found, _ = read_program(density, whole, unknown)
    out: dict[str, tuple[str, ...]] = {n: () for n, s in density.sites.items() if s.kind == "key"}
    for name, site in drawn.items():
        read = found[Part.DENSITY.of(name)]
        names = () if isinstance(read, Node) else tuple(dict.fromkeys(latent for latent, _ in read))
        others = tuple(n for n in names if n != name)
        # a point mass depends on its sources through the guide's own equations, which its density need not read
        sources = _delta_sources(drawn) if site.delta else ()
        out[name] = tuple(dict.fromkeys((*others, *(n for n in sources if n != name))))
    return out


def parent_plates(guide: GuideProgram, graph: Graph) -> dict[str, dict[str, frozenset[str]]]:
    """The guide parents of every guide site, each with the plates over which element i of the site reads element i
    only."""
    program = guide.density
    latents = [graph.latent(n) for n in program.inputs if n in graph.latent_names]
    found, _ = read_program(program, latents, [None] * (len(program.consts) + len(program.jaxpr.invars)))
    plates = {z.name: dict(z.plates) for z in latents}
    out: dict[str, dict[str, frozenset[str]]] = {}
    bases = {a.name: a.base for a in program.aliases}
    for name, sources in guide.parents.items():
        # a latent may follow its own earlier steps; those of another count as that latent, whole
        parents = dict.fromkeys(bases.get(p, p) for p in sources if bases.get(p, p) != name)
        read, own = found.get(Part.DENSITY.of(name)), plates.get(name, {})
        out[name] = {
            p: frozenset(
                q
                for q in plates.get(p, ())
                if q in own and isinstance(read, Mapping) and _runs_along(read.get((p, q)), own[q])
            )
            for p in parents
        }
    return out


def _runs_along(value: Any, dim: int) -> bool:
    return isinstance(value, Aligned) and value.dim == dim and value.link is None


def _delta_sources(drawn: Mapping[str, Site]) -> tuple[str, ...]:
    return tuple(n for n, s in drawn.items() if s.auxiliary)


def _constraints(
    density: Program,
    drawn: Mapping[str, Site],
    model_sites: Mapping[str, Site],
    parents: Mapping[str, tuple[str, ...]],
    auxiliary: Sequence[str],
) -> tuple[Constraint, ...]:
    found = []
    points = tuple(n for n, s in drawn.items() if s.delta and n in model_sites)
    if points:
        dims = tuple((n, d) for n in points for d in range(len(model_sites[n].batch_shape)))
        found.append(Constraint(points, dims, "drawn jointly by the guide"))
    for name in drawn:
        if name in auxiliary or name in points:
            continue
        own = density.aval(Part.DENSITY.of(name)).shape
        batch_shape = model_sites[name].batch_shape
        lost = tuple((name, d) for d, n in enumerate(batch_shape) if n > 1 and (d >= len(own) or own[d] == 1))
        if lost:
            found.append(Constraint((name,), lost, "the guide draws its elements jointly"))
    return tuple(found)


def _trace_sampler(
    guide: Callable, args: tuple, kwargs: Mapping, params: PyTree, density: Program
) -> tuple[Jaxpr, tuple[Array, ...]]:
    indices = {n: jax.ShapeDtypeStruct(density.sites[n].shape, "int32") for n in density.subsamples}

    def run(key: KeyArray, params: PyTree, indices: dict) -> list[Array]:
        return run_guide(guide, key, args, kwargs, params, indices, density.latents)

    closed = jax.make_jaxpr(run)(as_key(0), density.own(params), indices)
    return closed.jaxpr, tuple(closed.consts)


def run_guide(
    guide: Callable,
    key: KeyArray,
    args: tuple,
    kwargs: Mapping,
    params: Mapping[str, PyTree] | None,
    subsample: Mapping[str, Array],
    names: Sequence[str],
) -> list[Array]:
    """One run of a guide with given parameters and indices of subsampled plates: what it draws for some sites."""
    program = Keys(seeded(InvertedDraws(Given(Fixed(guide), params=params, subsample=subsample)), key))
    trace = handlers.trace(program).get_trace(*args, **kwargs)
    return [program.found[n] if n in program.found else jnp.asarray(trace[n]["value"]) for n in names]


def _refuse_point_estimates(sites: Mapping[str, Site]) -> None:
    """Raise for guides such as AutoDelta, whose draws have no density."""
    random = [s for s in sites.values() if s.kind == "sample" and not s.delta and not s.observed]
    points = [s.name for s in sites.values() if s.kind == "sample" and s.delta and not s.observed]
    if points and not random:
        raise GuideError(
            f"the guide puts a point mass on {', '.join(map(repr, points))} (as AutoDelta does); a point has no "
            "density to weight particles with. Use a guide with spread, such as AutoNormal, or guide=None"
        )
