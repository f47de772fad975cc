"""Arrays of indices, steps and densities in the dimensions of a latent, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def local_terms(
    problem: Problem, coordinates: Mapping[str, Coordinates], places: Mapping[str, Array], axes: Sequence[Axis]
) -> dict[str, Array]:
    """Log volumes of particles that some axes move locally, zero for others: [*scope, K] by the axis's term."""
    layout, terms = problem.layout, {}
    for axis in layout.axes:
        terms[proposal_name(axis)] = jnp.zeros([*(layout.plan.size[p] for p in axis.scope), axis.size])
        for latent in axis.latents if axis in axes else ():
            volume = coordinates[latent].log_volume(places[latent], problem.graph.latent(latent).batch_ndim)
            terms[proposal_name(axis)] += to_scope(problem, axis, latent, volume)
    return terms
