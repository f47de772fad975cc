"""Posterior replicates of a fit by QEM."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kayn.evidence.problem import Problem
from kayn.inference.qem import QEM
from kayn.inference.qem_state import QEMState
from kayn.posterior.call import Call
from kayn.posterior.posterior import Posterior
from kayn.support.arrays import KeyArray, PyTree


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws posterior replicates with what a fit by QEM has compiled already."""

    qem: QEM
    state: QEMState
    proposal: dict[str, PyTree]

    @property
    def problem(self) -> Problem:
        """The problem that the fit has built."""
        assert self.qem.problem is not None
        return self.qem.problem

    def __call__(self, key: KeyArray, num_replicates: int, call: Call) -> Posterior | None:
        """A posterior; None if particles are too large to be kept."""
        found = self.qem.replicates(replace(self.state, rng_key=key), num_replicates)
        if found is None:
            return None
        log_evidences, weights, draws = found
        return Posterior(self.problem, call, self.problem.numbers, self.proposal, draws, log_evidences, weights)
