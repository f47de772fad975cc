"""Draw particles from a guide and compute the density each particle is divided by.

The guide runs K times as a whole, so particle k of a site that depends on other guide sites is drawn given particle k
of these. Its density is by default the mixture over its guide parents' particles, with ONE index shared by all parents,
`log mean_j q(z^k | parents^j)`; averaging every parent separately would be biased. Drawing child k from parent k is a
stratified draw from that mixture, hence the evidence estimate is unbiased (Heap, Leech & Aitchison, UAI 2023, section
4; the diagonal mixture for several parents is derived in the documentation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kayn.axes.minibatches import proposal_count
from kayn.axes.types import Axis
from kayn.errors import GuideError
from kayn.graph.types import Graph
from kayn.particles.guide_program import GuideProgram
from kayn.programs.outputs import Part
from kayn.support.arrays import Array

DENOMINATORS = ("mixture", "paired")


def log_density(
    guide: GuideProgram,
    graph: Graph,
    axis: Axis,
    runs: Mapping[str, Array],
    inputs: Sequence[Array],
    absent: Mapping[str, Array],
    denominator: str = "mixture",
    drawn: bool = False,
) -> Array:
    """Log density that the particles of one axis are divided by: [*scope plates, K].

    Args:
        runs: all guide values, [runs, *shape] with at least K runs.
        inputs: constants and inputs of the guide's density program.
        absent: elements of latents that are in no factor of the model; these have density one on both sides.
        denominator: "mixture" over the guide parents' particles, or "paired" with the k-th parent alone.
        drawn: the density of drawing these particles instead: rows of subsampled plates count once,
            see `kayn.axes.minibatches`.
    """
    internal = (*axis.latents, *_joint_sources(guide, axis))
    path = own_path(guide, graph, axis)
    external = sorted({p for n in internal for p in guide.parents[n] if p not in (*internal, *path)})
    mine = {n: runs[n][: axis.size] for n in (*internal, *path)}
    theirs = {n: runs[n][: axis.size] for n in external}

    def single(own: Mapping[str, Array], outside: Mapping[str, Array]) -> Array:
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
    values: Mapping[str, Array],
    inputs: Sequence[Array],
    absent: Mapping[str, Array],
) -> Array:
    """Log density of one guide site for one particle, summed to the axis's scope plates (in their order)."""
    program = guide.density
    run, used = program.sliced([Part.DENSITY.of(name)])
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
