"""The cache of compiled programs, and the precision of matrix products."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kayn.compilation import matmul_precision
from kayn.contraction import logdot

SCRIPT = """
import sys
import numpy as np, numpyro, numpyro.distributions as dist, jax
import kayn
kayn.cache_compilation(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # what is kept must not depend on the machine's speed

def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

counts = {"cache_misses": 0, "cache_hits": 0}

def count(name, **_):
    last = name.split("/")[-1]
    if last in counts:
        counts[last] += 1

jax.monitoring.register_event_listener(count)
kayn.Importance(model, num_particles=3).run(0, None, np.arange(4.0, dtype=np.float32))
print(*counts.values())
"""


@pytest.mark.slow
def test_a_second_session_compiles_nothing_again(tmp_path):
    def session():
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        misses, hits = map(int, run.stdout.splitlines()[-1].split())
        return misses, hits

    compiled, _ = session()
    assert compiled > 0
    misses, hits = session()
    assert misses == 0
    assert hits >= compiled


def test_precision_is_full_unless_the_user_says_otherwise():
    assert matmul_precision() is jax.lax.Precision.HIGHEST
    with jax.default_matmul_precision("bfloat16"):
        assert matmul_precision() is None


@pytest.mark.parametrize(("bits", "bound"), [(7, 2e-2), (10, 2e-3)])
def test_error_of_log_products_in_reduced_precision(monkeypatch, bits, bound):
    """bfloat16 (7 bits) and tf32 (10 bits) operands, emulated: log sums of 100 terms move by less than the operands' rounding."""
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(3 * rng.normal(size=s), jnp.float32) for s in ((20, 30, 100), (20, 100, 30)))
    exact = logdot.log_matmul(left, right)
    rounded = jax.jit(lambda a: jax.lax.reduce_precision(a, 8, bits))
    monkeypatch.setattr(
        logdot, "_matmul", lambda a, b: jnp.matmul(rounded(a), rounded(b), precision=jax.lax.Precision.HIGHEST)
    )
    off = jnp.abs(logdot.log_matmul(left, right) - exact)
    assert 0 < float(jnp.max(off)) < bound
