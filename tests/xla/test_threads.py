"""Decompositions that run at once do not wait for one another for ever."""

import subprocess
import sys

import pytest

from kayn.xla import threads

AT_ONCE = """
import kayn
import jax, jax.numpy as jnp

def both(a, b):
    solved = jax.scipy.linalg.solve_triangular(b, b, lower=True)
    return jnp.linalg.cholesky(a).sum(), jnp.linalg.cholesky(b).sum() + solved.sum()

matrices = jnp.eye(30) * jnp.arange(1.0, 3001.0)[:, None, None]
run = jax.jit(both)
for _ in range(50):
    jax.block_until_ready(run(matrices, matrices + 1.0))
print("done")
"""


def test_decompositions_at_once_come_to_an_end(monkeypatch):
    """With the threads that kayn asks for; without them, in JAX before 0.12 on two cores, this never ends."""
    for name in threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    found = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "done"


@pytest.mark.parametrize(
    ("cores", "release", "before", "after"),
    [
        (2, (0, 10, 2), {}, {"PJRT_NPROC": "8"}),
        (64, (0, 10, 2), {}, {}),
        (2, (0, 12, 0), {}, {}),
        (2, (0, 10, 2), {"NPROC": "3"}, {"NPROC": "3"}),
    ],
)
def test_threads_are_asked_for_where_they_are_few(monkeypatch, cores, release, before, after):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(threads.jax, "__version_info__", release)
    monkeypatch.setattr(threads.os, "environ", dict(before))
    threads.ask_for_threads()
    assert threads.os.environ == after
