"""A log factor in the cheapest of its forms: by products, by the terms of a predictor, or entry by entry."""

from __future__ import annotations

from typing import Any

from kayn.axes.memory import CHUNK_ELEMENTS
from kayn.factors import by_terms
from kayn.factors.by_product import Factorisation
from kayn.factors.by_terms import Additive
from kayn.factors.choose_form import choose
from kayn.factors.elementwise import evaluate_reduced
from kayn.factors.shared import factorised_once
from kayn.factors.task import Operands, Task
from kayn.programs.outputs import Part
from kayn.support.arrays import Array
from kayn.xla.fallback import guarded


def evaluate(task: Task, operands: Operands) -> Array:
    """As `kayn.factors.elementwise.evaluate_reduced`, by a matrix product where that pays: [*plates, *(K of axes)]."""
    groups = by_terms.choose(task)
    split = choose(task) if groups is None else None
    terms = 0 if split is None else split.num_terms * task.entries
    if split is not None and max(task.elements, terms) <= CHUNK_ELEMENTS:
        arguments = [Part.ARGUMENT.of(task.name, a.name) for a in split.density.arguments]
        task, operands = factorised_once(task, operands, [task.output.traced, *arguments])

    def exact(operands: Operands) -> Array:
        return evaluate_reduced(task, operands, terms)

    if groups is not None:
        way: Any = Additive(task, groups)
    elif split is not None:
        way = Factorisation(task, split)
    else:
        return exact(operands)
    return guarded(way.prepare, way.finish, exact, operands)
