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
Taken = tuple[QEMState, Array, Any]


def begun_at(
    starts: Sequence[dict[str, Array]],
    state_of: Callable[[dict[str, Array]], QEMState],
    advance: Callable[[QEMState], Taken],
    enough: Callable[[dict[str, Array], Any], bool],
) -> tuple[dict[str, Array], QEMState, Taken | None]:
    """The best of some starts, the state there, and what a first chunk of steps has given if it was taken.

    Args:
        advance: takes such a chunk: the next state, and of every step log Z and anything else.
        enough: whether a start, and that of the steps that count, are so good that those that follow need no look.
    """
    counts = slice(CHUNK // 2, None)
    looks: dict[int, tuple[QEMState, Taken]] = {}

    def log_evidence(start: dict[str, Array]) -> Array:
        _, log_z, _ = looks[id(start)][1]
        return (log_z if is_traced(log_z) else np.asarray(log_z))[counts]

    for start in starts if len(starts) > 1 else ():
        state = jax.device_put(state_of(start))
        looks[id(start)] = state, (taken := advance(state))
        if not is_traced(taken[1]) and enough(start, jax.tree.map(lambda own: own[counts], taken[2])):
            return start, *looks[id(start)]
    chosen = best_start(starts, log_evidence)
    # nothing was looked at where there is one start, and what is chosen while it is traced is none of them
    return chosen, *(looks.get(id(chosen)) or (jax.device_put(state_of(chosen)), None))
