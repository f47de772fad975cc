"""Run a guide and take the particles of every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from kayn.axes.types import Layout
from kayn.graph.types import Graph
from kayn.particles.guide_program import GuideProgram, Noise
from kayn.particles.lattice import counted, even_normal
from kayn.programs.outputs import Part
from kayn.programs.trace import Program
from kayn.support.arrays import Array, KeyArray, PyTree


def runs_read(guide: GuideProgram, layout: Layout) -> dict[str, int]:
    """How many runs of every guide site are looked at: the particles of its axis, or of the largest among those of the
    sites that it depends on or that depend on it. Points that are drawn evenly are even as many as these."""
    sizes = {n: a.size for a in layout.axes if not a.enumerated for n in a.latents}
    bases = {a.name: a.base for a in guide.density.aliases}
    out = {n: sizes.get(n, 0) for n in guide.names}
    families = [{n, *(bases.get(p, p) for p in guide.parents[n])} & out.keys() for n in out]
    for _ in families:
        for family in families:
            out |= dict.fromkeys(family, max(out[n] for n in family))
    return {n: size or max(sizes.values(), default=1) for n, size in out.items()}


def draw_runs(
    guide: GuideProgram,
    consts: Sequence[Array],
    key: KeyArray,
    num: int | Mapping[str, int],
    params: PyTree,
    subsample: Mapping[str, Array],
) -> dict[str, Array]:
    """Runs of the guide: [runs, *shape] for every guide site, at least `num`, or as many as of each are looked at
    (`runs_read`)."""
    counts = counted(num, guide.names)
    if guide.draw is not None:
        return guide.draw(key, counts, params)
    num = max(counts.values(), default=1)
    leaves = [*jax.tree.leaves(guide.density.own(params)), *(subsample[n] for n in guide.density.subsamples)]
    key, noise = (key, {}) if not guide.noise else _draw_noise(guide.noise, key, counts, num)

    def one(key: KeyArray, noise: Mapping[str, Array]) -> list[Array]:
        return jaxpr_as_fun(ClosedJaxpr(guide.sampler, consts))(key, *jax.tree.leaves(noise), *leaves)

    return dict(zip(guide.names, jax.vmap(one)(jax.random.split(key, num), noise), strict=True))


def _draw_noise(
    noise: Sequence[Noise], key: KeyArray, counts: Mapping[str, int], num: int
) -> tuple[KeyArray, dict[str, Array]]:
    """A key for the rest, and noise of every site, [num, *shape]: even in the first of which so many are looked at, and
    these again in the others."""
    key, noise_key = jax.random.split(key)
    out: dict[str, Array] = {}
    for place, count in enumerate(sorted({counts[n.site] for n in noise}, reverse=True)):
        own = [n for n in noise if counts[n.site] == count]
        sizes = [math.prod(n.shape) for n in own]
        shapes = [(n.vectors, size // n.vectors) for n, size in zip(own, sizes, strict=True)]
        own_key = jax.random.fold_in(noise_key, place) if place else noise_key
        flat = even_normal(own_key, count, shapes, jnp.result_type(float))
        flat = flat if count == num else flat[np.arange(num) % count]
        parts = jnp.split(flat, np.cumsum(sizes)[:-1], axis=1)
        out |= {n.site: part.reshape((num, *n.shape)) for n, part in zip(own, parts, strict=True)}
    return key, out


def axis_particles(
    graph: Graph, layout: Layout, runs: Mapping[str, Array], supports: Mapping[str, Array]
) -> dict[str, Array]:
    """Particles of every latent, cut to the number of its axis, of the model's type;
    enumerated latents get their support."""
    return {
        n: supports[n] if axis.enumerated else runs[n][: axis.size].astype(graph.latent(n).dtype)
        for axis in layout.axes
        for n in axis.latents
    }


def supports(model: Program, names: Sequence[str], inputs: Sequence[Array]) -> dict[str, Array]:
    """The support of enumerated latents: [V, *shape]."""
    if not names:
        return {}
    run, used = model.sliced([Part.SUPPORT.of(n) for n in names])
    return dict(zip(names, run(*(inputs[i] for i in used)), strict=True))
