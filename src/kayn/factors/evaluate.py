"""A log factor in the cheapest of its forms: by products, by the terms of a predictor, or entry by entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kayn.axes.memory import CHUNK_ELEMENTS
from kayn.axes.types import Axis
from kayn.contraction.execute import look_up
from kayn.contraction.plan import Plan
from kayn.contraction.steps.product import Product
from kayn.contraction.ways import Index
from kayn.factors import by_terms
from kayn.factors.by_product import Factorisation
from kayn.factors.by_terms import Additive
from kayn.factors.choose_form import choose
from kayn.factors.elementwise import Particles, evaluate_reduced
from kayn.factors.shared import factorised_once
from kayn.graph.types import Output
from kayn.programs.density_arguments import ARGUMENT
from kayn.programs.trace import Program
from kayn.support.arrays import Array, PyTree
from kayn.xla.fallback import guarded


def evaluate(
    program: Program,
    name: str,
    output: Output,
    axes: Sequence[Axis],
    particles: Particles,
    inputs: Sequence[Array],
    plan: Plan,
    steps: Sequence[Product],
    index: Index,
) -> Array:
    """As `kayn.factors.elementwise.evaluate_reduced`, by a matrix product where that pays: [*plates, *(K of axes)]."""
    links = look_up((link for step in steps for link in step.links), index)
    groups = by_terms.choose(output, axes, plan, steps)
    split = choose(output, axes, plan, steps) if groups is None else None
    terms = 0 if split is None else split.num_terms * math.prod(a.size for a in axes)
    whole = math.prod(plan.size[a] for a in plan.axes[steps[0].source]) if steps else 0
    if split is not None and max(whole, terms) <= CHUNK_ELEMENTS:
        arguments = [f"{ARGUMENT}{a.name}:{name}" for a in split.density.arguments]
        program, particles, inputs = factorised_once(program, [name, *arguments], axes, particles, inputs)

    def exact(arguments: PyTree) -> Array:
        particles, inputs, links = arguments
        return evaluate_reduced(program, name, output, axes, particles, inputs, plan, steps, links.__getitem__, terms)

    given = (dict(particles), list(inputs), links)
    if groups is not None:
        way: Any = Additive(program, output, tuple(axes), plan, tuple(steps), groups)
    elif split is not None:
        way = Factorisation(program, output, tuple(axes), plan, tuple(steps), split)
    else:
        return exact(given)
    return guarded(lambda a: way.prepare(*a), way.finish, exact, given)
