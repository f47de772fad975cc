"""Weighted particles of every latent, pooled over replicates, and what can be asked of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from kayn.errors import QueryError, StructureWarning, warn
from kayn.evidence.draws import Draws
from kayn.evidence.expectation import arguments, can_be_followed, of_deterministic, of_function, traced_function
from kayn.evidence.problem import Problem
from kayn.evidence.queries import latent_weights
from kayn.graph.types import Output
from kayn.posterior import computed, joint
from kayn.posterior.call import Call
from kayn.posterior.diagnostics import effective_sample_size, log_mean, log_mean_error, shares
from kayn.posterior.khat import pareto_khat
from kayn.programs.trace import Program
from kayn.support.arrays import Array, KeyArray, PyTree, local, namespace
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.names import in_model, unbounded
from kayn.support.options import Key, Name, Samples
from kayn.support.validate import checked
from kayn.xla.compilation import is_traced, seldom_options
from kayn.xla.fingerprint import fingerprint
from kayn.xla.jit import QuickJit

FALLBACK_DRAWS = 2000
"""Joint draws used for an expectation that has no small contraction."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Weighted particles of a model's latents.

    R independent replicates of the particles are pooled by their evidence (`diagnostics.shares`). Letters in shapes: R
    replicates, K particles of a latent's axis, P = R * K pooled particles, S draws.

    Attributes:
        problem: the traced model, guide, axes and plan.
        call: the model and its arguments.
        numbers: arrays that the traced programs close over.
        params: values of `numpyro.param` sites.
        draws: the particles, every array with a leading R.
        log_evidences: [R] log Z of every replicate, in nats.
        axis_weights: for every particle axis [R, *scope, K].
        widened: whether the particles are of a guide made wider on purpose, so that few of them weigh much.
    """

    problem: Problem
    call: Call
    numbers: dict[str, PyTree]
    params: dict[str, PyTree]
    draws: Draws
    log_evidences: Array
    axis_weights: dict[str, Array]
    widened: bool = field(default=False, kw_only=True)
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """Moments of deterministic sites that have been asked for."""
    chained: ClassVar[bool] = False
    """Whether particles are draws of chains, alike in weight, with nothing to be contracted."""

    @property
    def num_replicates(self) -> int:
        """R, the number of independent sets of particles."""
        return self.log_evidences.shape[0]

    @property
    def log_evidence(self) -> Array:
        """Estimate of log p(data), in nats: log of the mean of Z over replicates (Z is unbiased, so log Z errs low)."""
        return log_mean(self.log_evidences)

    @property
    def log_evidence_error(self) -> Array:
        """Monte Carlo standard error of `log_evidence` (delta method over replicates); NaN with one replicate."""
        return log_mean_error(self.log_evidences)

    @property
    def latent_names(self) -> tuple[str, ...]:
        """Names of all latents of the model."""
        return tuple(map(in_model, self.drawn_names))

    @property
    def drawn_names(self) -> tuple[str, ...]:
        """Of what has particles: latents, or what is drawn in their place (`kayn.programs.dependent_supports`)."""
        return self.problem.graph.latent_names

    @property
    def deterministic_names(self) -> tuple[str, ...]:
        """Names of the model's deterministic sites."""
        sites = self.problem.model.sites.items()
        return tuple(n for n, s in sites if s.kind == "deterministic" and unbounded(n) not in self.drawn_names)

    @property
    def particles(self) -> dict[str, Array]:
        """Pooled particles of every latent that has its own: [P, *shape], to be read with `weights`."""
        return {n: local(v).reshape((-1, *v.shape[2:])) for n, v in self.draws.values.items() if in_model(n) == n}

    @checked(QueryError)
    def weights(self, name: Name) -> Array:
        """Marginal posterior weights of a latent's particles: [P, *batch shape], summing to one over P.

        A latent that was coupled over a plate has equal weights along it. Source: Bowyer et al. (UAI 2024).
        """
        return self._pooled(self._latent(name))

    def _pooled(self, name: str) -> Array:
        own = self._weights(name)
        pooled = own * local(self._shares).reshape((-1, *(1,) * (own.ndim - 1)))
        return pooled.reshape((-1, *pooled.shape[2:]))

    @checked(QueryError)
    def ess(self, name: Name) -> Array:
        """Effective sample size of a latent's pooled particles: [*batch shape], between 0 and P."""
        return jnp.asarray(effective_sample_size(np.asarray(self._pooled(self._drawn(name)))))

    @checked(QueryError)
    def khat(self, name: Name) -> np.ndarray:
        """Pareto k-hat of a latent's weights: [*batch shape]; above 0.7 is unreliable, NaN of fewer than 25."""
        return pareto_khat(self._pooled(self._drawn(name)))

    @checked(QueryError)
    def mean(self, name: Name | None = None) -> Any:
        """Posterior mean of a latent or deterministic site: the site's shape. Without a name, by latent."""
        return self._each(name, lambda n: self._moments(n)[0])

    @checked(QueryError)
    def std(self, name: Name | None = None) -> Any:
        """Posterior standard deviation of a latent or deterministic site: the site's shape.
        Without a name, by latent."""
        return self._each(name, lambda n: self._moments(n)[1])

    @checked(QueryError)
    def expectation(self, function: Callable, *names: Name) -> Array:
        """Posterior expectation of `function(latent_1, latent_2, ...)` under the joint of these latents.

        `function` is written for one posterior sample. It is evaluated on exactly the particle axes it depends on,
        jointly: with `lambda mu, alpha: mu * alpha` for a scalar `mu` and `alpha: [J]` the result is E[mu * alpha_j]
        for every j. A function that mixes plate elements (`alpha.max()`) has no small contraction; it is estimated from
        joint draws instead, with a warning.

        Args:
            names: latents or deterministic sites, one for every argument of `function`;
                by default those that its arguments are called after.

        Returns:
            The expectation, in the shape of the function's result.

        Raises:
            QueryError: a name is unknown, or there are not as many names as arguments.
        """
        names = arguments(function, names)
        for name in names:
            self._known(name)
            self._refuse_mixed_rows(name)
        if can_be_followed(self.problem, names):
            found = self._of_function(function, names)
            if found is not None:
                return found
        return self._from_draws(
            lambda values: function(*(values[n] for n in names)), f"expectation over {', '.join(names)}"
        )

    @checked(QueryError)
    def covariance(self, first: Name, second: Name) -> Array:
        """Posterior covariance of two latents, elementwise after broadcasting."""
        # as arrays, since JAX writes numbers into programs, which would be another one for every posterior
        a, b = (jnp.expand_dims(self.mean(name), 0) for name in (first, second))
        return self.expectation(lambda x, y: (x - a[0]) * (y - b[0]), first, second)

    @checked(QueryError)
    def probabilities(self, name: Name) -> dict[Any, Array]:
        """Posterior probability of every value that a discrete latent takes among its particles:
        value -> [*shape of the site], element by element.

        Raises:
            QueryError: the latent is unknown or continuous, or its elements differ between replicates.
        """
        latent = self.problem.graph.latent(self._latent(name))
        self._refuse_mixed_rows(name)
        if not latent.discrete:
            raise QueryError(
                f"latent {name!r} is continuous; probabilities() is for discrete ones, use mean() and std()"
            )
        values, weights = self.particles[name], self.weights(name)
        weights = weights.reshape((*weights.shape, *(1,) * (values.ndim - weights.ndim)))
        return {v.item(): jnp.sum(jnp.where(values == v, weights, 0), 0) for v in np.unique(np.asarray(values))}

    @checked(QueryError)
    def sample(self, rng_key: Key = 0, num_samples: Samples = 1000) -> dict[str, Array]:
        """Exact joint draws from the weighted combinations of particles:
        [S, *shape] for every latent and deterministic site.

        Along a subsampled plate, the elements of a draw are those that its replicate holds (`draws.subsample`).
        """
        return {n: v for n, v in self._joint(rng_key, num_samples).values.items() if in_model(n) == n}

    def mode(self) -> dict[str, Array]:
        """The combination of particles with the largest weight, over all replicates:
        the site's shape for every latent."""
        for name in self.latent_names:
            self._refuse_mixed_rows(name)
        return self._jit("mode", lambda: partial(joint.mode, self.problem))(self.numbers, self.params, self.draws)

    def _joint(self, rng_key: KeyArray, num_samples: int, chains: int = 0, together: Any = None) -> joint.JointDraws:
        refuse_too_many("num_samples", num_samples, joint.entries(self.problem), QueryError)

        def compiled(size: int) -> Callable[..., joint.JointDraws]:
            run = self._jit(("sample", size), lambda: partial(joint.sample_block, self.problem, size))
            return joint.remembering(self._found, size, run)

        asked = (self.numbers, self.params, self.draws, jnp.asarray(self._shares), as_key(rng_key))
        return joint.sample(self.problem, num_samples, *asked, compiled, chains, together)

    def _each(self, name: str | None, answer: Callable[[str], Any]) -> Any:
        """An answer about one site; without its name, those about all latents, by name."""
        return {n: answer(n) for n in self.latent_names} if name is None else answer(name)

    def _refuse_mixed_rows(self, name: str) -> None:
        plate = joint.mixed_plate(self.problem, self.draws, name)
        if plate is not None:
            raise QueryError(
                f"{name!r} runs over plate {plate!r}, which is subsampled, and each of the {self.num_replicates} "
                "replicates holds other elements of it, so there is no one answer; take num_replicates=1, whose "
                "elements are draws.subsample, or the whole plate"
            )

    def _known(self, name: str) -> None:
        if name not in self.latent_names and name not in self.deterministic_names:
            what = "an observed site" if name in self.problem.model.sites else "no site of the model"
            raise QueryError(
                f"{name!r} is {what}; latents: {list(self.latent_names)}, deterministic sites: "
                f"{list(self.deterministic_names)}"
            )

    def _drawn(self, name: str) -> str:
        """What has the particles that a latent is made of, given those that its support depends on."""
        return unbounded(name) if unbounded(name) in self.drawn_names else self._latent(name)

    def _latent(self, name: str) -> str:
        self._known(name)
        if name not in self.drawn_names:
            what = ("a deterministic site", "a latent whose support depends on others")[name in self.latent_names]
            raise QueryError(
                f"{name!r} is {what} and has no particles of its own; use mean, std, sample or expectation"
            )
        return name

    @property
    def _shares(self) -> Array:
        """[R], summing to one: by evidence, unless that is of different rows."""
        log_z, xp = self.log_evidences, namespace(self.log_evidences)
        return shares(xp.where(log_z > -np.inf, xp.zeros_like(log_z), -np.inf) if self.draws.subsample else log_z)

    def _weights(self, name: str) -> Array:
        """[R, K, *batch shape]"""
        axis = self.problem.layout.axis_of(name).name
        weights = local(self.axis_weights[axis])
        if isinstance(weights, np.ndarray):
            return np.stack([latent_weights(self.problem, {axis: w}, name) for w in weights])
        return jax.vmap(lambda w: latent_weights(self.problem, {axis: w}, name))(weights)

    def _moments(self, name: str) -> tuple[Array, Array]:
        self._known(name)
        self._refuse_mixed_rows(name)
        own = self._own_values(name)
        if own is not None:
            mean, sd = computed.moments(*own)
            return jnp.asarray(mean), jnp.asarray(sd)
        found = self._of_deterministic(name)
        if found is not None:
            return found
        mean = self._from_draws(lambda values: values[name], name)
        square = self._from_draws(lambda values: (values[name] - mean) ** 2, name)
        return mean, jnp.sqrt(square)

    def _own_values(self, name: str) -> tuple[Array, Array] | None:
        """Values of a site [P, *shape] and their weights [P, *shape or ones]: of a latent's particles, or of what those
        of one axis make; None of sites that need several."""
        if name in self.drawn_names:
            values, weights = self.particles[name], self.weights(name)
            return values, weights.reshape((*weights.shape, *(1,) * (values.ndim - weights.ndim)))
        program = self.problem.model
        return self._at_particles(name, program, self.problem.graph.output(name), program.sites[name].shape)

    def _at_particles(self, key: Any, program: Program, output: Output, shape: Sequence[int]) -> Any:
        """An output at particles of the one axis that it is made of, and their weights (see `_own_values`), or None."""
        axis = None if self.chained else computed.axis_of(self.problem, output, shape, self.num_replicates)
        if axis is None:
            return None
        run = self._jit(("at", key), lambda: computed.at_particles(self.problem, program, output, axis))
        found = local(run(self.numbers, self.params, self.draws))
        return computed.pooled(self.problem, output, axis, found, local(self.axis_weights[axis.name]), self._shares)

    def _of_deterministic(self, name: str) -> tuple[Array, Array] | None:
        """Mean and standard deviation of a deterministic site; None if it has no small contraction."""
        plan = self.problem.programs.get("deterministic", lambda: of_deterministic(self.problem)).get(name)
        if plan is None:
            return None
        names = tuple(a.output.name for a in plan.asked)
        if names not in self._found:
            run = self._jit(("moments", *names), lambda: plan.moments)
            found = run(self.numbers, self.params, self.draws, self._shares)
            if is_traced(found):
                return found[names.index(name)]
            self._found[names] = found
        return self._found[names][names.index(name)]

    def _of_function(self, function: Callable, names: tuple[str, ...]) -> Array | None:
        """Mean of a function of latents; None if it has no small contraction."""
        program = traced_function(self.problem, function, names)
        if is_traced(program.consts):
            plan = of_function(self.problem, program)
            run = None if plan is None else QuickJit(plan.moments)
        else:
            # by what it computes: what the same function closes over may have changed
            known = fingerprint(ClosedJaxpr(program.jaxpr, program.consts), with_consts=True)
            plan = self.problem.programs.get(
                (program.inputs, known.digest), lambda: of_function(self.problem, program), known
            )
            own = None if plan is None else self._at_particles(plan, *plan.only)
            if own is not None:
                return jnp.asarray(computed.moments(*own)[0])
            run = None if plan is None else self._jit(("moments", plan), lambda: plan.moments)
        return None if run is None else run(self.numbers, self.params, self.draws, self._shares)[0][0]

    def _from_draws(self, function: Callable[[Mapping], Array], what: str) -> Array:
        warn(
            f"{what}: it mixes plate elements whose particles are indexed separately, so it is estimated from "
            f"{FALLBACK_DRAWS} joint draws instead of an exact contraction",
            StructureWarning,
        )
        return jnp.mean(jax.vmap(function)(self._fallback_draws()), 0)

    def _fallback_draws(self) -> dict[str, Array]:
        """Joint draws of all sites, for answers that no contraction gives."""
        return self._joint(0, FALLBACK_DRAWS).values

    def _jit(self, key: Any, function: Callable[[], Callable]) -> QuickJit:
        """What is compiled for a question, kept with the problem."""
        make = partial(QuickJit, open_consts=True, options=seldom_options)
        return self.problem.programs.get(("compiled", key), lambda: make(function()))
