"""What the experiments share: files for results, and a loop of SVI steps inside `lax.scan` for several seeds at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def train_seeds(
    step: Callable[[Any, Any], Any], states: Any, keys: Any, steps: int, chunk: int, look: Callable[[Any], Any]
) -> tuple[Any, list[dict[str, Any]], float]:
    """Run `steps` steps of every seed, compiled as one program a chunk, and look at the states after each chunk.

    Args:
        step: (state, key) to state, of one seed.
        states, keys: with a leading dimension of seeds.
        look: states to figures, after each chunk.

    Returns:
        The last states, the figures with their step numbers, and seconds per step and seed in the fastest chunk.
    """

    def one(state: Any, key: Any, first: Any) -> Any:
        def body(state: Any, number: Any) -> tuple[Any, None]:
            return step(state, jax.random.fold_in(key, number)), None

        return jax.lax.scan(body, state, first + jax.numpy.arange(chunk))[0]

    advance = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    history = [{"step": 0, **look(states)}]
    seconds = []
    for first in range(0, steps, chunk):
        start = time.perf_counter()
        states = jax.block_until_ready(advance(states, keys, first))
        seconds.append((time.perf_counter() - start) / chunk / keys.shape[0])
        history.append({"step": first + chunk, **look(states)})
    return states, history, min(seconds)
