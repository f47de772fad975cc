"""The log-evidence estimate of a model under a guide: where the factor graph and the contraction meet.

`Problem` is what is known before any number: traced programs, structure, particle axes, plan. The functions below are
pure in (numbers, key, parameters) and may be jitted, differentiated and vmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from kayn.axes.types import Axis, proposal_name
from kayn.contraction.steps.product import settled_slot
from kayn.contraction.steps.sliced import Sliced, made_in_parts
from kayn.contraction.ways import LinkKey
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, guide_inputs, model_inputs
from kayn.evidence.weighed import Weighed, links_of
from kayn.factors.elementwise import is_unsound, sound
from kayn.factors.evaluate import evaluate
from kayn.factors.task import Operands, Task, reduction
from kayn.graph.absent import absences
from kayn.graph.types import Kind
from kayn.particles.density import log_density
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, PyTree


def proposal_terms(
    problem: Problem, numbers: Mapping, draws: Draws, params: PyTree, axes: Sequence[Axis] | None = None
) -> dict[str, Array]:
    """Minus the log density that the particles of every axis are divided by: [*scope, K]; zero for enumerated axes.

    Args:
        axes: those that are asked for, which may lack latents of the layout's; None for all.
    """
    inputs = guide_inputs(problem, numbers, params, draws.subsample)
    absent = absences(problem.model, model_inputs(problem, numbers, params, draws.subsample))
    plan = problem.layout.plan
    out = {}
    for axis in problem.layout.axes if axes is None else axes:
        if axis.enumerated:
            shape = [*(plan.size[p] for p in axis.scope), axis.size]
            out[proposal_name(axis)] = jnp.broadcast_to(_averaged(problem, axis, absent), shape)
        else:
            log_q = log_density(problem.guide, problem.graph, axis, draws.runs, inputs, absent, problem.denominator)
            out[proposal_name(axis)] = sound(-log_q)
    return out


def _averaged(problem: Problem, axis: Axis, absent: Mapping[str, Array]) -> Array:
    """For the support of an enumerated latent, zero where it is in the model; where it is absent,
    its values are averaged, not summed.

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


def weigh(problem: Problem, numbers: Mapping, draws: Draws, params: PyTree) -> Weighed:
    """Weigh a set of particles by model and guide.

    What is unsound of a proposal is a particle of its own with an infinite log density.
    """
    terms = proposal_terms(problem, numbers, draws, params)
    weighed = weigh_against(problem, numbers, draws, params, {n: sound(array) for n, array in terms.items()})
    own = {name: jnp.any(jnp.isinf(array)) for name, array in terms.items()}
    return replace(weighed, unsound={**own, **weighed.unsound})


def weigh_against(
    problem: Problem,
    numbers: Mapping,
    draws: Draws,
    params: PyTree,
    terms: Mapping[str, Array],
    keep: str | None = None,
) -> Weighed:
    """Weigh a set of particles by the model and given densities of the particles; queries of values are zero.

    Factors with the axis of a sliced variable are made part by part, when the contraction asks for them, and nothing is
    known yet of how sound they are (see `unsound_in_parts`).

    Args:
        terms: minus the log densities of the particles, by `proposal_name`.
        keep: a plate of which the model's factors keep the rows.
    """
    links = links_of(problem, numbers, params, draws.subsample)
    factors = _model_slots(problem, model_inputs(problem, numbers, params, draws.subsample), draws, links, keep)
    plan, unsound = problem.layout.plan, {}
    parts = made_in_parts(plan)
    for slot, term in enumerate(plan.terms):
        if Part.DENSITY.of(term.name) in problem.model.outputs and slot not in parts:
            unsound[term.name] = is_unsound(factors[settled_slot(plan, slot, keep)[1]])
    slots = {s: a if isinstance(a, jax.tree_util.Partial) else sound(a) for s, a in factors.items()}
    names = [t.name for t in plan.terms]
    return Weighed(problem, slots | {names.index(name): array for name, array in terms.items()}, links, unsound)


def _model_slots(
    problem: Problem, inputs: Sequence[Array], draws: Draws, links: Mapping[LinkKey, Array], keep: str | None
) -> dict[int, Any]:
    """Log factors of the model by slot, rows already multiplied out, but for a plate to keep."""
    plan, layout, index = problem.layout.plan, problem.layout, links.__getitem__
    parts, queries = made_in_parts(plan), {o.name for o in problem.graph.outputs if o.kind is Kind.VALUE}
    slots: dict[int, Any] = {}
    for slot, term in enumerate(plan.terms):
        if Part.DENSITY.of(term.name) in problem.model.outputs:
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

    All parts are made for it, which `weigh` would have to do twice.
    """
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    index, layout = links_of(problem, numbers, params, draws.subsample).__getitem__, problem.layout
    found = {}
    for slot, step in made_in_parts(layout.plan).items():
        name = layout.plan.terms[slot].name
        if Part.DENSITY.of(name) in problem.model.outputs:
            part = _part_of(reduction(problem.graph, layout, slot).of(problem.model), step, slot)
            operands = part.operands(draws.values, inputs, index)
            make = _made_by_part(part, step, operands, lambda array: array)
            firsts = step.size * jnp.arange(step.parts)
            found[name] = jnp.any(jax.lax.map(lambda first, make=make: is_unsound(make(first)), firsts))
    return found


def log_evidence(
    problem: Problem, numbers: Mapping, slots: Mapping[int, Array], params: PyTree, subsample: Mapping
) -> Array:
    """log Z: the log of the average weight over all particle combinations. A scalar, in nats."""
    return Weighed(problem, slots, links_of(problem, numbers, params, subsample)).log_evidence()


def _float_dtype() -> Any:
    return jnp.result_type(float)
