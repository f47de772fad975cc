"""Posterior expectations of functions of several latents, by one contraction with a source term.

`E_W f = d log Z / d J` for an added log factor `J * f` on the particle axes that f reads (Bowyer, Heap & Aitchison, UAI
2024). Here the derivative with respect to a zero factor on those axes gives the joint marginal weights, which then
multiply f.
"""

from __future__ import annotations

import inspect
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
from kayn.evidence.problem import Problem, model_inputs
from kayn.evidence.queries import joint_marginals
from kayn.evidence.weights import weigh
from kayn.factors.elementwise import evaluate
from kayn.factors.task import Operands, Task
from kayn.graph.discover import Structure, discover_output
from kayn.graph.types import MIXED, Output
from kayn.programs.outputs import Part
from kayn.programs.slices import slice_outputs
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.support.names import RESERVED, unbounded
from kayn.xla.compilation import apart

QUERY = Part.VALUE.of(f"{RESERVED}query")
MAX_ELEMENTS = 2**26
"""Larger joint marginals are not formed; the caller falls back to draws."""


GROUP = 8
"""At most so many deterministic sites are asked about by one program."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A function of latents: the program that evaluates it, how it reads them, and the shape of its result."""

    program: Program
    output: Output
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    elements: int
    """Entries of the joint marginal weights on its axes."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """Planned expectations: the problem with the functions as extra terms of value zero."""

    problem: Problem
    asked: tuple[Asked, ...]

    @property
    def only(self) -> tuple[Program, Output, tuple[int, ...]]:
        """Of one function: its program, how that reads the latents, and the shape of its result."""
        (asked,) = self.asked
        return asked.program, asked.output, asked.shape

    def moments(self, numbers: Mapping, params: Mapping, draws: Draws, shares: Array) -> list[tuple[Array, Array]]:
        """Mean and standard deviation over replicates' particles, weighed by `shares` [R].

        Returns:
            Of every function, in the shape of its result.
        """
        names = [t.name for t in self.problem.layout.plan.terms]
        slots_asked = [names.index(a.output.name) for a in self.asked]

        def one(mine: Draws) -> list[tuple[Array, Array]]:
            inputs = model_inputs(self.problem, numbers, params, mine.subsample)
            found = joint_marginals(weigh(self.problem, numbers, mine, params), slots_asked)
            return [self._of_one(a, w, mine, inputs) for a, w in zip(self.asked, found, strict=True)]

        def pooled(asked: Asked, means: Array, variances: Array) -> tuple[Array, Array]:
            mean = jnp.tensordot(shares, means, 1)
            mean = mean + jnp.tensordot(shares, means - mean, 1)
            variance = jnp.tensordot(shares, variances + (means - mean) ** 2, 1)
            return mean.reshape(asked.shape), jnp.sqrt(variance).reshape(asked.shape)

        return [pooled(a, *found) for a, found in zip(self.asked, jax.lax.map(one, draws), strict=True)]

    def _of_one(self, asked: Asked, weights: Array, draws: Draws, inputs: Sequence[Array]) -> tuple[Array, Array]:
        """Mean and variance under joint weights of one set of particles."""
        program = asked.program
        own = inputs if program is self.problem.model else [*program.consts, *([None] * len(program.inputs))]
        task = Task(asked.output, asked.axes, self.problem.layout.plan, (), program)
        # fused into the sums below, within the loop over replicates, it can be computed again for every entry of them
        value = apart(evaluate(task, Operands(draws.values, own)), jnp.ravel(weights)[0])
        over = tuple(range(weights.ndim - len(asked.axes), weights.ndim))
        mean = jnp.sum(jnp.where(weights > 0, weights * value, 0), over)
        # once more about itself, as in `Posterior.mean`
        centred = value - jnp.expand_dims(mean, over)
        mean = mean + jnp.sum(jnp.where(weights > 0, weights * centred, 0), over)
        centred = value - jnp.expand_dims(mean, over)
        return mean, jnp.sum(jnp.where(weights > 0, weights * centred**2, 0), over)


def of_deterministic(problem: Problem) -> dict[str, Expectation]:
    """Plans for the moments of deterministic sites, by site;
    several share one where that is no dearer than one for each.

    Left out are sites that mix elements that are indexed separately.
    """
    sites = [n for n, s in problem.model.sites.items() if s.kind == "deterministic"]
    groups: list[Expectation] = []
    for name in sites:
        asked = _asked(problem, problem.structure, problem.model, problem.graph.output(name))
        own = None if asked is None else _planned(problem, problem.structure, (asked,))
        if own is not None:
            _join(groups, own)
    return {a.output.name: group for group in groups for a in group.asked}


def _join(groups: list[Expectation], own: Expectation) -> None:
    """Put a plan into a group of plans, or beside them."""
    for i, group in enumerate(groups):
        both = _planned(group.problem, own.problem.structure, (*group.asked, *own.asked))
        if both is not None and _flops(both) <= _flops(group) + _flops(own):
            groups[i] = both
            return
    groups.append(own)


def _flops(planned: Expectation) -> int:
    return planned.problem.layout.plan.flops


def arguments(function: Callable, names: tuple[str, ...]) -> tuple[str, ...]:
    """The latents that a function's arguments stand for.

    Raises:
        QueryError: there are not as many names as arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # built in
        signature = None
    if signature is not None:
        names = names or tuple(signature.parameters)
        try:
            signature.bind(*names)
        except TypeError:
            names = ()
    if not names:
        raise QueryError(
            "expectation() needs the name of a latent for every argument of its function, e.g. "
            "posterior.expectation(lambda m, a: m * a, 'mu', 'alpha'); without names, arguments are taken for the "
            "latents that they are called after"
        )
    return names


def traced_function(problem: Problem, function: Callable, names: Sequence[str]) -> Program:
    """A function of latents as a program.

    Raises:
        QueryError: the function does not return one array.
    """
    computed, sources = _unbounded_values(problem, names)
    unique = sorted({n for n in names if n in problem.graph.latent_names}.union(sources))
    values = {n: jax.ShapeDtypeStruct(problem.graph.latent(n).shape, problem.graph.latent(n).dtype) for n in unique}

    def of(values: Mapping[str, Array]) -> Any:
        known = {**values, **computed(values)}
        return function(*(known[n] for n in names))

    closed, result = jax.make_jaxpr(of, return_shape=True)(values)
    if not hasattr(result, "shape"):
        raise QueryError(
            f"the function passed to expectation() returned {type(result).__name__}; it must return one array"
        )
    return Program(closed.jaxpr, tuple(closed.consts), tuple(unique), (QUERY,), {}, ())


def _unbounded_values(
    problem: Problem, names: Sequence[str]
) -> tuple[Callable[[Mapping[str, Array]], dict[str, Array]], tuple[str, ...]]:
    """Those of some latents that are functions of what is drawn in their place, and the names of what they read."""
    program = problem.model
    found = sorted(n for n in set(names) if n not in problem.graph.latent_names)
    if not found:
        return lambda values: {}, ()
    run, used = slice_outputs(program.jaxpr, [program.outputs.index(Part.VALUE.of(n)) for n in found])
    places = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}

    def computed(values: Mapping[str, Array]) -> dict[str, Array]:
        given = [values[places[i]] if i in places else program.consts[i] for i in used]
        return dict(zip(found, run(*given), strict=True))

    return computed, tuple(places[i] for i in used if i in places)


def can_be_followed(problem: Problem, names: Sequence[str]) -> bool:
    """Whether all of some names are latents, or functions of latents and constants of the program alone."""
    program, latents = problem.model, problem.graph.latent_names
    found = [n for n in names if n not in latents]
    if not all(unbounded(n) in latents for n in found):
        return False
    latents = (*latents, *(a.latent.name for a in problem.graph.aliases))
    used = slice_outputs(program.jaxpr, [program.outputs.index(Part.VALUE.of(n)) for n in found])[1] if found else ()
    places = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}
    return all(i < len(program.consts) or places.get(i) in latents for i in used)


def of_function(problem: Problem, program: Program) -> Expectation | None:
    """Plan the expectation of a function of latents (see `traced_function`).

    Returns:
        None if it mixes elements that are indexed separately.
    """
    constants = [*program.consts, *([None] * len(program.inputs))]
    structure, output = discover_output(problem.structure, program, QUERY, constants, constants)
    asked = _asked(problem, structure, program, output)
    return None if asked is None else _planned(problem, structure, (asked,))


def _asked(problem: Problem, structure: Structure, program: Program, output: Output) -> Asked | None:
    layout = problem.layout
    axes = tuple(dict.fromkeys(layout.axis_of(n) for n in output.latents))
    sizes = {p.name: p.size for p in structure.graph.plates}
    elements = math.prod(a.size for a in axes) * math.prod(sizes[d] for d in output.dims if d)
    seen: dict[str, Array] = {}
    for read in output.reads:
        for plate in layout.axis_of(read.latent).scope:
            how = read.of(plate)
            if how == MIXED or seen.setdefault(plate, how) != how:
                return None
    shape = program.aval(output.traced).shape
    return Asked(program, output, axes, shape, elements)


def _planned(problem: Problem, structure: Structure, asked: tuple[Asked, ...]) -> Expectation | None:
    """None where there is no plan for all of these functions, or where it would be too large."""
    if len(asked) > GROUP or sum(a.elements for a in asked) > MAX_ELEMENTS:
        return None
    outputs = (*structure.graph.factors, *(a.output for a in asked))
    structure = replace(structure, graph=replace(structure.graph, outputs=outputs))
    layout = problem.layout
    try:
        plan = plan_within(structure, layout.axes, outputs, layout.memory_left)
    except Stuck:
        return None
    return Expectation(replace(problem, structure=structure, layout=replace(layout, plan=plan)), asked)
