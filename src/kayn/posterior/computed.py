"""Deterministic sites, and functions of latents, that the particles of one axis make: a value for each of them, weighed
as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax

from kayn.axes.types import Axis
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, model_inputs
from kayn.factors.elementwise import of_one_particle
from kayn.graph.types import Output
from kayn.programs.trace import Program
from kayn.support.arrays import Array, PyTree, local, namespace

MOST = 2**24
"""Entries of such values that are kept, at most."""


def axis_of(problem: Problem, output: Output, shape: Sequence[int], num_replicates: int) -> Axis | None:
    """The axis whose particles alone an output is made of, each element of those of one place; None where there are
    several, or the values would be too many."""
    axes = {problem.layout.axis_of(n) for n in output.latents}
    if len(axes) != 1:
        return None
    (axis,) = axes
    entries = num_replicates * axis.size * math.prod(shape)
    own = all(plate in output.dims and all(r.of(plate) == plate for r in output.reads) for plate in axis.scope)
    return axis if own and entries <= MOST else None


def at_particles(
    problem: Problem, program: Program, output: Output, axis: Axis
) -> Callable[[Mapping, PyTree, Draws], Array]:
    """A function from numbers, parameters and particles of R replicates to an output at each: [R, K, *shape].

    Args:
        program: the problem's model, or a program of its latents and constants.
    """

    def of_replicate(numbers: Mapping, params: PyTree, draws: Draws) -> Array:
        own = program is problem.model
        none = [None] * len(program.inputs)
        inputs = model_inputs(problem, numbers, params, draws.subsample) if own else [*program.consts, *none]
        single = of_one_particle(program, [output.traced], draws.values, inputs)
        mine = {n: draws.values[n] for n in axis.latents if n in draws.values}
        return jax.vmap(lambda values: single(values)[0])(mine)

    def run(numbers: Mapping, params: PyTree, draws: Draws) -> Array:
        return jax.lax.map(lambda one: of_replicate(numbers, params, one), draws)

    return run


def pooled(
    problem: Problem, output: Output, axis: Axis, values: Array, weights: Array, shares: Array
) -> tuple[Array, Array]:
    """Values [P, *shape] of an output from those at particles [R, K, *shape], and their weights from those of the axis
    [R, *scope, K]: [P, *shape], of size one where all are alike."""
    xp, dims = namespace(weights), output.dims
    order = sorted(axis.scope, key=dims.index)
    weights = xp.transpose(weights, (0, weights.ndim - 1, *(1 + axis.scope.index(p) for p in order)))
    weights = weights * local(shares).reshape((-1, *(1,) * (weights.ndim - 1)))
    sizes = [problem.graph.plate(d).size if d in axis.scope else 1 for d in dims]
    rest = (1,) * (values.ndim - 2 - len(sizes))
    return values.reshape((-1, *values.shape[2:])), weights.reshape((-1, *sizes, *rest))


def moments(values: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of weighted values, over the first axis."""
    xp = namespace(values)
    # weights of zero may meet infinite particles
    mean = xp.sum(xp.where(weights > 0, weights * values, 0), 0)
    # once more about itself: far from zero, the rounding of a sum of many is much of a narrow spread
    mean = mean + xp.sum(xp.where(weights > 0, weights * (values - mean), 0), 0)
    return mean, xp.sqrt(xp.sum(xp.where(weights > 0, weights * (values - mean) ** 2, 0), 0))
