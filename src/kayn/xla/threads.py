"""More threads than decompositions that wait for one another.

In JAX before 0.12 each decomposition and triangular solution of many matrices on CPUs waits, on a thread of XLA's pool,
for parts of it that are to run on threads of the same pool. Where as many of them run at once as there are threads, all
wait for ever: on two cores, two. The pool has as many threads as there are cores, unless the environment says how many.
"""

from __future__ import annotations

import os

import jax

LEAST = 8
"""Threads with which programs have not been seen to run so many decompositions at once."""
MENDED = (0, 12)
"""The release of JAX from which they do not wait."""
SETTINGS = ("PJRT_NPROC", "NPROC")
"""What XLA reads, the first before the second, when JAX computes something for the first time."""


def ask_for_threads() -> None:
    """Ask XLA for enough threads, in the environment, where there are few cores and the user has not said how many.

    Where JAX has computed something already this comes too late.
    """
    few = (os.cpu_count() or 1) < LEAST
    if few and jax.__version_info__[:2] < MENDED and not any(name in os.environ for name in SETTINGS):
        os.environ[SETTINGS[0]] = str(LEAST)
