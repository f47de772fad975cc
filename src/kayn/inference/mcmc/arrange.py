"""Arrays of indices, steps and densities in the dimensions of a latent, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax.numpy as jnp

from kayn.axes.types import Axis, proposal_name
from kayn.evidence.problem import Problem
from kayn.evidence.queries import aligned
from kayn.inference.mcmc.coordinates import Coordinates
from kayn.inference.mcmc.passes import Pass
from kayn.support.arrays import Array


def step_name(one: Pass, axis: Axis) -> str:
    """The same in every pass in which the latents of an axis move on the same indices."""
    return f"{axis.name}{list(axis.scope)}"


def for_all_runs(values: Mapping[str, Array], count: int) -> dict[str, Array]:
    """Values for every run of the guide: those of latents with one particle as often as there are others."""
    return {n: v if v.shape[0] == count else jnp.broadcast_to(v[:1], (count, *v.shape[1:])) for n, v in values.items()}


def placed(problem: Problem, axis: Axis, name: str, drawn: Array, current: Array, slot: Array) -> Array:
    """Particles with the current value in its place: [K, *shape]."""
    place = aligned(problem, axis, name, slot, current.ndim)
    numbers = jnp.arange(drawn.shape[0]).reshape((-1, *(1,) * current.ndim))
    return jnp.where(numbers == place, current, drawn)


def to_scope(problem: Problem, axis: Axis, name: str, array: Array) -> Array:
    """[K, *batch] summed to [*scope, K]."""
    dims = dict(problem.graph.latent(name).plates)
    kept = [dims[p] + 1 for p in axis.scope]
    summed = array.sum(tuple(d for d in range(1, array.ndim) if d not in kept))
    left = sorted(kept)
    return jnp.transpose(summed, [*(1 + left.index(d) for d in kept), 0])


def if_present(absent: Mapping[str, Array], name: str, array: Array, ndim: int) -> Array:
    """An array in the dimensions of a latent, zero for elements that are in no factor."""
    if name not in absent:
        return array
    gone = absent[name]
    return jnp.where(gone.reshape((*gone.shape, *(1,) * (ndim - gone.ndim))), 0.0, array)


def with_volumes(
    problem: Problem,
    coordinates: Mapping[str, Coordinates],
    places: Mapping[str, Array],
    moving: Collection[str],
    terms: Mapping[str, Array],
) -> dict[str, Array]:
    """What particles of every axis are weighed by besides the model: what there is, zero where there is nothing, and
    the log volumes of latents that move locally: [*scope, K] by the axis's term."""
    layout, found = problem.layout, dict(terms)
    for axis in layout.axes:
        name = proposal_name(axis)
        if name not in found:
            found[name] = jnp.zeros([*(layout.plan.size[p] for p in axis.scope), axis.size])
        for latent in (n for n in axis.latents if n in moving):
            volume = coordinates[latent].log_volume(places[latent], problem.graph.latent(latent).batch_ndim)
            found[name] = found[name] + to_scope(problem, axis, latent, volume)
    return found
