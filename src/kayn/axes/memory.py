"""Memory: what a user allows, what a device has, and what a step over a plan will take."""

from __future__ import annotations

import math

import jax.numpy as jnp

from kayn.contraction.cut import divisible, sliceable, sliced
from kayn.contraction.plan import Plan
from kayn.contraction.steps.product import settled_slot
from kayn.contraction.steps.sliced import in_parts, made_in_parts

CHUNK_ELEMENTS = 2**22
"""Factors over rows are evaluated and multiplied out in parts of at most so many entries."""
LARGE_STEP = 2**30
"""Bytes of a step above which it is taken in parts, whatever is allowed:
large arrays come from memory that is slow to get."""


def step_bytes(plan: Plan) -> int:
    """An upper estimate of the temporary memory of one step, its gradient included.

    Factors and the results of pairwise steps are held for the way back, with their gradients and the shifted copies
    that a log-matmul makes; the largest sum over combinations, and the part of the rows that is evaluated at a time,
    come on top; of a sum that is cut into parts, one part. Against the compiled programs of the benchmarks it is 1 to 3
    times what they take above 1 MB.
    """
    held, loose = _elements(plan)
    return (4 * held + 3 * loose) * jnp.result_type(float).itemsize


def bytes_beside(particles: int, parameters: int) -> int:
    """An upper estimate of what a step takes beside the contraction,
    for so many numbers of particles and of parameters.

    Particles are held as noise, values, statistics and results of loops; parameters, of which covariances of many
    vectors can be the largest arrays of all, as old and new moments, proposals and what leads from one to the other, or
    with gradients and the optimiser's state.
    """
    return (6 * particles + 12 * parameters) * jnp.result_type(float).itemsize


def cut_to_fit(plan: Plan, budget: int) -> Plan:
    """The plan, evaluated in parts where a step would take more than the budget; it may still take more,
    where that does not help.

    Plates come first, whose parts cost next to nothing; then the variable that needs the fewest parts.
    """
    if step_bytes(plan) <= min(budget, LARGE_STEP):
        return plan
    plan = _plates_in_parts(plan, min(CHUNK_ELEMENTS, budget // (8 * jnp.result_type(float).itemsize)))
    for goal in (min(budget, LARGE_STEP), budget):
        if step_bytes(plan) <= goal:
            return plan
        cuts = [
            (parts, candidate)
            for variable, out in sliceable(plan).items()
            for parts in _divisors(plan.size[variable])
            if step_bytes(candidate := sliced(plan, out, variable, parts)) <= goal
        ]
        if cuts:
            return min(cuts, key=lambda cut: cut[0])[1]
    return plan


def _plates_in_parts(plan: Plan, most: int) -> Plan:
    """Sums within the elements of a plate in parts of so many entries, if they form more."""
    for out, plate in divisible(plan).items():
        if _of_a_part(whole := sliced(plan, out, plate, 1), out) <= most:
            continue
        for parts in _divisors(plan.size[plate]):
            whole = sliced(plan, out, plate, parts)
            if _of_a_part(whole, out) <= most:
                break
        plan = whole
    return plan


def _of_a_part(plan: Plan, out: int) -> int:
    return sum(_elements(next(s for s in in_parts(plan) if s.out == out).body))


def _divisors(size: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return sorted({*small, *(size // n for n in small)} - {1})


def _elements(plan: Plan) -> tuple[int, int]:
    """Entries held for the way back, and of what is formed on the way and dropped.

    The latter is the largest sum over combinations beside the rows that are evaluated at a time, or the largest part.
    """
    held, passing, rows, apart = 0, 0, 0, 0
    made = made_in_parts(plan)
    for term in range(len(plan.terms)):
        if term in made:
            continue
        steps, slot = settled_slot(plan, term)
        held += plan.elements(slot)
        if steps:
            rows = max(rows, min(plan.elements(steps[0].source), CHUNK_ELEMENTS))
    for step in plan.steps:
        entries = step.entries(plan, (0, 0) if step.inner is None else _elements(step.inner))
        held += entries.held
        passing, apart = max(passing, entries.passing), max(apart, entries.apart)
    return held, max(passing + rows, apart)
