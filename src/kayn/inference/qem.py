"""QEM: fit a factorised guide by damped moment matching, without gradients.

E step: particles from the current guide, weighed in all combinations, give the posterior mean of every site's
sufficient statistics. M step: the guide's mean parameters move a little towards these (Heap, Bowyer & Aitchison,
Massively parallel expectation maximization for approximate posteriors, 2025). The step does not depend on how model or
guide are parameterised. Parameters of the model (`numpyro.param`) stay as they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.minibatches import warn_of_averages
from kayn.axes.request import TARGET_ELEMENTS, make_request
from kayn.errors import KaynError
from kayn.evidence.as_drawn import inspected_as_drawn
from kayn.evidence.dataless import keep_priors
from kayn.evidence.draws import Draws
from kayn.evidence.joint_guide import asked_again, joint_guide
from kayn.evidence.problem import Problem, build_problem, refuse_unknown_params
from kayn.evidence.soundness import warn_of_steps
from kayn.evidence.unguided import inspected_for
from kayn.guides.factorised import FactorisedGuide, Unstarted
from kayn.inference import mstep
from kayn.inference.arguments import same
from kayn.inference.ascent import Gradients
from kayn.inference.beginning import CHUNK, Start, begun_at
from kayn.inference.mstep import LeastSize, Rate, Schedule, Weights, default_rate
from kayn.inference.qem_state import QEMResult, QEMState
from kayn.inference.qem_step import Step
from kayn.inference.stopping import Nearer
from kayn.inference.together import Block, blocks, refuse_dependence, wider_by
from kayn.particles.guide_program import trace_guide
from kayn.programs.sites import Inspected
from kayn.programs.tables import as_arguments
from kayn.support.arrays import Array, KeyArray, PyTree, concatenated
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.names import RESERVED, parameter
from kayn.support.options import (
    Couple,
    Drawing,
    Elements,
    Groups,
    Guide,
    Key,
    Memory,
    Model,
    Params,
    Particles,
    Strategy,
)
from kayn.support.progress import progress_bar
from kayn.support.validate import Count, NonNegative, Rule, checked
from kayn.xla.compilation import is_traced
from kayn.xla.jit import QuickJit

KEPT_BYTES = 2**28
"""Particles of a whole chunk are kept if they fit; they serve as posterior replicates without another compilation."""

State = Annotated[
    QEMState, Rule("the state that QEM.init(rng_key, *args) gives; call it before update, get_params or advance")
]


class QEM:
    """Damped moment matching of a factorised guide, in the manner of `numpyro.infer.SVI`.

    Args:
        model: an ordinary NumPyro model.
        guide: None for a Normal in unconstrained space on every latent; or a NumPyro guide with independent sites of
            supported families, whose values at the start are taken from it.
        num_particles, strategy, groups, couple, target_elements, memory: as in `kayn.Importance`.
        rate: eta in (0, 1], a number or a function of the step. A latent whose effective sample size is below 5, in the
            mean over plates, takes a smaller step in proportion: it knows as much less about where to go, and steps of
            mere noise add up.
        overdispersion: particles are drawn with `1 + overdispersion / sqrt(D)` times the variance of a Normal guide, D
            the number of coordinates that share a particle. Weights correct for it. A proposal that is no wider than
            the guide hardly sees the posterior's tails, and so keeps a guide too narrow.
        min_ess: weights of a latent are tempered until their effective sample size is at least this number. This only
            acts while the guide is far from the posterior, where otherwise one particle would take all the weight and
            the guide's spread would collapse; the larger the number, the more steps the guide takes to get there.

    Attributes:
        draws: how particles are drawn, as the request says.
    """

    draws: ClassVar[Drawing] = "even"

    @checked()
    def __init__(
        self,
        model: Model,
        guide: Guide | None = None,
        num_particles: Particles | None = None,
        strategy: Strategy = "parallel",
        *,
        rate: Rate = default_rate,
        min_ess: LeastSize = 2.0,
        overdispersion: NonNegative = 0.5,
        groups: Groups = (),
        couple: Couple = None,
        target_elements: Elements = TARGET_ELEMENTS,
        memory: Memory = None,
    ):
        self.model = model
        self.user_guide = guide
        self.rate: Schedule = rate if callable(rate) else lambda step: rate
        self.min_ess = min_ess
        self.overdispersion = overdispersion
        self.request = make_request(num_particles, strategy, groups, couple, target_elements, memory, draws=self.draws)
        self.asked = self.request
        self.guide: FactorisedGuide | None = None
        self.problem: Problem | None = None
        self.blocks: tuple[Block, ...] = ()
        self.model_params: dict[str, Array] = {}
        self._begun: tuple[Any, Any] = (None, None)
        self._gradients: Gradients | None = None

    @checked()
    def init(self, rng_key: Key, *args: Any, params: Params = None, **kwargs: Any) -> QEMState:
        """Read the model, prepare the guide and start from its initial values.

        Raises:
            GuideError: a guide site is in no supported family, or guide sites depend on each other.
        """
        return self.start(as_key(rng_key), args, kwargs, dict(params or {}), "prior")

    def start(self, key: KeyArray, args: tuple, kwargs: Mapping, params: dict[str, PyTree], start: Start) -> QEMState:
        """As `init`, which starts from the prior; kayn's own guide may by gradients, any from a known state."""
        args, kwargs, _ = as_arguments(self.model, args, kwargs)
        inspected = inspected_for(self.user_guide, self.model, args, kwargs, params, self.request)
        begun = Unstarted.of_guide(self.user_guide, inspected, key)
        self.guide, self.asked, begins = begun.guide, self.request, begun.guide.start
        # those of kayn's own guide count from when it is known which coordinates are joint
        early = {n: v for n, v in params.items() if not n.startswith(RESERVED)}
        self.model_params = {n: v for n, v in early.items() if n not in begins}
        self.problem = self._read(self.guide, {**begins, **early}, inspected)
        if self.user_guide is not None and not isinstance(self.user_guide, FactorisedGuide):
            refuse_dependence(trace_guide(self.user_guide, args, kwargs, params, inspected.sites))
        if self.user_guide is None:
            self.problem, self.guide = keep_priors(
                self.problem, self.guide, inspected.fn, lambda g: self._read(g, {**g.start, **early}, inspected)
            )
            self.problem, self.guide = joint_guide(self.problem, self.guide, inspected, self.request)
            self.asked = asked_again(self.request, self.problem, self.guide)
            begun = replace(begun, guide=self.guide)
        if len(early) < len(params):
            refuse_unknown_params(self.model, self.guide, args, kwargs, params)
        warn_of_averages(self.problem.graph, self.problem.model, "QEM")
        self.blocks = blocks(self.problem, self.guide.sites, self.widening(self.overdispersion))
        self._arguments = (args, kwargs)
        steps = self._steps(self.problem)
        self._advance = QuickJit(partial(steps.several, self.keeps_particles()), (3,))
        self._parameters = QuickJit(lambda moments: {b.name: b.parameters(moments[b.name]) for b in self.blocks})
        if start != "known":  # only types matter here: it is done while the prior to start from is being compiled
            steps.one.trace(self.problem.numbers, self._first(params, key), 1.0)
        self.guide = begun.started()
        gradients = Gradients(inspected, early, self.problem) if start == "gradients" else None
        near = None
        if gradients is not None and gradients.pay(self.guide):
            near, gradients = gradients.lead(self.guide), None
        self._gradients = gradients  # that are left to ask
        chosen, state, taken = begun_at(
            [*([] if near is None else [near]), *self.guide.starts[: 1 if start == "known" else None]],
            lambda own: self._first({**own, **params}, key, own is near),
            self._chunk,
            lambda own, sizes: own is near and mstep.judged(self._problem(), sizes, self.min_ess).even,
        )
        self.guide, self._begun = self.guide.started_at(chosen), (state, taken)
        return state

    def _steps(self, problem: Problem) -> Step:
        return Step(problem, self.blocks, self.rate, self.min_ess, self.get_proposal)

    def _read(self, guide: Any, params: Mapping, inspected: Inspected) -> Problem:
        args, kwargs = inspected.args, inspected.kwargs
        return build_problem(self.model, guide, args, kwargs, params, self.asked, inspected=inspected)

    @checked()
    def update(self, state: State, *args: Any, **kwargs: Any) -> tuple[QEMState, Array]:
        """One step: the new state, and the log evidence under the old guide, a scalar in nats.

        Arguments that differ from those of `init`, such as another minibatch, have the model read again; wrap the call
        in `jax.jit` then. Without arguments those of `init` are used.
        """
        self._problem()
        args, kwargs, _ = as_arguments(self.model, args, kwargs)
        if not (args or kwargs) or same((args, kwargs), self._arguments):
            state, log_z = self.advance(state, 1)
            return state, log_z[0]
        params = self.get_params(state)
        inspected = inspected_as_drawn(self.model, self.guide, args, kwargs, params)
        problem = self._read(self._guide(), params, inspected)
        state, (log_z, *_) = self._steps(problem).taken(problem.numbers, state)
        return state, log_z

    @checked()
    def get_params(self, state: State) -> dict[str, Array]:
        """Values of the guide's `numpyro.param` sites, and those of the model that were given."""
        return self._named(state, 0)

    @checked()
    def get_proposal(self, state: State) -> dict[str, Array]:
        """As `get_params`, of the wider guide that particles are drawn from."""
        return self._named(state, 1)

    def _named(self, state: QEMState, which: int) -> dict[str, Array]:
        self._problem()
        found = self._parameters(state.moments)
        traced = is_traced(found)
        # cut into sites without compiling anything, unless that is part of a larger program
        found = found if traced else jax.tree.map(np.asarray, found)
        by_site = {n: p for b in self.blocks for n, p in b.by_site(found[b.name][which]).items()}
        params = {parameter(n, p): v for n, own in by_site.items() for p, v in own.items()}
        return {**self.model_params, **(params if traced else jax.device_put(params))}

    def _first(self, params: Mapping[str, PyTree], key: KeyArray, known: bool = False) -> QEMState:
        """The state of the guide with these parameters, or else those it starts from; `known` are those whose
        covariances are worth as much as averages over many steps."""
        guide = self._guide()
        by_site = guide.split({**guide.start, **params})
        moments = {b.name: dict(b.moments(by_site)) for b in self.blocks}
        ahead = {b.name: np.float32(mstep.steps_ahead(b, moments[b.name]) if known else 0) for b in self.blocks}
        return QEMState(moments, np.int32(0), key, ahead)

    def widening(self, overdispersion: float) -> dict[str, float]:
        """Factors on the variance of every site's proposal."""
        problem = self._problem()
        shared = {s.name: problem.together(problem.layout.axis_of(s.name)) for s in self._guide().sites}
        return {name: wider_by(overdispersion, number) for name, number in shared.items()}

    @checked()
    def run(
        self,
        rng_key: Key,
        num_steps: Count,
        *args: Any,
        params: Params = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> QEMResult:
        """Fit for a fixed number of steps."""
        state = self.init(rng_key, *args, params=params, **kwargs)
        parts: list[tuple[Any, list[Any]]] = []
        with progress_bar(num_steps, progress) as show:
            for done in range(0, num_steps, CHUNK):
                count = min(CHUNK, num_steps - done)
                state, (log_z, _, *kept) = self._advance(self._problem().numbers, state, 1.0, count)
                parts.append((log_z, [draws.unsound for draws in kept[1:]]))
                if not is_traced(log_z):
                    show(done + count, float(log_z.mean()))
        warn_of_steps([u for _, noticed in parts for u in noticed], self._problem().model.sites)
        return QEMResult(self.get_params(state), self._guide(), state, jnp.concatenate([p[0] for p in parts]))

    @checked()
    def advance(self, state: State, count: Count) -> tuple[QEMState, Array]:
        """Several steps in one compiled loop: the state, and log Z of every step [count]."""
        state, log_z, _ = self.advance_noticing(state, count)
        return state, log_z

    def advance_noticing(self, state: QEMState, count: int) -> tuple[QEMState, Array, Weights]:
        """As `advance`, and what the weights of these steps say of the guide.

        The first steps are not taken again where they chose between starts.
        """
        begun, taken = self._begun
        first = taken if state is begun and count == CHUNK else None
        state, log_z, sizes = first or self._chunk(state, count)
        return state, log_z, mstep.judged(self._problem(), sizes, self.min_ess)

    def nearer(self) -> Nearer | None:
        """Where gradients lead from a state, if they have not been asked where to begin."""
        gradients = self._gradients
        if gradients is None:
            return None

        def of(state: QEMState) -> QEMState | None:
            found = gradients.lead(self._guide().started_at(self.get_params(state)))
            return None if found is None else jax.device_put(self._first(found, state.rng_key, True))

        return Nearer(of, self._problem().layout.operations)

    def _chunk(self, state: QEMState, count: int = CHUNK) -> tuple[QEMState, Array, dict[str, Array]]:
        """The state after some steps, and their log Z and effective numbers of particles."""
        state, (log_z, sizes, *_) = self._advance(self._problem().numbers, state, 1.0, count)
        return state, log_z, sizes

    @checked()
    def replicates(self, state: State, count: Count) -> tuple[Array, dict[str, Array], Draws] | None:
        """`count` sets of particles from the guide as it is, weighed: log Z, axis weights, particles,
        each with a leading count.

        This is the compiled loop of `advance` at rate zero. None when particles are too large to be kept.
        """
        if not self.keeps_particles():
            return None
        refuse_too_many("num_replicates", count, self._problem().entries)
        parts = []
        for _ in range(-(-count // CHUNK)):
            state, kept = self._advance(self._problem().numbers, state, 0.0, CHUNK)
            parts.append((kept[0], *kept[2:]))
        if is_traced(parts):
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)
        return jax.tree.map(lambda x: x[:count], concatenated(parts))

    def keeps_particles(self) -> bool:
        """Whether particles of a chunk of steps are small enough to be kept."""
        graph, layout = self._problem().graph, self._problem().layout
        entries = sum(math.prod(z.shape) * layout.axis_of(z.name).size for z in graph.latents)
        return 3 * 8 * entries * CHUNK < KEPT_BYTES

    def _problem(self) -> Problem:
        if self.problem is None:
            raise KaynError("call QEM.init(rng_key, *args) before update, get_params or advance")
        return self.problem

    def _guide(self) -> FactorisedGuide:
        self._problem()
        assert self.guide is not None
        return self.guide
