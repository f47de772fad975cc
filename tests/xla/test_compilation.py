"""The cache of compiled programs, how they are compiled, and the precision of matrix products."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kayn.contraction import logmatmul
from kayn.contraction.logmatmul import log_matmul
from kayn.xla import compilation, jit
from kayn.xla.compilation import matmul_precision, quick_options
from kayn.xla.jit import LONG_SCATTER, QuickJit

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


@pytest.fixture
def asked(monkeypatch):
    """How often programs were compiled in the quick way."""
    times = []
    monkeypatch.setattr(jit, "quick_options", lambda: times.append(1) or quick_options())
    return times


def test_a_quick_program_works_within_transformations(asked):
    times = QuickJit(lambda x, n: jnp.sin(x) * n, (1,))
    assert times(1.0, 2) == pytest.approx(2 * np.sin(1.0), rel=1e-6)
    assert times(2.0, 3) == pytest.approx(3 * np.sin(2.0), rel=1e-6)
    assert len(asked) == 1  # by the first call, for all
    assert jax.grad(times)(1.0, 2) == pytest.approx(2 * np.cos(1.0), rel=1e-6)
    assert jax.jit(lambda x: times(x, 2))(1.0) == pytest.approx(2 * np.sin(1.0), rel=1e-6)
    assert jax.jit(lambda x: x + times(1.0, 2))(1.0) == pytest.approx(1 + 2 * np.sin(1.0), rel=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: times(x, 2))(jnp.arange(3.0)), 2 * np.sin(np.arange(3.0)), rtol=1e-6)
    np.testing.assert_allclose(
        jax.lax.map(lambda x: times(x, 2), jnp.arange(3.0)), 2 * np.sin(np.arange(3.0)), rtol=1e-6
    )
    assert len(asked) == 1


@pytest.mark.parametrize(("updates", "quickly"), [(LONG_SCATTER - 1, True), (LONG_SCATTER, False)])
def test_programs_with_long_scatters_are_compiled_as_usual(asked, updates, quickly):
    rows = np.arange(updates) % 7

    def total(values):
        return jax.lax.fori_loop(0, 2, lambda _, out: out.at[rows].add(values), jnp.zeros(7))

    found = QuickJit(total)(jnp.ones(updates))
    np.testing.assert_array_equal(found, 2 * np.bincount(rows))
    assert len(asked) == quickly


def test_an_option_that_the_compiler_no_longer_knows_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "QUICK", {"xla_cpu_no_such_option": False})
    assert quick_options.__wrapped__() is None


def test_precision_is_full_unless_the_user_says_otherwise():
    assert matmul_precision() is jax.lax.Precision.HIGHEST
    with jax.default_matmul_precision("bfloat16"):
        assert matmul_precision() is None


@pytest.mark.parametrize(("bits", "bound"), [(7, 2e-2), (10, 2e-3)])
def test_error_of_log_products_in_reduced_precision(monkeypatch, bits, bound):
    """bfloat16 (7 bits) and tf32 (10 bits) operands, emulated: log sums of 100 terms move by less than the operands' rounding."""
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(3 * rng.normal(size=s), jnp.float32) for s in ((20, 30, 100), (20, 100, 30)))
    exact = log_matmul(left, right)
    rounded = jax.jit(lambda a: jax.lax.reduce_precision(a, 8, bits))
    monkeypatch.setattr(
        logmatmul, "_matmul", lambda a, b: jnp.matmul(rounded(a), rounded(b), precision=jax.lax.Precision.HIGHEST)
    )
    off = jnp.abs(log_matmul(left, right) - exact)
    assert 0 < float(jnp.max(off)) < bound
