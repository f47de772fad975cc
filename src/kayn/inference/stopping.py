"""When a fit ends: its log evidence is flat, and the weights say that the guide is where it should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.inference.beginning import CHUNK
from kayn.inference.mstep import Weights
from kayn.support.arrays import Array, PyTree
from kayn.support.progress import progress_bar
from kayn.xla.compilation import is_traced

MOST_STEPS = {"qem": 1000, "rws": 500, "vi": 500}
"""Steps by method, where a number is not given; learning rates are spread over theirs."""
UNKNOWN = Weights(True, False, 1.0)
"""Where nothing is known of weights, they have no say."""
BETTER = 1.1
"""By what factor the efficiency of weights has to grow from one quarter of the steps to the next,
to count as rising."""
PATIENCE = 4
"""Chunks that such a quarter has at least: weights become better by averaging, long after the evidence is flat."""
LATE, LONG = 4 * CHUNK, 16 * CHUNK
"""Steps after which a fit asks for a nearer state: one that climbs by dear steps, and any that climbs or has poor
weights."""
FAR = 2.0
"""Nats from one chunk to the next by which it climbs."""
WORTH = 2**30
"""Operations that its steps have taken by then: a second or several, far from the posterior, and as many again."""


@dataclass(frozen=True)
class Nearer:
    """What may lead a fit to where its steps would arrive late.

    Attributes:
        of: a state to another, or None.
        operations: of a step.
    """

    of: Callable[[PyTree], PyTree | None]
    operations: float

    def wanted(self, history: np.ndarray, weights: Weights) -> bool:
        """Whether a fit that has not ended is so late, and still so far from its end, that it is worth a look."""
        if len(history) < LATE:
            return False
        with np.errstate(invalid="ignore"):  # what is not finite is far
            climbs = not history[-CHUNK:].mean() - history[-2 * CHUNK : -CHUNK].mean() <= FAR
        late = len(history) >= LONG
        return (climbs and (late or len(history) * self.operations >= WORTH)) or (late and not bool(weights.good))


def until_flat(
    advance: Callable[[PyTree, int], tuple[PyTree, Array, Weights]],
    state: PyTree,
    num_steps: int,
    progress: bool,
    max_seconds: float | None = None,
    nearer: Nearer | None = None,
) -> tuple[PyTree, Array, Array]:
    """Run in chunks until the log evidence is flat, at most `num_steps` steps, and none after so many seconds.

    A log evidence that is flat under poor weights is a stall and no end: a guide far wider than the posterior sees all
    of it with a particle or two. The fit then goes on while the weights become better, and as long as they have to be
    tempered.

    Within a transformation of the user's (`jax.jit`, `vmap`) nothing is known of the log evidence while the program is
    being written: all steps are taken, and whether it had become flat by the end is a result of the run.

    Args:
        advance: state and number of steps to the next state, the log evidence of every step, and what their weights
            say.
        nearer: is asked once, and its state taken if a chunk of steps from there sees more evidence than the last one.

    Returns:
        The state, the log evidence [steps], and whether the fit has converged.
    """
    parts: list[Any] = []
    efficiencies: list[Any] = []
    done, converged, stalled, begun = 0, False, False, time.monotonic()
    with progress_bar(num_steps, progress) as show:
        while done < num_steps and not converged and not stalled:
            state, log_z, weights = advance(state, min(CHUNK, num_steps - done))
            parts.append(jnp.ravel(log_z) if is_traced(log_z) else np.ravel(np.asarray(log_z, np.float64)))
            done += len(parts[-1])
            if not is_traced(log_z):
                parts = [np.concatenate(parts)]
                efficiencies.append(float(weights.worst))
                told = None if weights is UNKNOWN else efficiencies[-1]
                show(done, float(np.mean(parts[0][-CHUNK:])), told)
                if is_flat(parts[0], CHUNK if weights is not UNKNOWN and weights.even else 2 * CHUNK):
                    converged = bool(weights.good)
                    stalled = not weights.starved and not _rises(efficiencies)
                if max_seconds is not None and time.monotonic() - begun >= max_seconds:
                    break
                going = not (converged or stalled) and done + CHUNK <= num_steps
                if nearer is not None and going and nearer.wanted(parts[0], weights):
                    state, log_z = _nearest(advance, state, nearer.of(state), parts[0])
                    parts, nearer, done = [np.concatenate([parts[0], log_z])], None, done + len(log_z)
    history = jnp.concatenate(parts) if is_traced(parts) else np.concatenate([np.zeros(0), *parts])
    return state, history, _is_flat(history) & weights.good if is_traced(history) else converged


def _nearest(
    advance: Callable[[PyTree, int], tuple[PyTree, Array, Weights]],
    state: PyTree,
    other: PyTree | None,
    history: np.ndarray,
) -> tuple[PyTree, np.ndarray]:
    """A state, or what steps make of another one if these see more evidence; and the log evidence of these steps."""
    none = np.zeros(0)
    if other is None:
        return state, none
    other, log_z, _ = advance(other, CHUNK)
    log_z = np.ravel(np.asarray(log_z, np.float64))
    return (other, log_z) if log_z[CHUNK // 2 :].mean() > history[-CHUNK:].mean() else (state, none)


def _rises(efficiencies: list[float]) -> bool:
    """Whether the weights of the last quarter of the chunks are better than those of the quarter before, or may be."""
    window = max(PATIENCE, len(efficiencies) // 4)
    if len(efficiencies) < 2 * window:
        return True
    before, last = efficiencies[-2 * window : -window], efficiencies[-window:]
    return float(np.mean(last)) > BETTER * float(np.mean(before))


def is_flat(history: np.ndarray, shortest: int = 2 * CHUNK) -> bool:
    """Whether the last quarter of the steps is no better than the quarter before, beyond twice the standard error.

    Quarters, and not windows of one length: the noisier the history, the longer it takes to see that it still rises.
    """
    with np.errstate(invalid="ignore"):  # what is infinite is not flat
        return bool(_is_flat(history, shortest))


def _is_flat(history: Array, shortest: int = 2 * CHUNK) -> Array:
    """As `is_flat`, of numbers that may not be known yet."""
    window = max(shortest, len(history) // 4)
    if len(history) < max(3 * shortest, 2 * window):
        return np.array(False)
    before, last = history[-2 * window : -window], history[-window:]
    error = ((before.var() + last.var()) / window) ** 0.5
    # false where anything is NaN or infinite
    return last.mean() - before.mean() < 2 * error + 0.05
