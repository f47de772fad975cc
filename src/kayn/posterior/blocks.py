"""Draws in blocks of few sizes, so that another number of draws is no other program to compile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.xla.compilation import is_traced
from kayn.xla.jit import QuickJit

LARGE = 2**22
"""Numbers in a block from which draws that nobody asked for are worth another compilation."""
ROOM = 1024


def block_size(num: int, usual: int, entries: int) -> int:
    """How many draws to take at a time: `usual`, ten times as many where ten times were too few, fewer of large models.

    Args:
        entries: numbers in one draw.
    """
    size = usual
    while size > num and size * entries > LARGE and size >= 10:
        size //= 10
    while num > 10 * size:
        size *= 10
    return size


def starts(num: int, size: int) -> Iterator[np.int32]:
    """The number of the first draw of every block."""
    return (np.int32(start) for start in range(0, num, size))


def keys_of(key: KeyArray, start: Array, size: int) -> KeyArray:
    """The keys [size] of a block, whose draws are numbered from `start` on.

    With JAX's default generator they are those of `jax.random.split(key, n)`, whatever n.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(size))


def joined(parts: Sequence[PyTree], num: int, axis: int = 0) -> PyTree:
    """The first `num` draws of blocks, along an axis: NumPy arrays where they are known,
    so that nothing is compiled."""
    xp: Any = jnp if is_traced(parts) else np
    cut = (slice(None),) * axis + (slice(num),)
    return jax.tree.map(lambda *v: xp.concatenate([xp.asarray(x) for x in v], axis)[cut], *parts)


def on_device(tree: PyTree) -> PyTree:
    """NumPy arrays as JAX arrays; unlike `jnp.asarray`, this compiles nothing."""
    return jax.tree.map(lambda v: jax.device_put(v) if isinstance(v, np.ndarray | np.generic) else v, tree)


def shuffled(key: KeyArray, count: int) -> Array:
    """`jax.random.permutation(key, count)` with JAX's default generator: int [count]."""
    room = max(ROOM, 2 ** math.ceil(math.log2(count)))
    rounds = math.ceil(3 * math.log(count) / math.log(2**32 - 1))
    return joined([_shuffled(key, np.int32(count), room, rounds)], count)


def _shuffle(key: KeyArray, count: Array, room: int, rounds: int) -> Array:
    """[room], of which the first `count` are a permutation of the numbers below `count`."""
    order = jnp.arange(room)
    for _ in range(rounds):
        key, own = jax.random.split(key)
        late = (jnp.arange(room) >= count).astype(jnp.int32)
        order = jax.lax.sort((late, jax.random.bits(own, (room,), "uint32"), order), num_keys=2)[2]
    return order


_shuffled = QuickJit(_shuffle, (2, 3))
