"""Standard normal draws that fill the space evenly: randomly shifted lattices, each draw with the exact law."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.support.arrays import Array, KeyArray
from kayn.support.shuffle import ROWS, rotated, shuffled
from kayn.xla.compilation import apart

LONGEST_LATTICE = 32
"""Coordinates that share a lattice; longer vectors are cut into blocks of at most this many."""
SEARCH = 2**22
"""Evaluations spent on choosing each generator of a lattice, in numbers of points;
at least 8 and at most 128 are tried."""
FEW = 64
"""Draws up to which they are shuffled by comparing random numbers, all with all."""


def even_normal(key: KeyArray, num: int, shapes: Sequence[tuple[int, int]], dtype: Any) -> Array:
    """`num` standard normal draws of several arrays of vectors: [num, total number of coordinates].

    The coordinates of one vector are a rank-1 lattice (Dick, Kuo & Sloan, High-dimensional integration: the quasi-Monte
    Carlo way, 2013), shifted at random in every coordinate and mapped through the normal quantiles. Each coordinate
    alone is stratified; jointly they are far more even than independently shuffled strata, a Latin hypercube. The
    vectors are shuffled against each other. Every single draw has exactly the standard normal law, and vectors are
    independent.

    Args:
        shapes: for each array the number of vectors and their length; coordinates are laid out in this order.
    """
    generator, block = _layout(num, tuple(shapes))
    rows = num + 1 if num <= FEW else ROWS
    numbers = jax.random.bits(key, (rows * (block[-1] + 1) + len(block),), jnp.uint32)
    drawn, shift = jnp.split(numbers, [len(numbers) - len(block)])
    drawn = drawn.reshape(rows, -1)
    order = _ranked(drawn, num) if num <= FEW else shuffled(drawn, jnp.arange(num, dtype=jnp.uint32)[:, None], num)
    if len(block) > block[-1] + 1:
        # on its own, so that it is shuffled once and not for every coordinate of a block
        order = apart(order, numbers[0])[:, block] * generator % jnp.uint32(num)
    # the high bits of the shift move whole strata, the low bits move within one
    turned = rotated(order, shift % jnp.uint32(num), num)
    place = (turned.astype(dtype) + (shift // jnp.uint32(num)).astype(dtype) * (num / 2.0**32)) / num
    edge = jnp.finfo(dtype).eps
    # on its own, so that the quantile function is compiled once and not for every part that is cut out
    return apart(math.sqrt(2) * jax.lax.erf_inv(2 * jnp.clip(place, edge, 1 - edge) - 1), place.ravel()[0])


def counted(num: int | Mapping[str, int], sites: Iterable[str]) -> dict[str, int]:
    """How many particles each site has: points are even as many as they are, and not the first of more."""
    return {n: num[n] if isinstance(num, Mapping) else num for n in sites}


@lru_cache(maxsize=64)
def _layout(num: int, shapes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """For every coordinate: its generator in the lattice, and the block of coordinates that are shuffled together."""
    generators = lattice(num, min(max(length for _, length in shapes), LONGEST_LATTICE))
    factors, blocks, start = [], [], 0
    for count, length in shapes:
        position = np.arange(length)
        per_vector = -(-length // len(generators))
        block = start + np.arange(count)[:, None] * per_vector + position // len(generators)
        factors.append(np.broadcast_to(generators[position % len(generators)], block.shape).ravel())
        blocks.append(block.ravel())
        start += count * per_vector
    return np.concatenate(factors).astype(np.uint32), np.concatenate(blocks)


@lru_cache(maxsize=64)
def lattice(num: int, length: int) -> np.ndarray:
    """Generators of a rank-1 lattice of `num` points, one for each of `length` coordinates or as many as are distinct.

    They are chosen one after the other: the worst-case error in the weighted Korobov space of smoothness 2, with
    weights 1/d^2, is as small as any next generator can make it. Generators are coprime to `num` and none is minus
    another one, so that no two coordinates are the same up to a shift or a reflection.
    """
    largest = min(num // 2, 2**32 // num - 1)
    coprime = [c for c in range(1, largest + 1) if math.gcd(c, num) == 1] or [1]
    points = np.arange(num, dtype=np.int64)
    bernoulli = 2 * math.pi**2 * ((points / num) ** 2 - points / num + 1 / 6)
    most = min(max(SEARCH // num, 8), 128)
    product, chosen = np.ones(num), []
    for d in range(min(len(coprime), length)):
        left = [c for c in coprime if c not in chosen]
        tried = left[:: -(-len(left) // most)] if d else left[:1]
        kernels = [1 + bernoulli[points * c % num] / (d + 1) ** 2 for c in tried]
        best = int(np.argmin([product @ kernel for kernel in kernels]))
        chosen.append(tried[best])
        product = product * kernels[best]
    return np.array(chosen)


def _ranked(numbers: Array, count: int) -> Array:
    """0 to `count - 1` along the first axis, shuffled for each of the other entries by random bits [count + 1, ...].

    Every place is exactly uniform, by a random rotation; equal numbers, one in 2^26 pairs, keep their order.
    """
    drawn, turn = numbers[:count], numbers[count] % jnp.uint32(count)
    numbered = drawn & jnp.uint32(2**32 - FEW) | jnp.arange(count, dtype=numbers.dtype).reshape(
        (-1, *(1,) * (drawn.ndim - 1))
    )
    ranks = sum((numbered[i] < numbered).astype(numbers.dtype) for i in range(count))
    return rotated(ranks, turn, count)
