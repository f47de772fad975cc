"""Compiled programs: how precise their matrix products are, and where they are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

import jax

CACHE_VARIABLE = "KAYN_CACHE"


def matmul_precision() -> jax.lax.Precision | None:
    """Full precision, unless the user sets another with `jax.default_matmul_precision` (None: what is set there holds).

    GPUs would otherwise round the operands of float32 products to 10 bits (tf32).
    """
    return None if jax.config.jax_default_matmul_precision is not None else jax.lax.Precision.HIGHEST


def cache_compilation(directory: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk, so that the same model on data of the same shape compiles once and not in every session.

    Args:
        directory: by default the environment's `KAYN_CACHE`, else `kayn/programs` in the user's cache directory.

    Returns:
        The directory.
    """
    chosen = directory or os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(chosen) if chosen else base / "kayn" / "programs"
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
