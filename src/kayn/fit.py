"""The one call an analyst makes: pick a guide, fit it, stop when the log evidence has stopped improving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from kayn.axes.request import TARGET_ELEMENTS, make_request
from kayn.evidence.problem import build_problem
from kayn.inference import gradients
from kayn.inference.beginning import CHUNK, Start
from kayn.inference.importance import Importance, Weigher
from kayn.inference.laplace import LAPLACE
from kayn.inference.mcmc.escalate import escalated
from kayn.inference.mcmc.kernel import MPGibbs, Several
from kayn.inference.mcmc.run import run_chains
from kayn.inference.qem import QEM
from kayn.inference.qem_state import QEMState
from kayn.inference.sampler import Sampler
from kayn.inference.settle import Settled, settled
from kayn.inference.stopping import MOST_STEPS, until_flat
from kayn.objectives.rws import RWS
from kayn.objectives.vi import VI
from kayn.posterior import stored
from kayn.posterior.call import MISSING, Call, Origin, conditioned
from kayn.posterior.chains import Chains
from kayn.posterior.enough import Replicates
from kayn.posterior.poor_fit import warn_if_poor, warn_if_unsound, warn_of
from kayn.posterior.posterior import Posterior
from kayn.posterior.stored import Stored
from kayn.support.arrays import KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.options import (
    Arguments,
    Coords,
    Couple,
    Elements,
    Groups,
    Guide,
    Key,
    Memory,
    Model,
    Named,
    Params,
    Particles,
    PathName,
    Strategy,
)
from kayn.support.prints import Printed, brief
from kayn.support.validate import Count, Natural, Positive, checked
from kayn.xla.compilation import is_traced

WEIGHED = "weighed"
"""In the settings of a posterior's origin: of how many particles it is, where the fit's own did not serve."""
FOUND = ("params", "proposal", "log_evidence", "converged")
"""What of a fit is kept in a file, beside the state of QEM."""


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Printed):
    """A fitted guide.

    Attributes:
        call: the model and its arguments.
        guide, params: its guide, and the values of their `numpyro.param` sites.
        proposal: parameters of the guide that `posterior` draws particles from; a little wider after "qem".
        log_evidence: [num_steps] history of the noisy log Z, in nats.
        converged: whether it had stopped improving before `num_steps` ran out; false where the weights of some latent
            were on a particle or two to the end, or their effective sample size stayed poor: a guide that has not found
            the posterior.
        options: particle options, as given to `fit`; latents that are joint in its guide share an axis.
    """

    call: Call
    guide: Callable
    params: dict[str, PyTree]
    proposal: dict[str, PyTree]
    log_evidence: np.ndarray
    converged: bool
    options: dict[str, Any]
    rng_key: KeyArray
    sampler: Sampler | None = None
    _weighers: dict[Any, Weigher] = field(default_factory=dict, repr=False)
    _told: dict[str, str] = field(default_factory=dict, repr=False)
    """What became of the posterior."""

    def __str__(self) -> str:
        """The model, how far the fit came, and the latents' parameters by shape."""
        ended = "stopped improving" if self.converged else "not converged: had not stopped improving, or weights poor"
        last = float(np.mean(self.log_evidence[-CHUNK:])) if len(self.log_evidence) else np.nan
        return "\n".join(
            [
                f"Fit of {self.call.name}: {len(self.log_evidence)} steps, {ended}",
                f"log evidence of the last steps {last:.2f} nats; posterior() estimates it with its error",
                *self._told.values(),
                *(f"  {name}: {brief(value)}" for name, value in self.params.items()),
            ]
        )

    @checked()
    def posterior(
        self,
        num_particles: Particles | None = None,
        num_replicates: Count | None = None,
        rng_key: Key | None = None,
        *,
        escalate: bool = True,
        max_seconds: Positive = 60.0,
    ) -> Posterior:
        """Weighed particles of the fitted guide, of the guide fitted again to these where their weights are poor, of
        one whose vectors follow the model where that fits a funnel, of a wider one where that knows more; chains where
        checks fail.

        Args:
            num_particles: K; None for that of the fit. With a number, and within `jax.jit` or `jax.vmap`, nothing is
                sampled.
            num_replicates: independent sets of particles, pooled; their spread gives the error of the log evidence.
                None for 32, or up to 256 where these do not know means to 1/40 of a standard deviation yet.
            escalate: where a check of the weights fails, sample with `kayn.MPGibbs` from draws of the guide, until
                R-hat and effective sample sizes meet the targets of `kayn.posterior.mixing`; the posterior is then a
                `kayn.Chains`, and warns only where they are missed.
            max_seconds: of sampling, compiling apart.
        """
        key = jax.random.fold_in(self.rng_key, 1) if rng_key is None else rng_key
        take = Replicates(key, num_replicates)
        own = take(partial(self._weighed, num_particles))
        if num_particles is not None or is_traced(own.log_evidences):
            warn_if_poor(own)
            return own
        warn_if_unsound(own)
        found = settled(self.sampler, self.call, own, take, key)
        self._told.update(found.told)
        chains = self._escalated(found, max_seconds) if found.reasons and escalate else None
        if chains is None:
            warn_of(found.reasons)
        return found.posterior if chains is None else chains

    def _weighed(self, num_particles: Any, key: KeyArray, num_replicates: int) -> Posterior:
        sampler = self.sampler if num_particles is None else None
        if sampler is not None and sampler.qem.keeps_particles():
            return sampler.posterior(self.call, key, num_replicates)
        return self.weigher(num_particles).posterior(key, self.proposal, num_replicates)

    def _escalated(self, found: Settled, max_seconds: float) -> Chains | None:
        """Chains in the place of weighed particles that fail a check; None where nothing samples the model."""
        kernel, key = MPGibbs(self.call.model, start=self), jax.random.fold_in(self.rng_key, 2)
        weighed = found.posterior, found.reasons, found.sampler
        chains, told = escalated(kernel, self.call, *weighed, max_seconds, key)
        self._told["sampled"] = told
        return chains

    @checked()
    def mcmc(
        self,
        num_samples: Count = 1000,
        num_chains: Count = 4,
        num_warmup: Natural = 500,
        num_particles: Several | None = None,
        rng_key: Key | None = None,
    ) -> Chains:
        """Sample with `kayn.MPGibbs`, local proposals, from chains that start at draws of the fitted guide.

        Args:
            num_samples: of each chain, after `num_warmup` sweeps in which steps are learnt.
            num_particles: K; None for 5.

        Returns:
            a posterior of the chains' draws, whose summary has Monte Carlo errors, effective sample sizes and R-hat.
        """
        key = jax.random.fold_in(self.rng_key, 2) if rng_key is None else as_key(rng_key)
        kernel = MPGibbs(self.call.model, num_particles, start=self)
        return run_chains(kernel, self.call, num_samples, num_chains, num_warmup, key)

    def weigher(self, num_particles: Particles | None) -> Weigher:
        """What draws and weighs particles of the fitted guide, compiled once for each number of them."""
        options = {**self.options, **({} if num_particles is None else {"num_particles": num_particles})}
        request = make_request(**options, draws=Importance.draws)
        if request not in self._weighers:
            origin = self.call.origin
            call = replace(
                self.call, origin=origin and replace(origin, settings={**origin.settings, WEIGHED: num_particles})
            )
            problem = build_problem(call.model, self.guide, call.args, call.kwargs, self.proposal, request)
            self._weighers[request] = Weigher(problem, call)
        return self._weighers[request]

    @checked()
    def save(self, path: PathName) -> None:
        """Write the fit to a file of arrays and JSON, which `kayn.load(path, model)` reads.

        Raises:
            KaynError: the file cannot be written, or holds an argument of the model that is no array, number or text.
        """
        state = None if self.sampler is None else vars(self.sampler.state)
        found = {**{n: getattr(self, n) for n in FOUND}, "state": state}
        stored.save(path, "fit", self.call, self.params, found)


@checked()
def fit(
    model: Model,
    args: Arguments = (),
    kwargs: Named = None,
    method: Literal["qem", "rws", "vi"] = "qem",
    num_particles: Particles | None = None,
    rng_key: Key = 0,
    progress: bool = True,
    *,
    guide: Guide | None = None,
    strategy: Strategy = "parallel",
    num_steps: Count | None = None,
    max_seconds: Positive | None = None,
    learning_rate: Positive = 0.03,
    groups: Groups = (),
    couple: Couple = None,
    target_elements: Elements = TARGET_ELEMENTS,
    memory: Memory = None,
    params: Params = None,
    coords: Coords = None,
    missing: Literal["error", "drop", "impute"] | None = None,
    key: Key | None = None,
) -> Fit:
    """Fit a guide to a model's posterior.

    Args:
        model: an ordinary NumPyro model; `args` and `kwargs` are its arguments.
        method: "qem" (moment matching, the default), "rws" (reweighted wake-sleep) or "vi" (pathwise gradients).
        num_particles: K particles of every latent, one number or a mapping from latent name; None for 30, and 100 where
            latents or elements share an index, or have one each over plates, and that is affordable.
        rng_key: a key or an int seed.
        progress: show a bar with the log evidence.
        guide: None for a factorised guide; with "qem", latents that no data lie below follow their prior.
        num_steps: at most so many steps, None for 1,000 with "qem" and 500 with gradients; fitting stops earlier when
            the log evidence has stopped improving under good weights, or neither it nor the weights get better.
        max_seconds: no further steps are begun after so long, compiling included.
        learning_rate: of Adam, for "rws" and "vi".
        params: values of `numpyro.param` sites to start from.
        coords: labels of plates, e.g. {"schools": names}; of columns of categories they are known.
        missing: what is done about NaN among the data of observed sites, and about what masked arrays hide: "error"
            refuses them, "drop" leaves them out, "impute" also lets `posterior.imputed()` draw them; None is "error"
            unless the model is a formula that says otherwise.
        key: the same as `rng_key`.

    Raises:
        KaynError: an unknown method, and everything that building the problem raises.
    """
    asked = {"num_particles": num_particles, "strategy": strategy, "groups": groups, "couple": couple}
    settings = {
        "method": method,
        "options": {**asked, "target_elements": target_elements, "memory": memory},
        "key": as_key(rng_key if key is None else key),
        "num_steps": MOST_STEPS[method] if num_steps is None else num_steps,
        "max_seconds": max_seconds,
        "learning_rate": learning_rate,
        "params": dict(params or {}),
    }
    call = conditioned(model, args, kwargs or {}, Origin("fit", guide, settings), coords or {}, missing)
    return _run(call, progress)


def restored(call: Call, found: Stored | None) -> Fit:
    """A fit built again from its origin.

    Args:
        found: what it has found; None for its guide and its problem alone.
    """
    return _run(call, False, found or Stored("", "fit", call, {}))


def _run(call: Call, progress: bool, found: Stored | None = None) -> Fit:
    origin = call.origin
    assert origin is not None
    settings = {n: v for n, v in origin.settings.items() if n not in (WEIGHED, MISSING, LAPLACE)}
    setup = _Setup(call, origin.guide, progress=progress, found=found, **settings)
    return _fit_qem(setup) if setup.method == "qem" else _fit_svi(setup)


@dataclass(frozen=True, eq=False)
class _Setup:
    call: Call
    guide: Callable | None
    method: str
    options: dict[str, Any]
    key: KeyArray
    num_steps: int
    max_seconds: float | None
    learning_rate: float
    params: dict[str, PyTree]
    progress: bool
    found: Stored | None = None

    def result(
        self,
        guide: Callable,
        params: dict[str, PyTree],
        proposal: dict[str, PyTree],
        history: np.ndarray,
        converged: bool,
        sampler: Sampler | None = None,
    ) -> Fit:
        return Fit(self.call, guide, params, proposal, history, converged, self.options, self.key, sampler)

    def known(self, guide: Callable, qem: QEM | None = None, state: Any = None) -> Fit:
        """The result that was found before."""
        assert self.found is not None
        found = {"params": {}, "proposal": {}, "log_evidence": np.empty(0), "converged": False, **self.found.found}
        sampler = None if qem is None else Sampler(qem, state, found["proposal"])
        params, proposal, history, converged = (found[n] for n in FOUND)
        return self.result(guide, params, proposal, history, converged, sampler)


def _fit_qem(setup: _Setup) -> Fit:
    qem = QEM(setup.call.model, setup.guide, **setup.options)
    start: Start = "known" if setup.found is not None else "gradients" if setup.guide is None else "prior"
    state = qem.start(setup.key, setup.call.args, setup.call.kwargs, setup.params, start)
    assert qem.guide is not None
    # what is joint in the guide shares an axis, however many particles
    joint = {"groups": qem.asked.groups, "couple": dict(qem.asked.couple)}
    setup = replace(setup, options={**setup.options, **joint})
    if setup.found is not None:
        state = QEMState(**setup.found.like("state", vars(state))) if setup.found.found else state
        return setup.known(qem.guide, qem, state)
    bounds = (setup.num_steps, setup.progress, setup.max_seconds)
    state, history, converged = until_flat(qem.advance_noticing, state, *bounds, qem.nearer())
    proposal = qem.get_proposal(state)
    sampler = Sampler(qem, state, proposal)
    return setup.result(qem.guide, qem.get_params(state), proposal, history, converged, sampler)


def _fit_svi(setup: _Setup) -> Fit:
    call = setup.call
    guide = gradients.own_guide(call, setup.options, setup.params) if setup.guide is None else setup.guide
    if setup.found is not None:
        return setup.known(guide)
    bounds = (setup.num_steps, setup.progress, setup.max_seconds)
    loss = RWS if setup.method == "rws" else VI
    params, history, converged = gradients.trained(
        call, guide, loss, setup.options, setup.params, setup.key, setup.learning_rate, bounds
    )
    return setup.result(guide, params, params, history, converged)
