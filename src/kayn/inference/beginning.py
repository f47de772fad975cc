"""Where QEM begins: the best of several starts, by the evidence that their first steps see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from kayn.guides.start import best_start
from kayn.inference.qem_state import QEMState
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced

Start = Literal["prior", "gradients", "known"]
"""From the prior's quantiles; also where gradients lead; from a state that is known."""
CHUNK = 8
"""Steps in one compiled loop; progress is shown between loops."""


def begun_at(
    starts: Sequence[dict[str, Array]],
    state_of: Callable[[dict[str, Array]], QEMState],
    advance: Callable[[QEMState], tuple[QEMState, Any]],
) -> tuple[dict[str, Array], QEMState, tuple[QEMState, Any] | None]:
    """The best of some starts, the state there, and what a first chunk of steps has given if it was taken.

    Args:
        advance: takes such a chunk; log Z of its steps comes first in what it gives beside the state.
    """
    if len(starts) == 1:
        return starts[0], jax.device_put(state_of(starts[0])), None
    looks: dict[int, tuple[QEMState, tuple[QEMState, Any]]] = {}

    def log_evidence(start: dict[str, Array]) -> Array:
        state = jax.device_put(state_of(start))
        looks[id(start)] = state, advance(state)
        log_z = looks[id(start)][1][1][0]
        return (log_z if is_traced(log_z) else np.asarray(log_z))[CHUNK // 2 :]

    chosen = best_start(starts, log_evidence)
    state, taken = looks.get(id(chosen), (None, None))
    # one that was chosen while it is traced is none of them
    return chosen, jax.device_put(state_of(chosen)) if state is None else state, taken
