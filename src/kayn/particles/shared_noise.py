"""Even draws of any guide: Normal sites are placed from noise that all particles draw together.

kayn's own guides do so themselves; in any other the noise takes the place of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from kayn.particles.guide_program import GuideProgram, Noise, run_guide
from kayn.programs.given import repeat_in_batch
from kayn.support.arrays import Array, KeyArray
from kayn.support.keys import as_key

Placed = tuple[tuple[int, ...], Callable[[Any], Any]]
"""The event shape of standard normal noise, and what makes draws of it [*batch, *event]."""


def evenly(program: GuideProgram, guide: Callable, args: tuple, kwargs: Mapping, params: Mapping) -> GuideProgram:
    """The same guide with even draws of the sites that are Normal or made of Normals.

    Unchanged where it has none, or draws minibatches.

    Particle k of a site that depends on others is still drawn given particle k of these. Alone it has the law of an
    independent draw, and noise of different sites is independent, which is all that an unbiased evidence estimate
    needs. Sites inside of loops are drawn independently.
    """
    if program.density.subsamples:
        return program
    if getattr(guide, "draws_together", False):
        return replace(program, draw=guide.draw_particles)  # type: ignore[attr-defined]
    recorded = _FromNoise(guide, None)
    jax.eval_shape(lambda key: run_guide(recorded, key, args, kwargs, params, {}, ()), as_key(0))
    if not recorded.noise:
        return program
    noise = tuple(recorded.noise)

    def run(key: KeyArray, drawn: Mapping[str, Array], params: Mapping) -> list[Array]:
        return run_guide(_FromNoise(guide, drawn), key, args, kwargs, params, {}, program.names)

    shapes = {n.site: jax.ShapeDtypeStruct(n.shape, jnp.result_type(float)) for n in noise}
    closed = jax.make_jaxpr(run)(as_key(0), shapes, program.density.own(params))
    return replace(program, sampler=closed.jaxpr, sampler_consts=tuple(closed.consts), noise=noise)


class _FromNoise(Messenger):
    """A program whose Normal sites take their noise from elsewhere, or that tells which noise they take."""

    def __init__(self, fn: Callable, drawn: Mapping[str, Array] | None):
        super().__init__(fn)
        self.drawn = drawn
        self.noise: list[Noise] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        repeat_in_batch(msg)
        placed = _placed(msg["fn"])
        if placed is None:
            return
        (event, place), batch = placed, msg["fn"].batch_shape
        if self.drawn is None:
            self.noise.append(Noise(msg["name"], (*batch, *event), math.prod(batch)))
        elif msg["name"] in self.drawn:
            msg["value"] = place(self.drawn[msg["name"]])


def _placed(fn: dist.Distribution) -> Placed | None:
    """How draws of a distribution are made of standard normal noise; None where they are not,
    or not in a way known here."""
    if isinstance(fn, dist.Normal):
        return (), lambda noise: fn.loc + fn.scale * noise
    if isinstance(fn, dist.MultivariateNormal):
        return fn.event_shape, lambda noise: fn.loc + jnp.einsum("...ij,...j->...i", fn.scale_tril, noise)
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        return _placed(fn.base_dist)
    if isinstance(fn, dist.Independent):
        inner = _placed(fn.base_dist)
        return None if inner is None else ((*fn.base_dist.batch_shape[len(fn.batch_shape) :], *inner[0]), inner[1])
    if isinstance(fn, dist.TransformedDistribution):
        inner = _placed(fn.base_dist)
        return None if inner is None else (inner[0], lambda noise: _through(fn.transforms, inner[1](noise)))
    return None


def _through(transforms: Any, value: Array) -> Array:
    for transform in transforms:
        value = transform(value)
    return value
