"""Draw particles from a guide and compute the density each particle is divided by.

The guide runs K times as a whole, so particle k of a site that depends on other guide sites is drawn given particle k
of these. Its density is by default the mixture over its guide parents' particles, with ONE index shared by all parents,
`log mean_j q(z^k | parents^j)`; averaging every parent separately would be biased. Drawing child k from parent k is a
stratified draw from that mixture, hence the evidence estimate is unbiased (Heap, Leech & Aitchison, UAI 2023, section 4;
the diagonal mixture for several parents is derived in the documentation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from numpyro import handlers
from numpyro.distributions import discrete
from numpyro.primitives import Messenger

from kayn.axes import Axis, Constraint, Layout
from kayn.errors import GuideError
from kayn.even import even_normal
from kayn.graph.aligned import Aligned
from kayn.graph.dependence import read_program
from kayn.graph.given import Given
from kayn.graph.nodes import Node
from kayn.graph.randomness import Keys
from kayn.graph.roles import Fixed
from kayn.graph.seeded import seeded
from kayn.graph.slices import slice_outputs
from kayn.graph.trace import SUPPORT, Program, Site, inspect_sites, refuse_point_estimates, share_fixed, trace_program
from kayn.graph.types import Graph, Latent
from kayn.keys import as_key
from kayn.minibatches import proposal_count
from kayn.points import refuse_split_points
from kayn.reach import refuse_points, refuse_smaller_supports

DENOMINATORS = ("mixture", "paired")


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
    sampler_consts: tuple[Any, ...]
    parents: Mapping[str, tuple[str, ...]]
    auxiliary: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    draw: Callable[[Any, int, Any], dict[str, Any]] | None = None
    """Draws all particles of a factorised guide at once, more evenly than independent runs would."""
    noise: tuple[Noise, ...] = ()
    """What the sampler takes as an input, to be drawn for all runs together."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.density.latents


def trace_guide(
    guide: Callable, args: tuple, kwargs: Mapping, params: Any, model_sites: Mapping[str, Site]
) -> GuideProgram:
    """Trace a guide and check it against the model.

    Raises:
        GuideError: it misses a latent, adds one, disagrees about a shape, cannot reach all values of one, or is a point estimate.
    """
    sites = share_fixed(inspect_sites(guide, args, kwargs, params, guide=True), model_sites)
    drawn = {n: s for n, s in sites.items() if s.kind == "sample" and not s.observed}
    refuse_point_estimates(sites)
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
    even = getattr(guide, "draw_particles", None) if not getattr(guide, "subsampled", True) else None
    return GuideProgram(density, sampler, consts, parents, auxiliary, constraints, even)


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
                    f"guide site {name!r} has shape {drawn[name].shape}, the model's has {site.shape}; give the guide the "
                    "model's plates and event shape"
                )
            if drawn[name].discrete != site.discrete:
                kinds = (
                    "discrete" if drawn[name].discrete else "continuous",
                    "discrete" if site.discrete else "continuous",
                )
                raise GuideError(
                    f"guide site {name!r} is {kinds[0]} but the model's is {kinds[1]}; draw it over the model's support"
                )
        elif not site.enumerate:
            remedy = "add a guide site"
            if site.discrete:
                remedy += ", or sum it out exactly with infer={'enumerate': 'parallel'} in the model"
            raise GuideError(f"latent {name!r} has no guide site; {remedy}")


def _guide_parents(density: Program, drawn: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    whole = [Latent(n, s.shape, s.dtype, len(s.batch_shape), (), s.discrete) for n, s in drawn.items()]
    whole += [Latent(n, s.shape, s.dtype, 0, (), True) for n, s in density.sites.items() if s.kind == "key"]
    whole += [Latent(a.name, (), "", 0, (), False) for a in density.aliases]
    unknown = [None] * (len(density.consts) + len(density.jaxpr.invars))
    found, _ = read_program(density, whole, unknown)
    out: dict[str, tuple[str, ...]] = {n: () for n, s in density.sites.items() if s.kind == "key"}
    for name, site in drawn.items():
        read = found[name]
        names = () if isinstance(read, Node) else tuple(dict.fromkeys(latent for latent, _ in read))
        others = tuple(n for n in names if n != name)
        # a point mass depends on its source through the guide's own equations, not through its density
        out[name] = others or (_delta_sources(drawn) if site.delta else ())
    return out


def parent_plates(guide: GuideProgram, graph: Graph) -> dict[str, dict[str, frozenset[str]]]:
    """The guide parents of every guide site, each with the plates over which element i of the site reads element i only."""
    program = guide.density
    latents = [graph.latent(n) for n in program.inputs if n in graph.latent_names]
    found, _ = read_program(program, latents, [None] * (len(program.consts) + len(program.jaxpr.invars)))
    plates = {z.name: dict(z.plates) for z in latents}
    out: dict[str, dict[str, frozenset[str]]] = {}
    bases = {a.name: a.base for a in program.aliases}
    for name, sources in guide.parents.items():
        # a latent may follow its own earlier steps; those of another count as that latent, whole
        parents = dict.fromkeys(bases.get(p, p) for p in sources if bases.get(p, p) != name)
        read, own = found.get(name), plates.get(name, {})
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
        rank = len(density.jaxpr.outvars[density.outputs.index(name)].aval.shape)
        batch_shape = model_sites[name].batch_shape
        lost = tuple((name, d) for d in range(rank, len(batch_shape)) if batch_shape[d] > 1)
        if lost:
            found.append(Constraint((name,), lost, "the guide draws its elements jointly"))
    return tuple(found)


def _trace_sampler(
    guide: Callable, args: tuple, kwargs: Mapping, params: Any, density: Program
) -> tuple[Jaxpr, tuple[Any, ...]]:
    indices = {n: jax.ShapeDtypeStruct(density.sites[n].shape, "int32") for n in density.subsamples}

    def run(key: Any, params: Any, indices: dict) -> list[Any]:
        return run_guide(guide, key, args, kwargs, params, indices, density.latents)

    closed = jax.make_jaxpr(run)(as_key(0), params, indices)
    return closed.jaxpr, tuple(closed.consts)


def run_guide(
    guide: Callable,
    key: Any,
    args: tuple,
    kwargs: Mapping,
    params: Mapping[str, Any] | None,
    subsample: Mapping[str, Any],
    names: Sequence[str],
) -> list[Any]:
    """One run of a guide with given parameters and indices of subsampled plates: what it draws for some sites."""
    program = Keys(seeded(InvertedDraws(Given(Fixed(guide), params=params, subsample=subsample)), key))
    trace = handlers.trace(program).get_trace(*args, **kwargs)
    return [program.found[n] if n in program.found else jnp.asarray(trace[n]["value"]) for n in names]


class InvertedDraws(Messenger):
    """A program that draws categorical sites by inverting their distribution function: one random number a draw instead of one a category."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not msg["is_observed"]:
            fn, shape = msg["fn"], msg["fn"].batch_shape
            if isinstance(fn, dist.ExpandedDistribution):
                fn = fn.base_dist
            if isinstance(fn, discrete.CategoricalLogits | discrete.CategoricalProbs):
                probs = jax.nn.softmax(fn.logits, -1) if isinstance(fn, discrete.CategoricalLogits) else fn.probs
                msg["fn"] = _InvertedCategorical(jnp.broadcast_to(probs, (*shape, probs.shape[-1])))


class _InvertedCategorical(discrete.CategoricalProbs):
    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        ends = jnp.cumsum(self.probs, -1)
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape), ends.dtype)
        # scaled by the last end, which rounding keeps from one; the last category takes what is left
        return jnp.sum(u[..., None] * ends[..., -1:] >= ends[..., :-1], -1)


def draw_runs(
    guide: GuideProgram, consts: Sequence[Any], key: Any, num: int, params: Any, subsample: Mapping[str, Any]
) -> dict[str, Any]:
    """`num` runs of the guide: [num, *shape] for every guide site."""
    if guide.draw is not None:
        return guide.draw(key, num, params)
    leaves = [*jax.tree.leaves(params), *(subsample[n] for n in guide.density.subsamples)]
    key, noise = (key, {}) if not guide.noise else _draw_noise(guide.noise, key, num)

    def one(key: Any, noise: Mapping[str, Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(guide.sampler, consts))(key, *jax.tree.leaves(noise), *leaves)

    return dict(zip(guide.names, jax.vmap(one)(jax.random.split(key, num), noise), strict=True))


def _draw_noise(noise: Sequence[Noise], key: Any, num: int) -> tuple[Any, dict[str, Any]]:
    """A key for the rest, and even noise of every site: [num, *shape]."""
    key, noise_key = jax.random.split(key)
    sizes = [math.prod(n.shape) for n in noise]
    flat = even_normal(
        noise_key,
        num,
        [(n.vectors, size // n.vectors) for n, size in zip(noise, sizes, strict=True)],
        jnp.result_type(float),
    )
    parts = jnp.split(flat, np.cumsum(sizes)[:-1], axis=1)
    return key, {n.site: part.reshape((num, *n.shape)) for n, part in zip(noise, parts, strict=True)}


def axis_particles(
    graph: Graph, layout: Layout, runs: Mapping[str, Any], supports: Mapping[str, Any]
) -> dict[str, Any]:
    """Particles of every latent, cut to the number of its axis, of the model's type; enumerated latents get their support."""
    return {
        n: supports[n] if axis.enumerated else runs[n][: axis.size].astype(graph.latent(n).dtype)
        for axis in layout.axes
        for n in axis.latents
    }


def log_density(
    guide: GuideProgram,
    graph: Graph,
    axis: Axis,
    runs: Mapping[str, Any],
    inputs: Sequence[Any],
    absent: Mapping[str, Any],
    denominator: str = "mixture",
    drawn: bool = False,
) -> Any:
    """Log density that the particles of one axis are divided by: [*scope plates, K].

    Args:
        runs: all guide values, [runs, *shape] with at least K runs.
        inputs: constants and inputs of the guide's density program.
        absent: elements of latents that are in no factor of the model; these have density one on both sides.
        denominator: "mixture" over the guide parents' particles, or "paired" with the k-th parent alone.
        drawn: the density of drawing these particles instead: rows of subsampled plates count once, see `kayn.minibatches`.
    """
    internal = (*axis.latents, *_joint_sources(guide, axis))
    path = own_path(guide, graph, axis)
    external = sorted({p for n in internal for p in guide.parents[n] if p not in (*internal, *path)})
    mine = {n: runs[n][: axis.size] for n in (*internal, *path)}
    theirs = {n: runs[n][: axis.size] for n in external}

    def single(own: Mapping[str, Any], outside: Mapping[str, Any]) -> Any:
        values = {**own, **outside}
        return sum(count(n) * _site_density(guide, graph, axis, n, values, inputs, absent) for n in internal)

    def count(name: str) -> float:
        return 1.0 if drawn else proposal_count(guide.density, graph, axis, name)

    if not external:
        return jax.vmap(lambda own: single(own, {}), out_axes=-1)(mine)
    if denominator == "paired":
        return jax.vmap(single, out_axes=-1)(mine, theirs)
    over_parents = jax.vmap(single, in_axes=(None, 0), out_axes=-1)
    both = jax.vmap(over_parents, in_axes=(0, None), out_axes=-2)(mine, theirs)
    return jax.nn.logsumexp(both, -1) - jnp.log(float(axis.size))


def own_path(guide: GuideProgram, graph: Graph, axis: Axis) -> tuple[str, ...]:
    """The axis's own latents at other steps, where its particles are whole paths."""

    def whole(base: str) -> bool:
        steps = {dim: name for name, dim in graph.latent(base).plates}.get(0)
        return base in axis.latents and steps not in axis.scope

    return tuple(a.name for a in guide.density.aliases if whole(a.base))


def _joint_sources(guide: GuideProgram, axis: Axis) -> tuple[str, ...]:
    """Auxiliary guide sites whose deterministic transforms are the latents of this axis."""
    sites = guide.density.sites
    return tuple({p: None for n in axis.latents if sites[n].delta for p in guide.parents[n] if p in guide.auxiliary})


def _site_density(
    guide: GuideProgram,
    graph: Graph,
    axis: Axis,
    name: str,
    values: Mapping[str, Any],
    inputs: Sequence[Any],
    absent: Mapping[str, Any],
) -> Any:
    """Log density of one guide site for one particle, summed to the axis's scope plates (in their order)."""
    program = guide.density
    run, used = slice_outputs(program.jaxpr, [program.outputs.index(name)])
    names = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}
    missing = {n: jnp.zeros(program.sites[n].shape, program.sites[n].dtype) for n in program.latents if n not in values}
    given = {**program.with_aliases(missing), **values}
    log_q = run(*(given[names[i]] if i in names else inputs[i] for i in used))[0]
    if name not in graph.latent_names:
        return log_q.sum()
    latent = graph.latent(name)
    if name in absent:
        if log_q.ndim < absent[name].ndim:
            raise GuideError(
                f"the guide draws {name!r} jointly, but the model masks some of its elements; use an elementwise guide"
            )
        log_q = jnp.where(jnp.broadcast_to(absent[name], log_q.shape), 0.0, log_q)
    position = dict(latent.plates)
    kept = [position[p] for p in axis.scope]
    summed = log_q.sum(tuple(d for d in range(log_q.ndim) if d not in kept))
    left = sorted(kept)
    return jnp.transpose(summed, [left.index(d) for d in kept])


def supports(model: Program, names: Sequence[str], inputs: Sequence[Any]) -> dict[str, Any]:
    """The support of enumerated latents: [V, *shape]."""
    if not names:
        return {}
    run, used = slice_outputs(model.jaxpr, [model.outputs.index(SUPPORT + n) for n in names])
    return dict(zip(names, run(*(inputs[i] for i in used)), strict=True))
