"""One set of particles, and what is computed of it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from kayn.evidence.problem import Problem, model_inputs, set_rows
from kayn.particles.draw import axis_particles, draw_runs, runs_read
from kayn.particles.draw import supports as supports_of
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.prints import Outlined


@dataclass(frozen=True, repr=False)
class Draws(Outlined):
    """One set of particles.

    Attributes:
        values: [K, *shape] for every latent of the model.
        runs: [runs, *shape] for every guide site, auxiliary ones included; of each as many as are looked at.
        subsample: indices of subsampled plates.
        unsound: by factor, whether any of its log densities was none (see `weigh`);
            empty until they are weighed.
    """

    values: dict[str, Array]
    runs: dict[str, Array]
    subsample: dict[str, Array]
    unsound: dict[str, Array] = field(default_factory=dict)


jax.tree_util.register_dataclass(Draws, ["values", "runs", "subsample", "unsound"], [])


def draw_particles(
    problem: Problem, numbers: Mapping, key: KeyArray, params: PyTree, rows_key: KeyArray | None = None
) -> Draws:
    """Run the guide and take the particles of every axis.

    Args:
        rows_key: chooses the rows of subsampled plates, for several sets of particles on the same rows;
            from `key` if None.
    """
    key, subsample = as_key(key), {}
    if problem.model.subsamples or problem.guide.density.subsamples:
        key, own_key = jax.random.split(key)
        subsample = _draw_subsample(problem, numbers, own_key if rows_key is None else rows_key, params)
    params = dict(params or {})
    counts = runs_read(problem.guide, problem.layout)
    runs = draw_runs(problem.guide, numbers["sampler"], key, counts, params, subsample)
    return draws_from_runs(problem, numbers, params, _stored(runs, key), subsample)


def _stored(runs: dict[str, Array], key: KeyArray) -> dict[str, Array]:
    """The same values, divided by a one that compilers cannot see through.

    They fuse cheap arithmetic into whatever uses it, and would compute a draw anew for every combination of particles
    it appears in (XLA drops optimisation barriers before it fuses, on CPUs). Divisions count as dear and are computed
    once.
    """
    one = 1.0 + 0.0 * jnp.sum(jax.random.key_data(key)).astype(float)
    return {n: v / one.astype(v.dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for n, v in runs.items()}


def draws_from_runs(
    problem: Problem, numbers: Mapping, params: PyTree, runs: dict[str, Array], subsample: dict[str, Array]
) -> Draws:
    """Particles of every axis and alias from runs of the guide.

    Args:
        runs: by guide site [runs, *shape]; enumerated latents, which have none, get their support.
        subsample: indices of subsampled plates, by plate.
    """
    inputs = model_inputs(problem, numbers, params, subsample)
    enumerated = [n for a in problem.layout.axes if a.enumerated for n in a.latents]
    supports = supports_of(problem.model, enumerated, inputs)
    values = axis_particles(problem.graph, problem.layout, runs, supports)
    return Draws(
        problem.model.with_aliases(values, leading=1), problem.guide.density.with_aliases(runs, leading=1), subsample
    )


def _draw_subsample(problem: Problem, numbers: Mapping, key: KeyArray, params: PyTree) -> dict[str, Array]:
    plates = {n: problem.model.sites[n] for n in problem.model.subsamples}
    plates |= {n: problem.guide.density.sites[n] for n in problem.guide.density.subsamples}
    keys = jax.random.split(key, len(plates))
    drawn = {
        n: jax.random.choice(k, s.batch_shape[0], s.shape, replace=False).astype(jnp.int32)
        for k, (n, s) in zip(keys, sorted(plates.items()), strict=True)
        if not s.fixed
    }
    return drawn | set_rows(problem, numbers, params)


def deterministic_values(problem: Problem, latents: Mapping[str, Array], inputs: Sequence[Array]) -> dict[str, Array]:
    """Deterministic sites for draws of the latents: [S, *shape] from [S, *shape] of every latent."""
    program = problem.model
    names = [n for n, s in program.sites.items() if s.kind == "deterministic"]
    if not names:
        return {}
    run, used = program.sliced([Part.VALUE.of(n) for n in names])
    position = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}

    def one(values: Mapping[str, Array]) -> list[Array]:
        return run(*(values[position[i]] if i in position else inputs[i] for i in used))

    return dict(zip(names, jax.vmap(one)(program.with_aliases(latents, leading=1)), strict=True))
