"""Memory: what a user allows, what a device has, and what is refused before it is taken."""

from __future__ import annotations

import math
import os
import re
from numbers import Real

import jax
import jax.numpy as jnp

from kayn.errors import KaynError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def memory_budget(memory: float | str | None) -> int:
    """Bytes from a number or a text such as "2GB"; None is half of what the default device has.

    Raises:
        KaynError: neither, or not positive.
    """
    if memory is None:
        return device_memory() // 2
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", memory)
        if found and found[2].lower() in UNITS and found[1].count(".") < 2 and found[1] != ".":
            return memory_budget(float(found[1]) * UNITS[found[2].lower()])
    elif isinstance(memory, Real) and not isinstance(memory, bool) and 1 <= memory < math.inf:
        return int(memory)
    raise KaynError(f"memory is {memory!r}; pass a positive number of bytes, or a text such as '500MB' or '2GB'")


def device_memory() -> int:
    """Bytes of the default device; of the machine, where the device does not say."""
    known = jax.devices()[0].memory_stats() or {}
    return known.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_too_many(option: str, count: int, each: float, error: type[KaynError] = KaynError) -> None:
    """Refuse a number of things before they are made, if the device cannot hold them.

    Args:
        each: entries of one of them.

    Raises:
        KaynError: they do not fit.
    """
    total, most = count * each * jnp.result_type(float).itemsize, device_memory()
    if total > most:
        raise error(
            f"{option}={count} would take about {format_bytes(total)}, and the device has {format_bytes(most)}; "
            f"{option}={max(int(most / total * count), 1)} would fit"
        )


def format_bytes(count: float) -> str:
    """A number of bytes with its unit, in powers of a thousand, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
