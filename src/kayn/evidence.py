"""The log-evidence estimate of a model under a guide: where the factor graph and the contraction meet.

`Problem` is what is known before any number: traced programs, structure, particle axes, plan. The functions below are
pure in (numbers, key, parameters) and may be jitted, differentiated and vmapped.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn import factors, particles, products
from kayn.axes import Axis, Layout, Request, proposal_name
from kayn.checks import parameter_values
from kayn.contraction.execute import Index, log_contract, look_up, settled_slot
from kayn.contraction.plan import Sliced
from kayn.errors import GuideError, KaynError, StructureWarning
from kayn.fixed import fixed_rows
from kayn.graph.absent import absences, with_absences
from kayn.graph.discover import Structure, discover
from kayn.graph.missing import is_broken, refuse_missing, refuse_missing_groups, warn_if_nothing_observed
from kayn.graph.slices import slice_outputs
from kayn.graph.trace import VALUE, Program, Site, inspect_sites, share_fixed, trace_program
from kayn.graph.types import Graph, Kind, Output
from kayn.keys import as_key
from kayn.layout import choose_layout
from kayn.minibatches import warn_of_strangers
from kayn.names import refuse_reserved
from kayn.particles import DENOMINATORS, GuideProgram
from kayn.reach import refuse_smaller_ends
from kayn.unreached import refuse_values_never_drawn

DRAWS = 16
"""Runs of a guide at which what it can reach given other latents is compared with the model."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a guide and the particle axes that were chosen for them. Holds no particles."""

    model: Program
    guide: GuideProgram
    structure: Structure
    layout: Layout
    denominator: str = "mixture"

    @property
    def graph(self) -> Graph:
        return self.structure.graph

    @property
    def num_runs(self) -> int:
        """How often the guide runs: the largest K."""
        return max((a.size for a in self.layout.axes if not a.enumerated), default=1)

    def coordinates(self, latent: str) -> int:
        """How many numbers of a latent share a particle: those in one element of the plates over which its axis has an index of its own."""
        elements = math.prod(self.layout.plan.size[p] for p in self.layout.axis_of(latent).scope)
        return math.prod(self.graph.latent(latent).shape) // elements

    @property
    def entries(self) -> int:
        """Numbers in one set of particles: values, as drawn and as used, and weights."""
        size = self.layout.plan.size
        weights = sum(math.prod(size[p] for p in a.scope) * a.size for a in self.layout.axes)
        return weights + 2 * sum(math.prod(z.shape) * self.layout.axis_of(z.name).size for z in self.graph.latents)

    @property
    def numbers(self) -> dict[str, Any]:
        """The arrays that the traced programs close over; pass them as arguments into compiled functions."""
        return {
            "model": self.model.consts,
            "density": self.guide.density.consts,
            "sampler": self.guide.sampler_consts,
        }


@dataclass(frozen=True)
class Draws:
    """One set of particles.

    Attributes:
        values: [K, *shape] for every latent of the model.
        runs: [runs, *shape] for every guide site, auxiliary ones included.
        subsample: indices of subsampled plates.
        unsound: by factor, whether any of its log densities was none (see `weigh_noticing`); empty until they are weighed.
    """

    values: dict[str, Any]
    runs: dict[str, Any]
    subsample: dict[str, Any]
    unsound: dict[str, Any] = field(default_factory=dict)


jax.tree_util.register_dataclass(Draws, ["values", "runs", "subsample", "unsound"], [])


def build_problem(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping,
    params: Any,
    request: Request,
    denominator: str = "mixture",
) -> Problem:
    """Trace model and guide, find the structure, choose axes and plan.

    Args:
        params: values (or tracers) of `numpyro.param` sites in model and guide.

    Raises:
        KaynError: a name in `params` belongs to no param site, or its value cannot be that site's.
    """
    if denominator not in DENOMINATORS:
        raise GuideError(f"denominator {denominator!r} is unknown; use one of {', '.join(map(repr, DENOMINATORS))}")
    params = parameter_values(params)
    sites = inspect_sites(model, args, kwargs, params)
    refuse_reserved(sites)
    traced_guide = particles.trace_guide(guide, args, kwargs, params, sites)
    _refuse_unknown(params, [*sites.values(), *traced_guide.density.sites.values()])
    # a latent that the guide draws is sampled, even if the model would allow to sum it out
    drawn = set(traced_guide.names)
    sites = {n: replace(s, enumerate=False, support_size=None) if n in drawn else s for n, s in sites.items()}
    sites = share_fixed(sites, traced_guide.density.sites)
    traced, structure = read_model(model, args, kwargs, params, sites)
    warn_if_nothing_observed(traced, model, args, kwargs)
    _refuse_unreachable(traced_guide, traced, params)
    mixed = particles.parent_plates(traced_guide, structure.graph) if denominator == "mixture" else None
    parameters = sum(math.prod(jnp.shape(v)) for v in jax.tree.leaves(params))
    layout = choose_layout(structure, request, traced_guide.constraints, mixed, parameters)
    problem = Problem(traced, traced_guide, structure, layout, denominator)
    set_rows(problem, problem.numbers, params)  # which refuses those that differ
    warn_of_strangers(traced, traced_guide.density)
    return problem


def refuse_unknown_params(
    model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Refuse values for parameters that neither a model nor its guide has, or that cannot be theirs.

    Raises:
        KaynError: there is one.
    """
    if params:
        programs = (model, guide)
        _refuse_unknown(params, [s for f in programs for s in inspect_sites(f, args, kwargs, params).values()])


def _refuse_unknown(params: Mapping[str, Any], sites: Iterable[Site]) -> None:
    known = {s.name for s in sites if s.kind in ("param", "mutable")}
    unknown = [n for n in params if n not in known]
    if unknown:
        raise KaynError(
            f"params has a value for {unknown[0]!r}, but neither model nor guide has such a numpyro.param site; "
            f"they have {sorted(known)}"
        )


def _refuse_unreachable(guide: GuideProgram, model: Program, params: Mapping) -> None:
    def known(program: Program) -> list[Any]:
        indices = {n: np.arange(program.sites[n].shape[0], dtype=np.int32) for n in program.subsamples}
        return [*program.consts, *program.leaves({}, params, indices)]

    @cache
    def draw() -> dict[str, Any]:
        indices = {n: np.arange(guide.density.sites[n].shape[0], dtype=np.int32) for n in guide.density.subsamples}
        return particles.draw_runs(guide, guide.sampler_consts, as_key(0), DRAWS, params, indices)

    inputs = (known(guide.density), known(model))
    refuse_smaller_ends(guide.density, model, inputs, draw)
    refuse_values_never_drawn(guide.density, model, inputs, draw)


def read_model(
    model: Callable, args: tuple, kwargs: Mapping, params: Mapping, sites: Mapping[str, Site]
) -> tuple[Program, Structure]:
    """Trace a model and find its structure, which refuses data and indices that are out of range."""
    traced = with_absences(trace_program(model, args, kwargs, params, sites))
    for why in traced.not_markov:
        warnings.warn(f"{why}; its particles are whole paths", StructureWarning, stacklevel=2)
    latents, subsamples = [None] * len(traced.inputs), [None] * len(traced.subsamples)
    structure = discover(traced, [*traced.consts, *latents, *jax.tree.leaves(params), *subsamples])
    refuse_missing_groups(structure.nodes.wrapped, model, args, kwargs)
    refuse_missing(traced, model, args, kwargs, params)
    return traced, structure


def refuse_broken_arguments(model: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Read a model for its data alone if any argument holds NaN or infinite values: within a compiled loss they cannot be looked at.

    Raises:
        DataError: they reach a density.
    """
    if any(map(is_broken, jax.tree.leaves((args, kwargs)))):
        read_model(model, args, kwargs, params, inspect_sites(model, args, kwargs, params))


def model_inputs(problem: Problem, numbers: Mapping, params: Any, subsample: Mapping) -> list[Any]:
    """Constants and inputs of the model's jaxpr, None in the places of latents."""
    return [*numbers["model"], *problem.model.leaves({}, dict(params or {}), subsample)]


def guide_inputs(problem: Problem, numbers: Mapping, params: Any, subsample: Mapping) -> list[Any]:
    return [*numbers["density"], *problem.guide.density.leaves({}, dict(params or {}), subsample)]


def link_index(problem: Problem, inputs: Sequence[Any]) -> Index:
    """Looks up index vectors of links, computing each once."""
    memo: dict[int, Any] = {}
    return lambda key: problem.structure.index(key, inputs, memo)


def draw_particles(problem: Problem, numbers: Mapping, key: Any, params: Any, rows_key: Any = None) -> Draws:
    """Run the guide and take the particles of every axis.

    Args:
        rows_key: chooses the rows of subsampled plates, for several sets of particles on the same rows; from `key` if None.
    """
    key, subsample = as_key(key), {}
    if problem.model.subsamples or problem.guide.density.subsamples:
        key, own_key = jax.random.split(key)
        subsample = _draw_subsample(problem, numbers, own_key if rows_key is None else rows_key, params)
    params = dict(params or {})
    runs = particles.draw_runs(problem.guide, numbers["sampler"], key, problem.num_runs, params, subsample)
    return draws_from_runs(problem, numbers, params, _stored(runs, key), subsample)


def _stored(runs: dict[str, Any], key: Any) -> dict[str, Any]:
    """The same values, divided by a one that compilers cannot see through.

    They fuse cheap arithmetic into whatever uses it, and would compute a draw anew for every combination of particles it
    appears in (XLA drops optimisation barriers before it fuses, on CPUs). Divisions count as dear and are computed once.
    """
    one = 1.0 + 0.0 * jnp.sum(jax.random.key_data(key)).astype(float)
    return {n: v / one.astype(v.dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for n, v in runs.items()}


def draws_from_runs(
    problem: Problem, numbers: Mapping, params: Any, runs: dict[str, Any], subsample: dict[str, Any]
) -> Draws:
    inputs = model_inputs(problem, numbers, params, subsample)
    enumerated = [n for a in problem.layout.axes if a.enumerated for n in a.latents]
    supports = particles.supports(problem.model, enumerated, inputs)
    values = particles.axis_particles(problem.graph, problem.layout, runs, supports)
    return Draws(
        problem.model.with_aliases(values, leading=1), problem.guide.density.with_aliases(runs, leading=1), subsample
    )


def _draw_subsample(problem: Problem, numbers: Mapping, key: Any, params: Any) -> dict[str, Any]:
    plates = {n: problem.model.sites[n] for n in problem.model.subsamples}
    plates |= {n: problem.guide.density.sites[n] for n in problem.guide.density.subsamples}
    keys = jax.random.split(key, len(plates))
    drawn = {
        n: jax.random.choice(k, s.batch_shape[0], s.shape, replace=False).astype(jnp.int32)
        for k, (n, s) in zip(keys, sorted(plates.items()), strict=True)
        if not s.fixed
    }
    return drawn | set_rows(problem, numbers, params)


def set_rows(problem: Problem, numbers: Mapping, params: Any) -> dict[str, Any]:
    """Indices of subsampled plates that are not drawn, see `kayn.fixed`."""
    guide = problem.guide.density
    return fixed_rows(
        (problem.model, model_inputs(problem, numbers, params, {})), (guide, guide_inputs(problem, numbers, params, {}))
    )


def proposal_terms(problem: Problem, numbers: Mapping, draws: Draws, params: Any) -> dict[str, Any]:
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
            log_q = particles.log_density(
                problem.guide, problem.graph, axis, draws.runs, inputs, absent, problem.denominator
            )
            out[proposal_name(axis)] = factors.sound(-log_q)
    return out


def _averaged(problem: Problem, axis: Axis, absent: Mapping[str, Any]) -> Any:
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
    problem: Problem, numbers: Mapping, draws: Draws, params: Any, keep: str | None = None
) -> dict[int, Any]:
    """Log factors of the model by slot of the plan, rows already multiplied out, but for a plate to keep; queries are zero.

    Factors with the axis of a sliced variable are made part by part, when the contraction asks for them. Entries that are no log
    densities have no weight.
    """
    return model_slots_noticing(problem, numbers, draws, params, keep)[0]


def model_slots_noticing(
    problem: Problem, numbers: Mapping, draws: Draws, params: Any, keep: str | None = None
) -> tuple[dict[int, Any], dict[str, Any]]:
    """As `model_slots`, and by factor whether any of its entries was +inf.

    Factors that are made part by part are left out, since nothing is known of them yet.
    """
    slots = _model_slots(problem, numbers, draws, params, keep)
    plan, unsound = problem.layout.plan, {}
    for slot, term in enumerate(plan.terms):
        if term.name in problem.model.outputs and slot not in plan.made_in_parts:
            unsound[term.name] = factors.is_unsound(slots[settled_slot(plan, slot, keep)[1]])
    return {s: a if isinstance(a, jax.tree_util.Partial) else factors.sound(a) for s, a in slots.items()}, unsound


def _model_slots(
    problem: Problem, numbers: Mapping, draws: Draws, params: Any, keep: str | None = None
) -> dict[int, Any]:
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    index = link_index(problem, inputs)
    plan, layout = problem.layout.plan, problem.layout
    parts, queries = plan.made_in_parts, {o.name for o in problem.graph.outputs if o.kind is Kind.VALUE}
    slots = {}
    for slot, term in enumerate(plan.terms):
        if term.name in problem.model.outputs:
            output, axes = problem.graph.output(term.name), layout.axes_of(term)
            if slot in parts:
                slots[slot] = _made_by_part(problem, parts[slot], slot, output, axes, draws.values, inputs, index)
            else:
                steps, settled = settled_slot(plan, slot, keep)
                slots[settled] = products.evaluate(
                    problem.model, term.name, output, axes, draws.values, inputs, plan, steps, index
                )
        elif term.name in queries:
            slots[slot] = jnp.zeros([plan.size[a] for a in term.axes], _float_dtype())
    return slots


def _made_by_part(
    problem: Problem,
    step: Sliced,
    slot: int,
    output: Output,
    axes: Sequence[Axis],
    values: Mapping[str, Any],
    inputs: Sequence[Any],
    index: Index,
) -> Any:
    """A factor as a function of the number of the first particle of a part."""
    body = step.body
    steps, _ = settled_slot(body, step.sources.index(slot))
    small = [replace(a, size=step.size) if a.name == step.axis else a for a in axes]
    cut = {n for a in axes if a.name == step.axis for n in a.latents}

    def make(values: Mapping[str, Any], inputs: Sequence[Any], links: Mapping[Any, Any], first: Any) -> Any:
        mine = {n: jax.lax.dynamic_slice_in_dim(v, first, step.size) if n in cut else v for n, v in values.items()}
        return factors.sound(
            products.evaluate(problem.model, output.name, output, small, mine, inputs, body, steps, links.__getitem__)
        )

    links = look_up((link for product in steps for link in product.links), index)
    return jax.tree_util.Partial(make, values, inputs, links)


def weigh(problem: Problem, numbers: Mapping, draws: Draws, params: Any) -> dict[int, Any]:
    """All log factors by slot of the plan: the model's, and minus the proposal's. Entries that are no log densities have no weight."""
    return weigh_noticing(problem, numbers, draws, params)[0]


def weigh_noticing(
    problem: Problem, numbers: Mapping, draws: Draws, params: Any
) -> tuple[dict[int, Any], dict[str, Any]]:
    """As `weigh`, and by factor whether any of its entries was no log density: +inf, or for a proposal, at a particle of its own, infinite.

    Factors that are made part by part are left out, since nothing is known of them yet.
    """
    terms = proposal_terms(problem, numbers, draws, params)
    slots, unsound = model_slots_noticing(problem, numbers, draws, params)
    own = {name: jnp.any(jnp.isinf(array)) for name, array in terms.items()}
    return slots | {s: factors.sound(a) for s, a in proposal_slots(problem, terms).items()}, {**own, **unsound}


def proposal_slots(problem: Problem, terms: Mapping[str, Any]) -> dict[int, Any]:
    names = [t.name for t in problem.layout.plan.terms]
    return {names.index(name): array for name, array in terms.items()}


def log_evidence(problem: Problem, numbers: Mapping, slots: Mapping[int, Any], params: Any, subsample: Mapping) -> Any:
    """log Z: the log of the average weight over all particle combinations. A scalar, in nats."""
    index = link_index(problem, model_inputs(problem, numbers, params, subsample))
    return log_contract(problem.layout.plan, slots, index)


def deterministic_values(problem: Problem, latents: Mapping[str, Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """Deterministic sites for draws of the latents: [S, *shape] from [S, *shape] of every latent."""
    program = problem.model
    names = [n for n, s in program.sites.items() if s.kind == "deterministic"]
    if not names:
        return {}
    run, used = slice_outputs(program.jaxpr, [program.outputs.index(VALUE + n) for n in names])
    position = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}

    def one(values: Mapping[str, Any]) -> list[Any]:
        return run(*(values[position[i]] if i in position else inputs[i] for i in used))

    return dict(zip(names, jax.vmap(one)(program.with_aliases(latents, leading=1)), strict=True))


def _float_dtype() -> Any:
    return jnp.result_type(float)
