"""Posterior replicates of a fit by QEM, and of its guide once draws of the posterior are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from kayn.evidence.problem import Problem
from kayn.guides.families import Moments
from kayn.inference import mstep
from kayn.inference.qem import QEM
from kayn.inference.qem_state import QEMState
from kayn.inference.together import blocks
from kayn.posterior.call import Call
from kayn.posterior.enough import enough_replicates
from kayn.posterior.poor_fit import LONG_VECTOR, complaints
from kayn.posterior.posterior import Posterior
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.xla.compilation import once_options
from kayn.xla.jit import QuickJit


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws posterior replicates with what a fit by QEM has compiled already."""

    qem: QEM
    state: QEMState
    proposal: dict[str, PyTree]
    _wider: dict[tuple[float, bool], Sampler] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """The problem that the fit has built."""
        assert self.qem.problem is not None
        return self.qem.problem

    def fitted_to(self, draws: Mapping[str, Array]) -> Sampler | None:
        """The same guide, with the moments of some draws of the posterior; None where there are too few for an axis.

        Args:
            draws: by latent [S, *shape].
        """
        axes = [a for a in self.problem.layout.axes if not a.enumerated]
        sites = {s.name: b.size for b in self.qem.blocks for s in b.sites}
        count = min((len(draws[n]) for n in sites), default=0)
        parts = {size: count // size for size in sites.values()}
        if not parts or not all(parts.values()):
            return None
        values = {n: draws[n][: parts[k] * k].reshape((parts[k], k, *draws[n].shape[1:])) for n, k in sites.items()}
        size = self.problem.layout.plan.size
        even = {
            a.name: np.full((parts[a.size], *(size[p] for p in a.scope), a.size), 1 / a.size)
            for a in axes
            if a.size in parts
        }
        return self._of(values, even, {k: np.ones(count) for k, count in parts.items()})

    def fitted_again(self, found: Posterior) -> Sampler:
        """The same guide, with the moments of weighed particles of all replicates of a posterior."""
        shares = np.asarray(found._shares)
        count = shares > 0
        values, by_axis = (
            {n: np.asarray(v)[count] for n, v in x.items()} for x in (found.draws.values, found.axis_weights)
        )
        return self._of(values, by_axis, {b.size: shares[count] for b in self.qem.blocks})

    def _of(self, values: Mapping[str, Array], by_axis: Mapping[str, Array], shares: Mapping[int, Array]) -> Sampler:
        """The same guide, with the moments of particles; see `mstep.moments_of`.

        Args:
            shares: by number of particles.
        """

        def moments(*particles: Any) -> dict[str, Moments]:
            values, by_axis, shares = particles
            return {b.name: mstep.moments_of(self.problem, b, values, by_axis, shares[b.size]) for b in self.qem.blocks}

        names = [s.name for b in self.qem.blocks for s in b.sites]
        made = QuickJit(moments, options=once_options)({n: values[n] for n in names}, by_axis, shares)
        state = replace(self.state, moments=made)
        return Sampler(self.qem, state, self.qem.get_proposal(state))

    def wider(self, overdispersion: float, vectors: bool = False) -> Sampler:
        """The same guide made wider, as `QEM`'s proposals are by their `overdispersion`.

        Args:
            vectors: only where `LONG_VECTOR` coordinates and more share a particle.
        """
        qem, asked = self.qem, (overdispersion, vectors)
        if asked in self._wider:
            return self._wider[asked]
        sites = [s for b in qem.blocks for s in b.sites]
        widening = qem.widening(overdispersion)
        if vectors:
            axis_of, together = self.problem.layout.axis_of, self.problem.together
            widening |= {n: 1.0 for n in widening if together(axis_of(n)) < LONG_VECTOR}
        made = {b.name: b for b in blocks(self.problem, sites, widening)}

        def moments(own: Mapping[str, Moments]) -> dict[str, Moments]:
            return {n: dict(b.family.moments(b.parameters(own[n])[1])) for n, b in made.items()}

        state = replace(self.state, moments=QuickJit(moments, options=once_options)(self.state.moments))
        self._wider[asked] = found = Sampler(qem, state, qem.get_proposal(state))
        return found

    def evidence_given(self, draws: Mapping[str, Array], key: KeyArray, call: Call) -> tuple[float, float, bool] | None:
        """Log evidence from weights of the guide with the moments of draws, its error, and whether these weights pass
        their checks; None where the guide cannot have them.

        Args:
            draws: of chains, [chains, draws, *shape].
        """
        if not self.qem.keeps_particles():
            return None
        # at even distances, so that every part of them is of all chains
        mixed = {n: np.moveaxis(np.asarray(v), 0, 1).reshape((-1, *v.shape[2:])) for n, v in draws.items()}
        fitted = self.fitted_to(mixed)
        if fitted is None:
            return None
        found = enough_replicates(partial(fitted.posterior, call), key)
        return float(found.log_evidence), float(found.log_evidence_error), not list(complaints(found))

    def posterior(self, call: Call, key: KeyArray, num_replicates: int) -> Posterior:
        """A posterior of so many replicates, where particles are small enough to be kept."""
        found = self.qem.replicates(replace(self.state, rng_key=key), num_replicates)
        assert found is not None, "particles are too large to be kept"
        log_evidences, weights, draws = found
        return Posterior(self.problem, call, self.problem.numbers, self.proposal, draws, log_evidences, weights)
