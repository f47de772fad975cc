"""Joint draws of all latents, and the combination of particles with the largest weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.evidence.draws import Draws, deterministic_values
from kayn.evidence.problem import Problem, model_inputs
from kayn.evidence.queries import best_indices, draw_evenly, take_latent
from kayn.evidence.weights import weigh
from kayn.posterior.alike import alike
from kayn.posterior.blocks import block_size, joined, on_device, shuffled, starts
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, KeyArray
from kayn.support.names import in_model
from kayn.support.prints import Outlined
from kayn.xla.compilation import is_traced

BLOCK = 1000
"""Draws that are taken at a time."""
KEPT = 2**26
"""Numbers that draws which are kept may be."""


@dataclass(frozen=True, repr=False)
class JointDraws(Outlined):
    """S draws of all latents.

    Attributes:
        values: [S, *shape] for every latent and deterministic site.
        subsample: [S, M], the elements of every subsampled plate that each draw is of.
    """

    values: dict[str, Array]
    subsample: dict[str, Array]


jax.tree_util.register_dataclass(JointDraws, ["values", "subsample"], [])


def mixed_plate(problem: Problem, draws: Draws, name: str) -> str | None:
    """A plate of which the replicates hold different elements, and that a latent runs over or a deterministic site
    depends on; None if there is none."""
    subsample = draws.subsample
    if not subsample or is_traced(subsample):
        return None
    plates = _plates_behind(problem, name)
    rows = {p: np.asarray(subsample[p]) for p in plates if p in subsample}
    return next((p for p, held in rows.items() if (held != held[0]).any()), None)


def _plates_behind(problem: Problem, name: str) -> set[str]:
    graph, program = problem.graph, problem.model
    if name in graph.latent_names:
        return set(graph.latent(name).plate_names)
    # wherever it stands: rows may be read outside of their plate
    used = program.sliced([Part.VALUE.of(name)])[1]
    output = graph.output(name)
    over = {p for latent in output.latents for p in graph.latent(latent).plate_names}
    return over | {*output.dims} | {p for i, p in enumerate(program.subsamples) if program.first_subsample + i in used}


def sample(
    problem: Problem,
    num_samples: int,
    numbers: Mapping,
    params: Mapping,
    draws: Draws,
    shares: Array,
    key: KeyArray,
    compiled: Callable[[int], Callable] | None = None,
    chains: int = 0,
    together: tuple[str, int] | None = None,
) -> JointDraws:
    """Exact joint draws, as many from every replicate as its share says, which are spread evenly over its particles.

    Args:
        shares: [R], how much every replicate counts.
        compiled: gives `sample_block` of a problem, by the number of draws of every replicate.
        chains: in so many parts of equal length the draws are ordered by replicate, and only neighbours may share one;
            0 for no order.
        together: a latent and the number of one of its elements: in chains, equal values of it within a replicate stand
            together.
    """
    replicates = shares.shape[0]
    per = -(-num_samples // replicates)
    size = -(-block_size(num_samples, BLOCK, entries(problem)) // replicates)
    run = partial(sample_block, problem, size) if compiled is None else compiled(size)
    pick, split = jax.random.split(key)
    orders, places = alike(problem, draws.values), _replicates(shares, split)
    blocks = ((start, np.int32(min(size, per - start))) for start in starts(per, size))
    found = joined([run(numbers, params, draws, places, orders, split, *b) for b in blocks], per, 1)
    # all parts are of the same number of draws; which ones are left over is random
    order = shuffled(pick, per * replicates)
    order = _by_replicate(np.asarray(order), chains, num_samples) if chains else order[:num_samples]
    if chains and together:
        values = np.asarray(found.values[together[0]]).reshape((per * replicates, -1))[order, together[1]]
        first, places = np.unique(values, return_index=True, return_inverse=True)[1:]
        order = order[np.lexsort((first[places], order // per))]
    return on_device(jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[order], found))


def _replicates(shares: Array, key: KeyArray) -> Array:
    """Those that R parts of draws are of, int [R]: each has as many as its share says, rounded up or down by chance."""
    xp: Any = jnp if is_traced((shares, key)) else np
    count, word = shares.shape[0], xp.asarray(jax.random.key_data(key)).ravel()[-1]
    within = 0.01 + 0.98 * word.astype(shares.dtype) * 2.0**-32
    ends = xp.cumsum(xp.asarray(shares))
    return ((xp.arange(count)[:, None] + within) / count > ends / ends[-1]).sum(1).astype("int32")


def _by_replicate(order: np.ndarray, chains: int, count: int) -> np.ndarray:
    """So many numbers of draws, the same number of each part of the replicates, in the order of these: [count]."""
    length = len(order) // chains
    parts = (order[order // length == i][: count // chains] for i in range(chains))
    return np.concatenate([np.sort(part) for part in parts])


def sample_block(
    problem: Problem,
    size: int,
    numbers: Mapping,
    params: Mapping,
    draws: Draws,
    places: Array,
    orders: dict[str, Array],
    key: KeyArray,
    start: Array,
    count: Array,
) -> JointDraws:
    """As `sample`, in R parts of one replicate each, draws `start` to `start + count` of each part, spread evenly:
    [R, size, *shape].

    Args:
        places: the replicate that each part is of, int [R].
        orders: of all axes' particles in every replicate, see `alike`.
    """

    def one(item: tuple[Array, KeyArray]) -> JointDraws:
        place, key = item
        # one by one: compilers take longer over a gather of each array
        mine, order = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False), (draws, orders))
        chosen = draw_evenly(weigh(problem, numbers, mine, params), jax.random.fold_in(key, start), size, count, order)
        latents = jax.vmap(lambda c: take_particles(problem, mine.values, c))(chosen)
        inputs = model_inputs(problem, numbers, params, mine.subsample)
        rows = {n: jnp.broadcast_to(v, (size, *v.shape)) for n, v in mine.subsample.items()}
        return JointDraws(latents | deterministic_values(problem, latents, inputs), rows)

    return jax.lax.map(one, (jnp.asarray(places), jax.random.split(key, places.shape[0])))


def remembering(found: dict[Any, Any], size: int, run: Callable[..., JointDraws]) -> Callable[..., JointDraws]:
    """`sample_block` that keeps the last of its draws in `found`: the next question with the same key is about the same
    draws, and weighing all combinations again would be most of its work."""

    def sampled(*asked: Any) -> JointDraws:
        if is_traced(asked):
            return run(*asked)
        *_, key, start, count = asked
        which = (size, int(start), int(count), np.asarray(jax.random.key_data(key)).tobytes())
        kept = found.setdefault("blocks", {})
        if which not in kept:
            draws = run(*asked)
            room = sum(v.size for v in jax.tree.leaves((kept, draws)))
            if room > KEPT:
                kept.clear()
            kept[which] = draws
        return kept[which]

    return sampled


def entries(problem: Problem) -> int:
    """Numbers in one draw of all sites, data included."""
    sites = [s for s in problem.model.sites.values() if s.kind in ("sample", "deterministic")]
    return sum(math.prod(s.shape) for s in sites)


def mode(problem: Problem, numbers: Mapping, params: Mapping, draws: Draws) -> dict[str, Array]:
    """The combination of particles with the largest weight in any replicate: the site's shape for every latent."""

    def one(mine: Draws) -> tuple[Array, dict[str, Array]]:
        log_weight, chosen = best_indices(weigh(problem, numbers, mine, params))
        return log_weight, _in_model(problem, numbers, params, mine, take_particles(problem, mine.values, chosen))

    log_weights, found = jax.lax.map(one, draws)
    return jax.tree.map(lambda v: v[jnp.argmax(log_weights)], found)


def _in_model(
    problem: Problem, numbers: Mapping, params: Mapping, draws: Draws, found: dict[str, Array]
) -> dict[str, Array]:
    """Values of the model's latents for those of what stands for them."""
    names = {n: in_model(n) for n in found if in_model(n) != n}
    if not names:
        return found
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    values = deterministic_values(problem, {n: v[None] for n, v in found.items()}, inputs)
    return {names.get(n, n): values[names[n]][0] if n in names else v for n, v in found.items()}


def take_particles(problem: Problem, values: Mapping[str, Array], chosen: Mapping[str, Array]) -> dict[str, Array]:
    """The latents' values at chosen particle indices ([*scope] for every axis): the site's shape for every latent."""
    return {
        name: take_latent(problem, name, values[name], chosen[axis.name])
        for axis in problem.layout.axes
        for name in axis.latents
    }
