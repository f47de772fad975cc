"""Massively parallel reweighted wake-sleep: wake-phase updates of model and guide in one loss."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from kayn import evidence, factors
from kayn.axes import Axis, plan_axes
from kayn.contraction.execute import log_contract, settled_slot
from kayn.contraction.plan import Stuck
from kayn.errors import KaynError, StructureWarning
from kayn.evidence import Draws, Problem
from kayn.graph.discover import discover_output
from kayn.graph.types import MIXED, Kind, Output
from kayn.objectives.base import MassivelyParallelELBO

PREFIX = "guide:"


class RWS(MassivelyParallelELBO):
    """Reweighted wake-sleep over all combinations of particles (Heap, Leech & Aitchison, UAI 2023).

    The value is minus log Z. Its gradient in model parameters is that of -log Z with the particles fixed (wake-theta); in
    guide parameters it is minus the posterior-weighted score of the guide, `- E_W sum_i grad log q_i(z_i)` (wake-phi). Both
    are right for one minimiser, so one optimiser serves all parameters. Particles are never differentiated, so discrete
    latents need nothing special. The gradient is that of a self-normalised estimate: its bias is O(1/K).

    Args:
        phi: how guide sites with guide parents are trained. "conditional" (default) weighs `log q_i(z_i | parents)` with the
            joint weights of the latent and its parents; "mixture" trains the denominator, the mixture over all parents'
            particles, which learns marginals well but dependence slowly. The same for factorised guides.
    """

    def __init__(
        self,
        num_particles: int | Mapping[str, int] = 10,
        strategy: str = "parallel",
        *,
        phi: str = "conditional",
        **options: Any,
    ):
        if phi not in ("conditional", "mixture"):
            raise KaynError(f"phi is {phi!r}; it must be 'conditional' or 'mixture'")
        super().__init__(num_particles, strategy, **options)
        self.phi = phi

    def objective(self, problem: Problem, rng_key: Any, params: dict[str, Any]) -> Any:
        numbers = problem.numbers
        draws = jax.lax.stop_gradient(evidence.draw_particles(problem, numbers, rng_key, params))
        terms = evidence.proposal_terms(problem, numbers, draws, params)
        conditional = [a for a in problem.layout.axes if self.phi == "conditional" and _external_parents(problem, a)]
        extended, added = _with_conditionals(problem, numbers, draws, params, conditional)
        done = {a.name for a in conditional} if added is not None else set()
        flipped = {
            name: jax.lax.stop_gradient(t) if name.removeprefix("proposal:") in done else _flip(t)
            for name, t in terms.items()
        }
        slots = evidence.model_slots(problem, numbers, draws, params)
        if added is not None:
            slots = _move_slots(problem, extended, slots) | added
        slots |= evidence.proposal_slots(extended, flipped)
        index = evidence.link_index(extended, evidence.model_inputs(extended, numbers, params, draws.subsample))
        return -log_contract(extended.layout.plan, slots, index)


def _flip(term: Any) -> Any:
    """The same value with the derivative negated: `term` is minus a log density, which wake-phi wants to increase."""
    return 2 * jax.lax.stop_gradient(term) - term


def _external_parents(problem: Problem, axis: Axis) -> list[str]:
    return [p for n in axis.latents for p in problem.guide.parents[n] if p not in axis.latents]


def _with_conditionals(
    problem: Problem, numbers: Mapping, draws: Draws, params: Mapping, axes: list[Axis]
) -> tuple[Problem, dict[int, Any] | None]:
    """The problem with zero-valued terms `log q_i(z_i | parents) - stop_gradient(same)`, and their arrays by slot."""
    if not axes:
        return problem, None
    guide, structure = problem.guide, problem.structure
    inputs = evidence.guide_inputs(problem, numbers, params, draws.subsample)
    outputs: list[Output] = []
    for name in (n for a in axes for n in a.latents):
        if any(p in guide.auxiliary for p in guide.parents[name]):
            return _fall_back(problem, f"guide site {name!r} depends on an auxiliary site")
        structure, output = discover_output(structure, guide.density, name, Kind.PRIOR, inputs, inputs)
        if not _resolved(problem, output):
            return _fall_back(problem, f"guide site {name!r} mixes elements of its parents")
        outputs.append(replace(output, name=PREFIX + name))
    graph = replace(structure.graph, outputs=(*structure.graph.outputs, *outputs))
    structure = replace(structure, graph=graph)
    try:
        plan = plan_axes(structure, problem.layout.axes, graph.factors)
    except Stuck:
        return _fall_back(problem, "the guide's dependences do not fit the model's factor graph")
    extended = replace(problem, structure=structure, layout=replace(problem.layout, plan=plan))
    names = [t.name for t in plan.terms]
    arrays = {}
    for output in outputs:
        slot = names.index(output.name)
        own = problem.layout.axes_of(plan.terms[slot])
        log_q = factors.evaluate(guide.density, output.name.removeprefix(PREFIX), output, own, draws.values, inputs)
        arrays[slot] = log_q - jax.lax.stop_gradient(log_q)
    return extended, arrays


def _resolved(problem: Problem, output: Output) -> bool:
    return all(read.of(plate) != MIXED for read in output.reads for plate in problem.layout.axis_of(read.latent).scope)


def _fall_back(problem: Problem, why: str) -> tuple[Problem, None]:
    warnings.warn(
        f"kayn.RWS: {why}; wake-phi uses the mixture density instead of the conditional one",
        StructureWarning,
        stacklevel=2,
    )
    return problem, None


def _move_slots(problem: Problem, extended: Problem, slots: Mapping[int, Any]) -> dict[int, Any]:
    """Model factors under the extended plan's slot numbers."""
    old, new = problem.layout.plan, extended.layout.plan
    names = [t.name for t in new.terms]
    moved = {}
    for slot, term in enumerate(old.terms):
        settled = settled_slot(old, slot)[1]
        if settled in slots:
            moved[settled_slot(new, names.index(term.name))[1]] = slots[settled]
    return moved
