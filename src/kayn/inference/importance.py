"""Importance sampling with massively parallel particles: from a guide and its parameters to a `Posterior`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import jax

from kayn.axes.request import TARGET_ELEMENTS, Request, make_request
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.queries import weighted_draws
from kayn.evidence.unguided import inspected_for
from kayn.guides.factorised import Unstarted
from kayn.guides.start import best_start
from kayn.posterior.call import Call, Origin
from kayn.posterior.poor_fit import warn_if_poor
from kayn.posterior.posterior import Posterior
from kayn.programs.sites import Inspected
from kayn.programs.tables import Labels, as_arguments
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.memory import refuse_too_many
from kayn.support.options import (
    Couple,
    Denominator,
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
from kayn.support.validate import Count, checked
from kayn.xla.jit import QuickJit


class Importance:
    """Weighs K particles of every latent against each other in all combinations (Bowyer, Heap & Aitchison, UAI 2024).

    Args:
        model: an ordinary NumPyro model.
        guide: a NumPyro guide for it; None means a factorised guide with default parameters.
        num_particles: K, one number or a mapping from latent name (and "" for the rest).
        strategy: "parallel", "global" or "local".
        num_replicates: independent sets of particles, pooled by their evidence; their spread gives error bars.
        groups: latents that share a particle axis.
        couple: plates over which a latent gives up its own particle index.
        denominator: "mixture" or "paired", for guides whose sites depend on each other.
        target_elements: where an array would have more entries, latents without plates are put on one axis.
        memory: bytes that a step may take, or a text such as "2GB"; by default half of the device's. Factors over many
            rows are always evaluated in parts; what would take more is made smaller by putting any latents on one axis.

    Attributes:
        draws: how particles are drawn, as the request says.
    """

    draws: ClassVar[Drawing] = "even"

    @checked()
    def __init__(
        self,
        model: Model,
        guide: Guide | None = None,
        num_particles: Particles = 100,
        strategy: Strategy = "parallel",
        *,
        num_replicates: Count = 1,
        groups: Groups = (),
        couple: Couple = None,
        denominator: Denominator = "mixture",
        target_elements: Elements = TARGET_ELEMENTS,
        memory: Memory = None,
    ):
        self.model = model
        self.guide = guide
        self.num_replicates = num_replicates
        self.denominator = denominator
        self.request = make_request(num_particles, strategy, groups, couple, target_elements, memory, draws=self.draws)

    @checked()
    def run(self, rng_key: Key, params: Params, *args: Any, **kwargs: Any) -> Posterior:
        """Draw particles and weigh them.

        Works under `jax.jit` and `jax.vmap` over keys. Outside of them it warns (`PoorFitWarning`) about latents
        whose effective sample size or Pareto k-hat is poor.

        Args:
            rng_key: a key or an int seed.
            params: values of `numpyro.param` sites in model and guide, as `SVI.get_params` gives them.
        """
        params = dict(params or {})
        args, kwargs, labels = as_arguments(self.model, args, kwargs)
        call = self._call(args, kwargs, labels)
        inspected, guide = self._begun(args, kwargs, params)
        starts = guide.starts if self.guide is None else [{}]
        if len(starts) == 1:
            problem = self._problem(guide, params, inspected)
            return Weigher(problem, call).run(rng_key, params, self.num_replicates)
        problem = self._problem(guide, {**starts[0], **params}, inspected)
        weigher = Weigher(problem, call)
        # with a key of its own, so that the evidence stays unbiased
        look = jax.random.fold_in(rng_key, 2**32 - 2)
        chosen = best_start(starts, lambda start: weigher.weighed(look, {**start, **params}, self.num_replicates)[0])
        return weigher.run(rng_key, {**chosen, **params}, self.num_replicates)

    @checked()
    def problem(self, params: Params, *args: Any, **kwargs: Any) -> Problem:
        """Structure, particle axes and plan for the model's arguments, the guide's Normal sites drawn evenly."""
        params = dict(params or {})
        args, kwargs, _ = as_arguments(self.model, args, kwargs)
        inspected, guide = self._begun(args, kwargs, params)
        return self._problem(guide, params, inspected)

    def _call(self, args: tuple, kwargs: Mapping, labels: Labels) -> Call:
        settings = {**asdict(self.request), "denominator": self.denominator}
        return Call(self.model, args, kwargs, Origin("importance", self.guide, settings), labels)

    def _begun(self, args: tuple, kwargs: Mapping, params: Mapping) -> tuple[Inspected, Any]:
        inspected = inspected_for(self.guide, self.model, args, kwargs, params, self.request)
        return inspected, Unstarted.of(inspected).started() if self.guide is None else self.guide

    def _problem(self, guide: Callable, params: Mapping[str, PyTree], inspected: Inspected) -> Problem:
        args, kwargs = inspected.args, inspected.kwargs
        return build_problem(self.model, guide, args, kwargs, params, self.request, self.denominator, inspected)


def rebuilt(call: Call, params: dict[str, PyTree]) -> Problem:
    """The problem of a posterior that `Importance` gave, built again from its origin."""
    assert call.origin is not None
    options = dict(call.origin.settings)
    made = Importance(call.model, call.origin.guide, denominator=options.pop("denominator"))
    made.request = Request(**options)
    return made.problem(params, *call.args, **call.kwargs)


def weighing(problem: Problem) -> QuickJit:
    """A program of the numbers of a problem, parameters and keys: log Z, weights of every axis and particles of each
    key."""
    return QuickJit(lambda numbers, params, keys: jax.lax.map(partial(weighted_draws, problem, numbers, params), keys))


class Weigher:
    """Draws and weighs particles for a problem that has been built, compiling once."""

    def __init__(self, problem: Problem, call: Call):
        self.problem, self.call = problem, call
        self._run = weighing(problem)

    def weighed(
        self, key: KeyArray, params: dict[str, PyTree], num_replicates: int
    ) -> tuple[Array, dict[str, Array], Draws]:
        """log Z, weights of every axis and particles, each with a leading dimension of replicates."""
        refuse_too_many("num_replicates", num_replicates, self.problem.entries)
        return self._run(self.problem.numbers, params, jax.random.split(key, num_replicates))

    def posterior(self, key: KeyArray, params: dict[str, PyTree], num_replicates: int) -> Posterior:
        """A posterior of `num_replicates` independent sets of particles, as it is.

        Args:
            key: of kayn's generator.
            params: values of all parameters of model and guide.
        """
        log_evidences, weights, draws = self.weighed(key, params, num_replicates)
        return Posterior(self.problem, self.call, self.problem.numbers, params, draws, log_evidences, weights)

    def run(self, key: KeyArray, params: dict[str, PyTree], num_replicates: int) -> Posterior:
        """The same; warns where it is poor."""
        posterior = self.posterior(key, params, num_replicates)
        warn_if_poor(posterior)
        return posterior
