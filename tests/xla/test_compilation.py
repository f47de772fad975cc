"""The cache of compiled programs, how they are compiled, and the precision of matrix products."""

import dataclasses
import gc
import subprocess
import sys
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kayn
from kayn.contraction import logmatmul
from kayn.contraction.logmatmul import log_matmul
from kayn.guides.start import best_start
from kayn.inference.stopping import UNKNOWN, until_flat
from kayn.xla import compilation, jit
from kayn.xla.compilation import compiled_now, matmul_precision, once_options, quick_options, seldom_options
from kayn.xla.fingerprint import fingerprint
from kayn.xla.jit import LONG_SCATTER, QuickJit
from kayn.xla.shared import Kept

SCRIPT = """
import sys
import numpy as np, numpyro, numpyro.distributions as dist, jax
import kayn
kayn.cache_compilation(sys.argv[1])
# what is kept must not depend on the machine's speed
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

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
    assert len(asked) == 2  # once for each program
    assert jax.grad(times)(1.0, 2) == pytest.approx(2 * np.cos(1.0), rel=1e-6)
    assert jax.jit(lambda x: times(x, 2))(1.0) == pytest.approx(2 * np.sin(1.0), rel=1e-6)
    assert jax.jit(lambda x: x + times(1.0, 2))(1.0) == pytest.approx(1 + 2 * np.sin(1.0), rel=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: times(x, 2))(jnp.arange(3.0)), 2 * np.sin(np.arange(3.0)), rtol=1e-6)
    np.testing.assert_allclose(
        jax.lax.map(lambda x: times(x, 2), jnp.arange(3.0)), 2 * np.sin(np.arange(3.0)), rtol=1e-6
    )
    assert len(asked) == 2


@pytest.mark.parametrize(("updates", "quickly"), [(LONG_SCATTER - 1, True), (LONG_SCATTER, False)])
def test_programs_with_long_scatters_are_compiled_as_usual(asked, updates, quickly):
    rows = np.arange(updates) % 7

    def total(values):
        return jax.lax.fori_loop(0, 2, lambda _, out: out.at[rows].add(values), jnp.zeros(7))

    found = QuickJit(total)(jnp.ones(updates))
    np.testing.assert_array_equal(found, 2 * np.bincount(rows))
    assert len(asked) == quickly


COMPILED: list[str] = []
"""Grows by one for every program that JAX compiles."""


def _count(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_count)


def compilations(run):
    """How many programs were compiled to run something, and its result."""
    # what any first program needs
    quick_options(), seldom_options(), QuickJit(jnp.negative)(jnp.zeros(3))
    before = len(COMPILED)
    out = jax.block_until_ready(run())
    return len(COMPILED) - before, out


@pytest.mark.parametrize("open_consts", [False, True])
def test_equal_programs_share_what_is_compiled(open_consts):
    x, first, second = np.float32([0.0, 1.0]), np.float32([1.0, 2.0]), np.float32([3.0, 4.0])

    def of(factor, literal=2.0, function=jnp.sin, x=x):
        def program(x):
            return jax.nn.softplus(function(x)) * jnp.asarray(factor) + literal

        run = QuickJit(program, open_consts=open_consts)
        count, out = compilations(lambda: run(x))
        np.testing.assert_allclose(out, np.log1p(np.exp(function(x))) * factor + literal, rtol=1e-5)
        return count

    assert of(first) == 1
    assert of(first) == 0
    # other constants are other programs where they may be folded
    assert (of(second) == 0) == open_consts
    assert of(first, 2.5) == 1
    assert of(first, 2.0, jnp.cos) == 1
    assert of(np.float32([[1.0], [2.0]])) == 1
    assert of(first, x=x[:1]) == 1
    with jax.enable_x64(True):
        assert of(first, x=x.astype(float)) >= 1


def test_equal_placements_are_the_same_program():
    """JAX 0.10 makes another object of the same placement wherever a number is put on a device."""

    def known(*axes):
        mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
        placed = NamedSharding(mesh, PartitionSpec(*axes))
        return fingerprint(jax.make_jaxpr(lambda x: jax.device_put(x, placed))(jnp.zeros(3)))

    assert known().digest == known().digest
    assert known().digest != known("x").digest


def test_compiled_programs_are_forgotten():
    kept = Kept(2)
    for i in range(5):
        assert kept.get(i, lambda i=i: [i]) == [i]
    assert kept.get(4, list) == [4]
    assert kept.get(3, list) == [3]
    assert kept.get(0, list) == []
    kept.forget(0)
    assert kept.get(0, lambda: [0]) == [0]


def groups(group, covariate, y):
    mu = numpyro.sample("mu", dist.Normal(jnp.mean(covariate), 1.0))
    with numpyro.plate("groups", 3):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1.0))
        numpyro.deterministic("off", alpha - mu)
    with numpyro.plate("rows", len(y)):
        at = numpyro.deterministic("at", alpha[group] + covariate)
        numpyro.sample("y", dist.Normal(at, 1.0), obs=y)


def some_data(seed):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(3), rng.integers(0, 3, 5)]).astype(np.int32)
    return group, np.float32(rng.normal(size=8)), np.float32(rng.normal(size=8))


def ask(seed):
    """By question, how many programs are compiled for a fit, its posterior and what is asked of it."""
    fitted, posterior, counts = [], [], {}

    def run(name, question):
        counts[name], out = compilations(question)
        return out

    def fit():
        fitted.append(kayn.fit(groups, some_data(seed), num_particles=5, rng_key=seed, progress=False, num_steps=16))
        return fitted[0].params

    def draw():
        posterior.append(fitted[0].posterior(num_replicates=8))
        return posterior[0].log_evidences

    run("fit", fit)
    run("posterior", draw)
    mean = run("a deterministic site", lambda: posterior[0].mean("at"))
    run("another", lambda: posterior[0].mean("off"))
    run("its deviation", lambda: posterior[0].std("at"))
    product = run("expectation", lambda: posterior[0].expectation(lambda mu, alpha: mu * alpha))
    run("again", lambda: posterior[0].expectation(lambda mu, alpha: mu * alpha))
    run("covariance", lambda: posterior[0].covariance("mu", "alpha"))
    held_out = some_data(seed + 2)
    for number in (20, 30):
        run(f"{number} draws", lambda n=number: posterior[0].sample(0, n))
        run(f"{number} predictions", lambda n=number: posterior[0].predictive(0, n))
        run(f"{number} predictive densities", lambda n=number: posterior[0].log_predictive(0, n, *held_out).pointwise)
        run(f"{number} likelihoods", lambda n=number: posterior[0].log_likelihood(0, n))
    particles, weights = posterior[0].particles, posterior[0].weights("alpha")
    alpha = np.sum(particles["alpha"] * weights, 0)
    group, covariate, _ = some_data(seed)
    np.testing.assert_allclose(mean, alpha[group] + covariate, rtol=1e-4, atol=1e-5)
    assert np.shape(product) == (3,)
    return counts


def test_another_fit_of_the_same_form_compiles_nothing():
    """Data of the same shapes, other group indices and covariates among them, of which the prior reads one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.KaynWarning)
        first, second = ask(0), ask(1)
    assert first["fit"] > 0
    assert first["a deterministic site"] == 1
    assert first["expectation"] == 1
    assert not any(first[name] for name in ("another", "its deviation", "again"))
    assert not any(count for name, count in first.items() if name.startswith("30"))
    assert not any(second.values())


def test_what_is_decided_between_steps_compiles_nothing():
    """Which start is better, and whether the evidence is flat: of shapes that nothing else has."""
    logs = [jnp.asarray(np.linspace(-9, at, 13), jnp.float32) for at in (-8, -2)] + [jnp.full(13, jnp.nan)]
    starts = [{"at": 0}, {"at": 1}, {"at": 2}]
    for pair, better in (((0, 1), 1), ((1, 0), 1), ((2, 0), 0), ((0, 2), 0)):
        count, found = compilations(lambda pair=pair: best_start([starts[i] for i in pair], lambda s: logs[s["at"]]))
        assert (count, found["at"]) == (0, better)
    count, (_, history, converged) = compilations(
        lambda: until_flat(lambda state, count: (state, logs[0], UNKNOWN), None, 26, progress=False)
    )
    assert (count, history.shape, converged) == (0, (26,), False)


def test_what_is_compiled_keeps_no_problem_alive():
    """Programs stay for others to use; particles, data and plans go with the posterior."""
    posterior = kayn.Importance(groups, num_particles=30).run(0, None, *some_data(0))
    posterior.mean("at")
    posterior.expectation(lambda mu: mu**2)
    posterior.sample(0, 20)
    problem, data = weakref.ref(posterior.problem), weakref.ref(posterior.draws)
    del posterior
    gc.collect()
    assert problem() is None
    assert data() is None


def test_moments_are_those_of_a_changed_posterior():
    posterior = kayn.Importance(groups, num_particles=3, num_replicates=2).run(0, None, *some_data(0))
    before = posterior.mean("off")
    after = dataclasses.replace(posterior, log_evidences=np.array([0.0, -np.inf], np.float32)).mean("off")
    assert np.abs(before - after).max() > 1e-3


def test_an_expectation_sees_what_its_function_closes_over():
    posterior = kayn.Importance(groups, num_particles=4).run(0, None, *some_data(0))
    factor = 1.0
    first = posterior.expectation(lambda mu: factor * mu)
    factor = 2.0
    np.testing.assert_allclose(posterior.expectation(lambda mu: factor * mu), 2 * first, rtol=1e-6)


def test_an_option_that_the_compiler_no_longer_knows_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "ONCE", {"xla_cpu_no_such_option": False})
    monkeypatch.setattr(compilation, "SELDOM", {"xla_cpu_no_such_option": True})
    assert once_options() == seldom_options() == quick_options()
    monkeypatch.setattr(compilation, "QUICK", {"xla_cpu_no_such_option": False})
    assert quick_options() is None
    assert once_options() is seldom_options() is None


def test_programs_that_run_seldom_are_compiled_for_themselves():
    def program(x):
        return jnp.tanh(x) * 3.0 - 1.0

    x = np.float32([0.5, 2.0])
    count, usual = compilations(lambda: QuickJit(program)(x))
    other, seldom = compilations(lambda: QuickJit(program, options=seldom_options)(x))
    again, same = compilations(lambda: QuickJit(program, options=seldom_options)(x))
    assert (count, other, again) == (1, 1, 0)
    np.testing.assert_allclose(seldom, usual, rtol=1e-6)
    np.testing.assert_array_equal(same, seldom)


def test_a_look_at_known_numbers_is_taken_while_something_else_is_traced():
    known, seen = jnp.arange(3.0), []

    @jax.jit
    def traced(x):
        seen.append(np.asarray(compiled_now(lambda a: a + jnp.ones(3), known)(known)))
        assert compiled_now(lambda a: a + x, known) is None
        assert compiled_now(lambda a: a, x) is None
        return x

    jax.vmap(jax.grad(traced))(known)
    with jax.disable_jit():
        seen.append(compiled_now(lambda a: a + jnp.ones(3), known)(known))
    np.testing.assert_array_equal(seen, [[1.0, 2.0, 3.0]] * 2)


def test_precision_is_full_unless_the_user_says_otherwise():
    assert matmul_precision() is jax.lax.Precision.HIGHEST
    with jax.default_matmul_precision("bfloat16"):
        assert matmul_precision() is None


@pytest.mark.parametrize(("bits", "bound"), [(7, 2e-2), (10, 2e-3)])
def test_error_of_log_products_in_reduced_precision(monkeypatch, bits, bound):
    """bfloat16 (7 bits) and tf32 (10 bits) operands, emulated:
    log sums of 100 terms move by less than the operands' rounding."""
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(3 * rng.normal(size=s), jnp.float32) for s in ((20, 30, 100), (20, 100, 30)))
    exact = log_matmul(left, right)
    rounded = jax.jit(lambda a: jax.lax.reduce_precision(a, 8, bits))
    monkeypatch.setattr(
        logmatmul, "_matmul", lambda a, b: jnp.matmul(rounded(a), rounded(b), precision=jax.lax.Precision.HIGHEST)
    )
    off = jnp.abs(log_matmul(left, right) - exact)
    assert 0 < float(jnp.max(off)) < bound


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 2**13), 0), ((3, 5, 2**13), 1), ((4, 7), 0), ((0, 2**15), 0)])
def test_sums_of_long_rows_are_sums(shape, axis):
    """Values, and derivatives both ways."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    exact = x.astype(float).sum(axis)
    np.testing.assert_allclose(compilation.sum_of_rows(x, axis), exact, atol=1e-5)
    weight = np.random.default_rng(1).normal(size=exact.shape).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.vdot(compilation.sum_of_rows(x, axis), weight))(x)
    np.testing.assert_array_equal(gradient, np.broadcast_to(np.expand_dims(weight, axis), shape))
    tangent = jax.jvp(lambda x: compilation.sum_of_rows(x, axis), (x,), (2 * x,))[1]
    np.testing.assert_allclose(tangent, 2 * exact, atol=2e-5)
    many = jax.vmap(lambda x: compilation.sum_of_rows(x, axis))(x[None])
    np.testing.assert_allclose(many[0], exact, atol=1e-5)
