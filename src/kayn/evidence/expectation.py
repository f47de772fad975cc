"""Posterior expectations of functions of several latents, by one contraction with a source term.

`E_W f = d log Z / d J` for an added log factor `J * f` on the particle axes that f reads (Bowyer, Heap & Aitchison, UAI 2024).
Here the derivative with respect to a zero factor on those axes gives the joint marginal weights, which then multiply f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from kayn.axes.plan import plan_within
from kayn.axes.types import Axis
from kayn.contraction.plan import Stuck
from kayn.errors import QueryError
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, link_index, model_inputs
from kayn.evidence.queries import joint_marginals
from kayn.evidence.weights import weigh
from kayn.factors.elementwise import evaluate
from kayn.graph.discover import Structure, discover_output
from kayn.graph.types import MIXED, Kind, Output
from kayn.programs.trace import VALUE, Program
from kayn.support.arrays import Array
from kayn.support.names import RESERVED

QUERY = f"{RESERVED}query"
MAX_ELEMENTS = 2**26
"""Larger joint marginals are not formed; the caller falls back to draws."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """A planned expectation: the problem with the query as an extra term, and the program that evaluates the function."""

    problem: Problem
    program: Program
    traced_name: str
    output: Output
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]

    def moments(self, numbers: Mapping, params: Mapping, draws: Draws, shares: Array) -> tuple[Array, Array]:
        """Mean and standard deviation over replicates' particles, weighed by `shares` [R]: in the shape of the function's result."""
        plan = self.problem.layout.plan
        slot = next(i for i, t in enumerate(plan.terms) if t.name == self.output.name)
        count = len(self.axes)

        def one(mine: Draws) -> tuple[Array, Array]:
            inputs = model_inputs(self.problem, numbers, params, mine.subsample)
            slots = weigh(self.problem, numbers, mine, params)
            weights = joint_marginals(self.problem, plan, slot, slots, link_index(self.problem, inputs))
            own = (
                inputs
                if self.program is self.problem.model
                else [*self.program.consts, *([None] * len(self.program.inputs))]
            )
            value = evaluate(self.program, self.traced_name, self.output, self.axes, mine.values, own)
            over = tuple(range(weights.ndim - count, weights.ndim))
            mean = jnp.sum(jnp.where(weights > 0, weights * value, 0), over)
            # once more about itself, as in `Posterior.mean`
            centred = value - jnp.expand_dims(mean, over)
            mean = mean + jnp.sum(jnp.where(weights > 0, weights * centred, 0), over)
            centred = value - jnp.expand_dims(mean, over)
            return mean, jnp.sum(jnp.where(weights > 0, weights * centred**2, 0), over)

        means, variances = jax.lax.map(one, draws)
        mean = jnp.tensordot(shares, means, 1)
        mean = mean + jnp.tensordot(shares, means - mean, 1)
        variance = jnp.tensordot(shares, variances + (means - mean) ** 2, 1)
        return mean.reshape(self.shape), jnp.sqrt(variance).reshape(self.shape)


def of_deterministic(problem: Problem, name: str) -> Expectation | None:
    """Plan the moments of a deterministic site; None if it mixes elements that are indexed separately."""
    return _planned(problem, problem.structure, problem.model, VALUE + name, problem.graph.output(name))


def of_function(problem: Problem, function: Callable, names: Sequence[str]) -> Expectation | None:
    """Plan the expectation of a function of latents; None if it mixes elements that are indexed separately.

    Raises:
        QueryError: the function does not return one array.
    """
    unique = sorted(set(names))
    values = {n: jax.ShapeDtypeStruct(problem.graph.latent(n).shape, problem.graph.latent(n).dtype) for n in unique}
    closed, result = jax.make_jaxpr(lambda v: function(*(v[n] for n in names)), return_shape=True)(values)
    if not hasattr(result, "shape"):
        raise QueryError(
            f"the function passed to expectation() returned {type(result).__name__}; it must return one array"
        )
    program = Program(closed.jaxpr, tuple(closed.consts), tuple(unique), (QUERY,), {}, (), jax.tree.structure({}))
    constants = [*program.consts, *([None] * len(program.inputs))]
    structure, output = discover_output(problem.structure, program, QUERY, Kind.VALUE, constants, constants)
    return _planned(problem, structure, program, QUERY, output)


def _planned(
    problem: Problem, structure: Structure, program: Program, traced_name: str, output: Output
) -> Expectation | None:
    layout, graph = problem.layout, structure.graph
    axes = tuple(dict.fromkeys(layout.axis_of(n) for n in output.latents))
    sizes = {p.name: p.size for p in graph.plates}
    if math.prod(a.size for a in axes) * math.prod(sizes[d] for d in output.dims if d) > MAX_ELEMENTS:
        return None
    seen: dict[str, Any] = {}
    for read in output.reads:
        for plate in layout.axis_of(read.latent).scope:
            how = read.of(plate)
            if how == MIXED or seen.setdefault(plate, how) != how:
                return None
    structure = replace(structure, graph=replace(graph, outputs=(*graph.factors, output)))
    try:
        plan = plan_within(structure, layout.axes, structure.graph.outputs, layout.memory_left)
    except Stuck:
        return None
    asked = replace(problem, structure=structure, layout=replace(layout, plan=plan))
    shape = program.jaxpr.outvars[program.outputs.index(traced_name)].aval.shape
    return Expectation(asked, program, traced_name, output, axes, shape)
