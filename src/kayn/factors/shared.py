"""Factorise a matrix once, for all that need it.

A density that may be evaluated in two ways (`kayn.factors.by_product`), and what the quicker way is measured against,
all need the factor of the same covariance. It is cut out of the program, computed on the particle axes that it depends
on, and given to each as an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from kayn.axes.memory import CHUNK_ELEMENTS
from kayn.axes.types import Axis
from kayn.factors.elementwise import of_one_particle, on_axes
from kayn.factors.task import Operands, Shared, Task
from kayn.programs.calls import called
from kayn.programs.outputs import OutputName, Part
from kayn.programs.slices import needed_equations
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.support.names import RESERVED

FACTORISATIONS = frozenset(("cholesky", "eigh", "lu", "qr", "svd"))
LONGEST_CALL = 20
"""Equations of a called program up to which it is little more than the factorisation in it."""


def factorised_once(task: Task, operands: Operands, names: Sequence[OutputName]) -> tuple[Task, Operands]:
    """A task whose program is without the factorisations that some outputs need,
    with their results among its particles.

    Args:
        names: the outputs; no others are to be taken from the program.

    Returns:
        The task and its operands: those that were given, where there is nothing to factorise or the results would not
        fit in memory.
    """
    program, axes, particles = task.program, task.axes, operands.particles
    eqns, needed = needed_equations(program.jaxpr, [program.outputs.index(n) for n in names])
    sources = _sources(program, eqns, axes)
    cut = [e for e in eqns if _factorises(e)]
    results = [v for e in cut for v in e.outvars if v in needed]
    own = {v: [a for a in axes if a.name in sources[v]] for v in results}
    if sum(math.prod((*v.aval.shape, *(a.size for a in own[v]))) for v in results) > CHUNK_ELEMENTS:
        return task, operands
    start = len(program.consts) + len(program.inputs)
    given: list[Any] = list(operands.inputs)
    for eqn in cut:
        # one after the other: a factorisation may need an earlier one
        for variable in eqn.outvars:
            if variable not in own:
                continue
            run = of_one_particle(_with_output(program, variable), [RESULT], particles, given)
            mine, trailing = own[variable], len(variable.aval.shape)
            array = on_axes(partial(_first, run), mine, particles, (), trailing)
            name = f"{INPUT}{len(particles)}"
            particles = {**particles, name: Shared(array, tuple(a.name for a in mine))}
            program = _with_input(program, variable, name)
            given.insert(start, None)
            start += 1
    return replace(task, program=program), replace(operands, particles=particles, inputs=given)


RESULT = Part.FACTORISATION.of("")
"""What is cut out of a program, while it is computed."""
INPUT = f"{RESERVED}factorised:"
"""How inputs begin that are given instead."""


def _first(run: Callable[[Mapping], list[Array]], values: Mapping[str, Array]) -> Array:
    return run(values)[0]


def _sources(program: Program, eqns: Sequence[JaxprEqn], axes: Sequence[Axis]) -> dict[Any, frozenset[str]]:
    """The particle axes that every variable depends on."""
    axis_of = {n: frozenset((a.name,)) for a in axes for n in a.latents}
    none = frozenset[str]()
    found = {v: axis_of.get(n, none) for v, n in zip(program.jaxpr.invars, program.inputs, strict=False)}
    for eqn in eqns:
        mine = none.union(*(found.get(v, none) for v in eqn.invars if not isinstance(v, Literal)))
        found.update(dict.fromkeys(eqn.outvars, mine))
    return found


def _factorises(eqn: JaxprEqn) -> bool:
    call = called(eqn)
    if call is None:
        return eqn.primitive.name in FACTORISATIONS
    return len(call[0].eqns) <= LONGEST_CALL and any(_factorises(e) for e in call[0].eqns)


def _with_output(program: Program, variable: Any) -> Program:
    jaxpr = program.jaxpr
    longer = _rewritten(jaxpr, jaxpr.invars, [*jaxpr.outvars, variable], jaxpr.eqns)
    return replace(program, jaxpr=longer, outputs=(*program.outputs, RESULT))


def _with_input(program: Program, variable: Any, name: str) -> Program:
    """The program in which a variable is given, after its other inputs, and not computed."""
    jaxpr, end = program.jaxpr, len(program.inputs)
    invars = [*jaxpr.invars[:end], variable, *jaxpr.invars[end:]]
    eqns = [_without_result(e, variable) for e in jaxpr.eqns]
    return replace(
        program,
        jaxpr=_rewritten(jaxpr, invars, jaxpr.outvars, [e for e in eqns if e is not None]),
        inputs=(*program.inputs, name),
    )


def _without_result(eqn: JaxprEqn, variable: Any) -> JaxprEqn | None:
    """The equation with another variable in the place of one of its results; None where that was its only one."""
    if variable not in eqn.outvars:
        return eqn
    if len(eqn.outvars) == 1:
        return None
    return eqn.replace(outvars=[Var(v.aval) if v is variable else v for v in eqn.outvars])


def _rewritten(jaxpr: Jaxpr, invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[JaxprEqn]) -> Jaxpr:
    return Jaxpr(jaxpr.constvars, list(invars), list(outvars), list(eqns), jaxpr.effects, jaxpr.debug_info)
