"""What QEM does in a step, and in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem
from kayn.evidence.queries import weighted_draws
from kayn.inference import mstep
from kayn.inference.mstep import Schedule
from kayn.inference.qem_state import QEMState
from kayn.inference.together import Block
from kayn.support.arrays import Array

Weighed = tuple[Array, dict[str, Array], dict[str, Array], Draws]
"""Log Z, effective numbers of particles of every axis [*scope], axis weights and particles."""


@dataclass(frozen=True, eq=False)
class Step:
    """One E and one M step.

    Attributes:
        blocks: of sites whose moments are moved.
        rate, min_ess: as `QEM` has them.
        proposal: a state to parameters of the guide that particles are drawn from.
    """

    problem: Problem
    blocks: Sequence[Block]
    rate: Schedule
    min_ess: float
    proposal: Callable[[QEMState], Mapping[str, Array]]

    def taken(self, numbers: Mapping, state: QEMState, strength: Array | float = 1.0) -> tuple[QEMState, Weighed]:
        """The state after the step, its rate multiplied by `strength`, and what the old guide gave."""
        key, draw_key = jax.random.split(state.rng_key)
        log_z, by_axis, draws = weighted_draws(self.problem, numbers, self.proposal(state), draw_key)
        rates = {b.name: strength * self.rate(state.step + state.ahead.get(b.name, 0)) for b in self.blocks}
        moments = mstep.step(
            self.problem,
            self.blocks,
            state.moments,
            draws.values,
            by_axis,
            rates,
            self.min_ess,
            jnp.isfinite(log_z),
            draws.subsample,
        )
        state = QEMState(moments, state.step + 1, key, state.ahead)
        return state, (log_z, mstep.sizes(self.problem, by_axis), by_axis, draws)

    @cached_property
    def one(self) -> jax.stages.Wrapped:
        """As `taken`, traced once."""
        return jax.jit(self.taken, inline=True)

    def several(
        self, keep: bool, numbers: Mapping, state: QEMState, strength: Array, count: int
    ) -> tuple[QEMState, tuple]:
        """So many of them; what each gave with a leading count, without weights and particles unless these are kept."""

        def step(state: QEMState, _: None) -> tuple[QEMState, tuple]:
            state, weighed = self.one(numbers, state, strength)
            return state, weighed if keep else weighed[:2]

        return jax.lax.scan(step, state, None, length=count)
