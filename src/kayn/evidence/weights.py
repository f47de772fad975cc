"""The log-evidence estimate of a model under a guide: where the factor graph and the contraction meet.

`Problem` is what is known before any number: traced programs, structure, particle axes, plan. The functions below are
pure in (numbers, key, parameters) and may be jitted, differentiated and vmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from kayn.axes.types import Axis, proposal_name
from kayn.contraction.execute import log_contract
from kayn.contraction.steps.product import settled_slot
from kayn.contraction.steps.sliced import Sliced, made_in_parts
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, guide_inputs, link_index, model_inputs
from kayn.factors.elementwise import is_unsound, sound
from kayn.factors.evaluate import evaluate
from kayn.factors.task import Operands, Task, reduction
from kayn.graph.absent import absences
from kayn.graph.types import Kind
from kayn.particles.density import log_density
from kayn.support.arrays import Array, PyTree


def proposal_terms(problem: Problem, numbers: Mapping, draws: Draws, params: PyTree) -> dict[str, Array]:
    """Minus the log density that the particles of every axis are divided by: [*scope, K]; zero for enumerated axes."""
    inputs = guide_inputs(problem, numbers, params, draws.subsample)
    absent = absences(problem.model, model_inputs(problem, numbers, params, draws.subsample))
    plan = problem.layout.plan
    out = {}
    for axis in problem.layout.axes:
        if axis.enumerated:
            shape = [*(plan.size[p] for p in axis.scope), axis.size]
            out[proposal_name(axis)] = jnp.broadcast_to(_averaged(problem, axis, absent), shape)
        else:
            log_q = log_density(problem.guide, problem.graph, axis, draws.runs, inputs, absent, problem.denominator)
            out[proposal_name(axis)] = sound(-log_q)
    return out


def _averaged(problem: Problem, axis: Axis, absent: Mapping[str, Array]) -> Array:
    """For the support of an enumerated latent, zero where it is in the model; where it is absent, its values are averaged, not summed.

    So padded steps of a hidden Markov model leave the evidence as it is.
    """
    out = absent.get(axis.latents[0])
    if out is None:
        return jnp.zeros((), _float_dtype())
    dims = dict(problem.graph.latent(axis.latents[0]).plates)
    kept = [dims[p] for p in axis.scope]
    out = jnp.any(out, tuple(d for d in range(out.ndim) if d not in kept))
    out = jnp.transpose(out, [sorted(kept).index(d) for d in kept])
    return jnp.where(out[..., None], -jnp.log(float(axis.size)), 0.0).astype(_float_dtype())


def model_slots(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree, keep: str | None = None
) -> dict[int, Array]:
    """Log factors of the model by slot of the plan, rows already multiplied out, but for a plate to keep; queries are zero.

    Factors with the axis of a sliced variable are made part by part, when the contraction asks for them. Entries that are no log
    densities have no weight.
    """
    return model_slots_noticing(problem, numbers, draws, params, keep)[0]


def model_slots_noticing(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree, keep: str | None = None
) -> tuple[dict[int, Array], dict[str, Array]]:
    """As `model_slots`, and by factor whether any of its entries was +inf.

    Factors that are made part by part are left out, since nothing is known of them yet.
    """
    slots = _model_slots(problem, numbers, draws, params, keep)
    plan, unsound = problem.layout.plan, {}
    parts = made_in_parts(plan)
    for slot, term in enumerate(plan.terms):
        if term.name in problem.model.outputs and slot not in parts:
            unsound[term.name] = is_unsound(slots[settled_slot(plan, slot, keep)[1]])
    return {s: a if isinstance(a, jax.tree_util.Partial) else sound(a) for s, a in slots.items()}, unsound


def _model_slots(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree, keep: str | None = None
) -> dict[int, Array]:
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    index = link_index(problem, inputs)
    plan, layout = problem.layout.plan, problem.layout
    parts, queries = made_in_parts(plan), {o.name for o in problem.graph.outputs if o.kind is Kind.VALUE}
    slots = {}
    for slot, term in enumerate(plan.terms):
        if term.name in problem.model.outputs:
            task = reduction(problem.graph, layout, slot, keep).of(problem.model)
            if slot in parts:
                part = _part_of(task, parts[slot], slot)
                slots[slot] = _made_by_part(part, parts[slot], part.operands(draws.values, inputs, index))
            else:
                _, settled = settled_slot(plan, slot, keep)
                slots[settled] = evaluate(task, task.operands(draws.values, inputs, index))
        elif term.name in queries:
            slots[slot] = jnp.zeros([plan.size[a] for a in term.axes], _float_dtype())
    return slots


def _part_of(task: Task, step: Sliced, slot: int) -> Task:
    """The factor of one slot for a part of the axis that a step cuts, with the products of the step's own plan."""
    steps, _ = settled_slot(step.body, step.sources.index(slot))
    axes = tuple(replace(a, size=step.size) if a.name == step.axis else a for a in task.axes)
    return replace(task, axes=axes, plan=step.body, steps=steps)


def _made_by_part(task: Task, step: Sliced, operands: Operands, settle: Callable[[Array], Array] = sound) -> Array:
    """A factor as a function of the number of the first particle of a part."""
    cut = {n for a in task.axes if a.name == step.axis for n in a.latents}

    def make(operands: Operands, first: Array) -> Array:
        values = operands.particles.items()
        mine = {n: jax.lax.dynamic_slice_in_dim(v, first, step.size) if n in cut else v for n, v in values}
        return settle(evaluate(task, replace(operands, particles=mine)))

    return jax.tree_util.Partial(make, operands)


def unsound_in_parts(problem: Problem, numbers: Mapping, draws: Draws, params: PyTree) -> dict[str, Array]:
    """By factor that is made part by part, whether any of its entries is +inf: boolean scalars.

    All parts are made for it, which `weigh_noticing` would have to do twice.
    """
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    index, layout = link_index(problem, inputs), problem.layout
    found = {}
    for slot, step in made_in_parts(layout.plan).items():
        name = layout.plan.terms[slot].name
        if name in problem.model.outputs:
            part = _part_of(reduction(problem.graph, layout, slot).of(problem.model), step, slot)
            operands = part.operands(draws.values, inputs, index)
            make = _made_by_part(part, step, operands, lambda array: array)
            firsts = step.size * jnp.arange(step.parts)
            found[name] = jnp.any(jax.lax.map(lambda first, make=make: is_unsound(make(first)), firsts))
    return found


def weigh(problem: Problem, numbers: Mapping, draws: Draws, params: PyTree) -> dict[int, Array]:
    """All log factors by slot of the plan: the model's, and minus the proposal's. Entries that are no log densities have no weight."""
    return weigh_noticing(problem, numbers, draws, params)[0]


def weigh_noticing(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree
) -> tuple[dict[int, Array], dict[str, Array]]:
    """As `weigh`, and by factor whether any of its entries was no log density: +inf, or for a proposal, at a particle of its own, infinite.

    Factors that are made part by part are left out, since nothing is known of them yet (see `unsound_in_parts`).
    """
    terms = proposal_terms(problem, numbers, draws, params)
    slots, unsound = model_slots_noticing(problem, numbers, draws, params)
    own = {name: jnp.any(jnp.isinf(array)) for name, array in terms.items()}
    return slots | {s: sound(a) for s, a in proposal_slots(problem, terms).items()}, {**own, **unsound}


def proposal_slots(problem: Problem, terms: Mapping[str, Array]) -> dict[int, Array]:
    """Terms by slot of the plan, whose first slots are its terms in order."""
    names = [t.name for t in problem.layout.plan.terms]
    return {names.index(name): array for name, array in terms.items()}


def log_evidence(
    problem: Problem, numbers: Mapping, slots: Mapping[int, Array], params: PyTree, subsample: Mapping
) -> Array:
    """log Z: the log of the average weight over all particle combinations. A scalar, in nats."""
    index = link_index(problem, model_inputs(problem, numbers, params, subsample))
    return log_contract(problem.layout.plan, slots, index)


def _float_dtype() -> Any:
    return jnp.result_type(float)
