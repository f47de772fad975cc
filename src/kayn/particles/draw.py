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
from kayn.particles.lattice import even_normal
from kayn.programs.outputs import Part
from kayn.programs.trace import Program
from kayn.support.arrays import Array, KeyArray, PyTree


def draw_runs(
    guide: GuideProgram,
    consts: Sequence[Array],
    key: KeyArray,
    num: int,
    params: PyTree,
    subsample: Mapping[str, Array],
) -> dict[str, Array]:
    """`num` runs of the guide: [num, *shape] for every guide site."""
    if guide.draw is not None:
        return guide.draw(key, num, params)
    leaves = [*jax.tree.leaves(guide.density.own(params)), *(subsample[n] for n in guide.density.subsamples)]
    key, noise = (key, {}) if not guide.noise else _draw_noise(guide.noise, key, num)

    def one(key: KeyArray, noise: Mapping[str, Array]) -> list[Array]:
        return jaxpr_as_fun(ClosedJaxpr(guide.sampler, consts))(key, *jax.tree.leaves(noise), *leaves)

    return dict(zip(guide.names, jax.vmap(one)(jax.random.split(key, num), noise), strict=True))


def _draw_noise(noise: Sequence[Noise], key: KeyArray, num: int) -> tuple[KeyArray, dict[str, Array]]:
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
