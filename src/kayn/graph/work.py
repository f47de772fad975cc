"""What it takes to compute an output once: operations by the latents that they depend on.

An operation is repeated for every combination of particles of the latents that reach it, and of no others. So a factor
is as dear as its dearest operations on most latents, however small its result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph.discover import Structure
from kayn.graph.flow import Sources, results
from kayn.graph.types import Density, Kind, Output
from kayn.programs.calls import called
from kayn.programs.outputs import OutputName, Part
from kayn.programs.primitives import ELEMENTWISE, POLYNOMIAL, TRANSCENDENTAL
from kayn.programs.slices import needed_equations
from kayn.programs.trace import Program

DEAR, DEARER = 4, 32
"""Operations of a transcendental function, and of a special one that is computed by polynomials or series."""
MATMUL_SPEED = 8
"""Multiply-adds of a matrix product in the time of one elementwise operation (2 CPU cores; more on accelerators)."""


def with_work(structure: Structure, program: Program) -> Structure:
    """The structure of a program, with what it takes to compute each of its factors (see `Output`)."""
    outputs = (o if o.kind is Kind.VALUE else replace(o, work=_of_factor(o, program)) for o in structure.graph.outputs)
    return replace(structure, graph=replace(structure.graph, outputs=tuple(outputs)))


def _of_factor(output: Output, program: Program) -> tuple[tuple[tuple[str, ...], float], ...]:
    density = output.density
    arguments = () if density is None else density.arguments
    names = [Part.ARGUMENT.of(output.name, a.name) for a in arguments] or [output.traced]
    terms = density.terms if density is not None and len(density.terms) > 1 else (output.latents,)
    found = work_of(program, names)
    for z, n in () if density is None else _of_family(density):
        found[z] = found.get(z, 0.0) + n
    return tuple(sorted((tuple(sorted(z)), n) for z, n in found.items() if any(z <= set(term) for term in terms)))


def _of_family(density: Density) -> Iterator[tuple[Sources, float]]:
    """Operations of the special functions that a density has of its parameters, and of the triangular systems, by the
    latents these depend on."""
    for names in density.family.special:
        own = [a for a in density.arguments if a.name in names]
        latents = Sources(n for a in own for n in a.latents)
        if latents:
            yield latents, DEARER * math.prod(np.broadcast_shapes(*(a.shape for a in own)))
    solved = [a.latents for a in density.arguments if a.name in density.family.solved]
    if solved and all(solved):
        value = next(a for a in density.arguments if a.name == "value")
        yield Sources().union(*solved), density.family.operations(value.shape)


def work_of(program: Program, outputs: Iterable[OutputName]) -> dict[Sources, float]:
    """Operations that some outputs of a program take together for one particle of every latent, by the latents that
    they depend on; those that depend on none are left out."""
    given = {v: Sources((n,)) for v, n in zip(program.jaxpr.invars, program.inputs, strict=False)}
    eqns, _ = needed_equations(program.jaxpr, [program.outputs.index(name) for name in outputs])
    found: dict[Sources, float] = {}
    _add(found, eqns, given, 1.0)
    return found


def _add(found: dict[Sources, float], eqns: Sequence[JaxprEqn], known: dict[Any, Sources], times: float) -> None:
    """Count equations, so many times each.

    Args:
        known: latents that variables depend on; extended by those of the equations' results.
    """
    for eqn in eqns:
        operands = [Sources() if isinstance(v, Literal) else known.get(v, Sources()) for v in eqn.invars]
        after = results(eqn, operands)
        inner = _inner(eqn, operands, after)
        for body, inputs, repeats in inner:
            _add(found, body.eqns, dict(zip(body.invars, inputs, strict=True)), times * repeats)
        together = Sources().union(*operands)
        if not inner and together:
            found[together] = found.get(together, 0.0) + times * _operations(eqn)
        known.update(zip(eqn.outvars, after, strict=True))


def _inner(
    eqn: JaxprEqn, operands: Sequence[Sources], after: Sequence[Sources]
) -> list[tuple[Jaxpr, Sequence[Sources], int]]:
    """Programs that an equation runs, with what their inputs depend on, and how often.

    What is carried depends on what it does after the loop. Of loops whose length is not known, one step is counted.

    Args:
        after: what the equation's results depend on.
    """
    call = called(eqn)
    if call is not None:
        return [(call[0], operands, 1)]
    name = eqn.primitive.name
    if name == "scan":
        body = eqn.params["jaxpr"].jaxpr
        constants, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        inputs = [*operands[:constants], *after[:carried], *operands[constants + carried :]]
        return [(body, inputs, eqn.params["length"])]
    if name == "while":
        tests, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        return [(eqn.params["body_jaxpr"].jaxpr, [*operands[tests : tests + constants], *after], 1)]
    if name == "cond":
        # under `vmap` all branches run
        return [(branch.jaxpr, operands[1:], 1) for branch in eqn.params["branches"]]
    return []


def _operations(eqn: JaxprEqn) -> float:
    name = eqn.primitive.name
    size = max((math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars), default=1)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted) / MATMUL_SPEED
    if name in ("cholesky", "triangular_solve"):
        # the entries of the result times the rows of the matrix, about as slow as elementwise operations
        return size * eqn.invars[0].aval.shape[-1]
    if name in TRANSCENDENTAL:
        return DEAR * size
    if name in POLYNOMIAL:
        return DEARER * size
    if name in ELEMENTWISE:
        return size
    return max(size, *(math.prod(getattr(v.aval, "shape", ())) for v in eqn.invars)) if _sums(name) else 0.0


def _sums(name: str) -> bool:
    return name.startswith(("reduce_", "cum", "scatter", "arg"))
