"""log Z as a sum over the elements of a plate, where it is one: what each datum adds, and what none owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kayn.contraction.by_element import by_element
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem
from kayn.evidence.weights import weigh_against
from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True)
class Summands:
    """`total == scale * sum(parts) + rest`, in nats.

    Attributes:
        total: log Z.
        parts: [plate], the summands of the elements that are present; without a plate log Z itself.
        scale: how many elements each of those stands for (subsampled plates).
        rest: the terms that belong to no element. No particle is in them.
        unsound: by factor, whether any of its entries was +inf, which have no weight.
    """

    total: Array
    parts: Array
    scale: float
    rest: Array
    unsound: Mapping[str, Array]


def outer_plate(problem: Problem) -> str | None:
    """A plate that every drawn or enumerated latent has an index of its own over,
    so that log Z is a sum over its elements.

    Steps of a loop are none: latents of one step depend on those of another.
    """
    axes = problem.layout.axes
    shared = [p for p in axes[0].scope if all(p in a.scope for a in axes) and not problem.graph.plate(p).steps]
    return shared[0] if shared else None


def log_evidence_summands(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree, terms: Mapping[str, Array]
) -> Summands:
    """log Z for given particles, by the elements of the outer plate.

    Args:
        terms: minus the log density of the particles, by `proposal_name`, as `evidence.proposal_terms` gives them.
    """
    plate = outer_plate(problem)
    weighed = weigh_against(problem, numbers, draws, params, terms, plate)
    total = weighed.log_evidence()
    if plate is None:
        return Summands(total, total, 1.0, 0.0, weighed.unsound)
    parts, rest = by_element(weighed.plan, weighed.slots, weighed.index, plate)
    return Summands(total, parts, problem.graph.plate(plate).scale, rest, weighed.unsound)
