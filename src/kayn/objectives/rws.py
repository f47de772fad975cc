"""Massively parallel reweighted wake-sleep: the updates of model and guide in one loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.minibatches import warn_of_averages
from kayn.axes.plan import plan_within
from kayn.axes.types import Axis, proposal_name
from kayn.contraction.plan import Stuck
from kayn.errors import GuideError, KaynError, StructureWarning, warn
from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import Problem, guide_inputs
from kayn.evidence.soundness import telling
from kayn.evidence.weights import proposal_terms, weigh_against
from kayn.factors.evaluate import evaluate
from kayn.factors.task import Operands, Task
from kayn.graph.discover import discover_output
from kayn.graph.types import MIXED, Output
from kayn.objectives.base import Call, MassivelyParallelELBO, only_gradient, sampled_axes
from kayn.objectives.defensive import Defensive
from kayn.objectives.sleep import Replace, sleep_loss
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.names import RESERVED
from kayn.support.options import Particles, Strategy
from kayn.support.validate import Count, NonNegative, Rule, checked

Share = Annotated[float, Rule("the base's share of the proposal, at least 0 and below 1", lambda s: 0 <= s < 1)]
Base = Annotated[
    Mapping[str, Any] | None,
    Rule(
        "probabilities by site, each between 0 and 1, or None",
        lambda base: all(map(_are_probabilities, (base or {}).values())),
    ),
]


class RWS(MassivelyParallelELBO):
    """Reweighted wake-sleep over all combinations of particles
    (Bornschein & Bengio, 2015; Heap, Leech & Aitchison, UAI 2023).

    The value is minus log Z. Its gradient in model parameters is that of -log Z with the particles fixed (wake-theta).
    In guide parameters it is a mixture of two: minus the posterior-weighted score of the guide,
    `- E_W sum_i grad log q_i(z_i)` (wake-phi), and minus the score of the guide on dreams, latents and data drawn from
    the model (sleep-phi). All are right for one minimiser, so one optimiser serves all parameters. Particles are never
    differentiated, so discrete latents need nothing special.

    WW is the default; WS is `wake_phi=0, sleep_phi=1`, with K = 1 the classical wake-sleep algorithm; both weights give
    WSW. Wake gradients are those of a self-normalised estimate, with a bias of order 1/K; the sleep gradient is
    unbiased, for data that the model makes.

    Args:
        phi: how guide sites with guide parents are trained in the wake phase. "conditional" (default) weighs
            `log q_i(z_i | parents)` with the joint weights of the latent and its parents; "mixture" trains the
            denominator, the mixture over all parents' particles, which learns marginals well but dependence slowly. The
            same for factorised guides.
        wake_phi, sleep_phi: weights of the two phases for the guide; at least one positive.
        defensive: delta in [0, 1): particles are drawn from `(1 - delta) q + delta base` and weighed accordingly, so
            that values that the guide has given up still come up (Le et al., UAI 2019). For Bernoulli and categorical
            sites.
        base: probabilities of `base` by site; uniform for the others.
        sleep_particles: dreams per step; K by default.
        replace: `(dream, *args, **kwargs) -> (args, kwargs)` puts dreamt data, a dictionary by observed site, in the
            place of the real. By default the argument that an observed site was given is found and replaced.
    """

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        phi: Literal["conditional", "mixture"] = "conditional",
        wake_phi: NonNegative = 1.0,
        sleep_phi: NonNegative = 0.0,
        defensive: Share = 0.0,
        base: Base = None,
        sleep_particles: Count | None = None,
        replace: Replace | None = None,
        **options: Any,
    ):
        if wake_phi + sleep_phi == 0:
            raise KaynError(
                f"wake_phi={wake_phi} and sleep_phi={sleep_phi} are the weights of the guide's two phases; give at "
                "least one a positive weight"
            )
        super().__init__(num_particles, strategy, **options)
        self.phi, self.wake_phi, self.sleep_phi = phi, wake_phi, sleep_phi
        self.defensive, self.base = defensive, dict(base or {})
        most = self.request.num_particles
        self.sleep_particles = sleep_particles or (most if isinstance(most, int) else max(k for _, k in most))
        self.replace = replace

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats; its gradient is that of the wake phase plus that of the sleep phase.

        Raises:
            GuideError: `defensive=` or `base=` finds no Bernoulli or categorical site.
        """
        wake_key, sleep_key = jax.random.split(rng_key) if self.sleep_phi else (rng_key, None)
        problem = proposal = self.problem(call, params)
        if self.wake_phi:
            warn_of_averages(problem.graph, problem.model, "RWS")
        if self.defensive:
            guide = Defensive(call.guide, self.defensive, self.base)
            proposal = self.problem(replace(call, guide=guide), params)
            if unknown := set(self.base) - guide.mixed:
                raise GuideError(
                    f"base= names {sorted(unknown)}, which are no Bernoulli or categorical sites of the guide; those "
                    f"are {sorted(guide.mixed)}"
                )
            if not guide.mixed:
                raise GuideError(
                    "defensive= is given, but the guide has no Bernoulli or categorical site to mix with a base; "
                    "leave it out"
                )
        loss = self._wake(problem, proposal, wake_key, params)
        if self.sleep_phi:
            dreams = sleep_loss(call, params, sleep_key, self.sleep_particles, self.replace)
            loss = loss + self.sleep_phi * only_gradient(dreams)
        return loss

    def _wake(self, problem: Problem, proposal: Problem, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z with particles of `proposal`, trained as those of `problem`."""
        numbers = problem.numbers
        draws = jax.lax.stop_gradient(draw_particles(proposal, proposal.numbers, rng_key, params))
        terms = proposal_terms(problem, numbers, draws, params)
        drawn = terms if proposal is problem else proposal_terms(proposal, proposal.numbers, draws, params)
        dependent = [a for a in sampled_axes(problem) if self.phi == "conditional" and _external_parents(problem, a)]
        extended, added = _with_conditionals(problem, numbers, draws, params, dependent, self.wake_phi)
        done = {proposal_name(a) for a in dependent} if added is not None else set()
        # minus a log density, which wake-phi wants to increase: its derivative is negated
        flipped = {
            name: jax.lax.stop_gradient(drawn[name]) - (0.0 if name in done else self.wake_phi * only_gradient(t))
            for name, t in terms.items()
        }
        return -telling(weigh_against(extended, numbers, draws, params, flipped)).log_evidence(added)


def _are_probabilities(values: Array) -> bool:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        return False
    return bool(((array >= 0) & (array <= 1)).all())


def _external_parents(problem: Problem, axis: Axis) -> list[str]:
    return [p for n in axis.latents for p in problem.guide.parents[n] if p not in axis.latents]


def _with_conditionals(
    problem: Problem, numbers: Mapping, draws: Draws, params: Mapping, axes: list[Axis], weight: float
) -> tuple[Problem, dict[int, Array] | None]:
    """The problem with zero-valued terms, the gradients of `log q_i(z_i | parents)`, and their arrays by slot."""
    if not axes:
        return problem, None
    guide, structure = problem.guide, problem.structure
    inputs = guide_inputs(problem, numbers, params, draws.subsample)
    found: dict[str, Output] = {}
    for name in (n for a in axes for n in a.latents):
        if any(p in guide.auxiliary for p in guide.parents[name]):
            return _fall_back(problem, f"guide site {name!r} depends on an auxiliary site")
        structure, output = discover_output(structure, guide.density, Part.DENSITY.of(name), inputs, inputs)
        if not _resolved(problem, output):
            return _fall_back(problem, f"guide site {name!r} mixes elements of its parents")
        found[f"{RESERVED}guide:{name}"] = output
    outputs = (replace(output, name=term) for term, output in found.items())
    graph = replace(structure.graph, outputs=(*structure.graph.outputs, *outputs))
    structure = replace(structure, graph=graph)
    try:
        plan = plan_within(structure, problem.layout.axes, graph.factors, problem.layout.memory_left)
    except Stuck:
        return _fall_back(problem, "the guide's dependences do not fit the model's factor graph")
    extended = replace(problem, structure=structure, layout=replace(problem.layout, plan=plan))
    names = [t.name for t in plan.terms]
    arrays = {}
    for term, output in found.items():
        slot = names.index(term)
        own = tuple(problem.layout.axes_of(plan.terms[slot]))
        log_q = evaluate(Task(output, own, plan, (), guide.density), Operands(draws.values, inputs))
        arrays[slot] = weight * only_gradient(jnp.where(jnp.isfinite(log_q), log_q, 0.0))
    return extended, arrays


def _resolved(problem: Problem, output: Output) -> bool:
    return all(read.of(plate) != MIXED for read in output.reads for plate in problem.layout.axis_of(read.latent).scope)


def _fall_back(problem: Problem, why: str) -> tuple[Problem, None]:
    warn(
        f"kayn.RWS: {why}; wake-phi uses the mixture density instead of the conditional one",
        StructureWarning,
    )
    return problem, None
