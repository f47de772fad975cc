"""What the machine can do: rates of a large matrix product and of a large copy, measured,
and a step's share of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

ENOUGH = 60.0
"""Seconds after which a call is not repeated any more."""


def seconds(call: Callable[[], Any], repeats: int = 7) -> tuple[float, float]:
    """Best and median seconds of a call, after one that is not counted."""
    jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < ENOUGH:
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    taken.sort()
    return taken[0], taken[len(taken) // 2]


@cache
def rates() -> tuple[float, float]:
    """Floating point operations a second of a float32 matrix product, bytes a second of a scaled copy
    (read and write)."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    flops = 2 * size**3 / seconds(lambda: product(matrix))[0]
    vector = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    scale = jax.jit(lambda a: 1.5 * a)
    return flops, 2 * vector.nbytes / seconds(lambda: scale(vector))[0]


def described() -> str:
    """Both rates, in words."""
    flops, moved = rates()
    return f"matrix product {flops / 1e9:.0f} GFLOP/s, copy {moved / 1e9:.1f} GB/s"


def save(path: str, **figures: Any) -> None:
    """Write figures to a JSON file, beside what the machine can do."""
    flops, moved = rates()
    machine = {"device": jax.devices()[0].device_kind, "matmul_flops": flops, "copy_bytes": moved}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**machine, **figures}, file, indent=1)


def limit_seconds(flops: float, moved: float) -> float:
    """The least time in which the machine could do so many operations and move so many bytes."""
    most_flops, most_bytes = rates()
    return max(flops / most_flops, moved / most_bytes)


def counted(compiled: Any) -> tuple[float, float]:
    """Operations and bytes of a compiled program by XLA's own analysis; loops count once."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float(analysis.get("flops", 0.0)), float(analysis.get("bytes accessed", 0.0))
