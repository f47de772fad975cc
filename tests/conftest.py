"""Shared fixtures. Tests run in float32, JAX's default, unless they ask for float64 with the `x64` fixture."""

import ctypes
import gc
import os
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

from tests.tiers import Stopwatch, name_of, slow_tests

# derandomize: the same examples on every run, so that statistical checks cannot fail by bad luck
settings.register_profile(
    "kayn",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.load_profile("kayn")

HERE = Path(__file__).parent
MOST = 1.2e9
"""Bytes of memory from which compiled programs are forgotten between two tests;
a hundred models leave gigabytes of them."""
QUICK = {
    "support/test_arguments.py": ("",),
    "test_checkpoints.py": ("",),
    "programs/test_handlers.py": ("density", "evidence", "given", "inside", "state[rws", "refused"),
    "support/test_keys.py": ("forms", "generator_is", "generators", "vmap"),
    "support/test_numpyro_internals.py": ("",),
    "particles/test_reach.py": ("",),
    "posterior/test_results.py": ("exported", "tree", "labels", "khat", "rows_share", "order_of"),
}
"""Tests that meet most of what JAX, NumPyro and ArviZ change between releases, in little time: words in the names of
those of a file."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="a selection of tests that takes about two minutes")
    parser.addoption("--everyday", action="store_true", help="all tests but those that tests/slow.txt lists")
    parser.addoption("--find-slow", action="store_true", help="write tests/slow.txt from the times of this run")


def pytest_ignore_collect(collection_path, config):
    """Files that hold no quick test need not be imported, which takes half a minute."""
    if config.getoption("--quick") and collection_path.name.startswith("test_"):
        return str(collection_path.relative_to(HERE)) not in QUICK or None
    return None


def pytest_collection_modifyitems(config, items):
    slow = slow_tests() if config.getoption("--everyday") else ()
    kept = [i for i in items if name_of(i) not in slow and (is_quick(i) or not config.getoption("--quick"))]
    config.hook.pytest_deselected(items=[i for i in items if i not in set(kept)])
    items[:] = kept


def is_quick(item):
    words = QUICK.get(str(item.path.relative_to(HERE)), ())
    return any(w in item.name for w in words)


ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"
"""XLA cuts programs into parts that cores compile side by side, which takes a third more time altogether; here every
core has tests of its own. What is compiled stays the same, but for how some cancelling sums round."""


def keep_programs(config):
    """Two programs in five are equal to one of an earlier test, which JAX does not know again where other functions
    have traced them. They are kept by their text, as long as this process lives: others could read them half written.
    """
    directory = tempfile.TemporaryDirectory(prefix="kayn-programs-")
    config.add_cleanup(directory.cleanup)
    jax.config.update("jax_compilation_cache_dir", directory.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
    """Let XLA compile in a third of the time, since the tests wait for the compiler. What `--quick` selects is compiled
    as users compile it, and so is what tests run in processes of their own."""
    gc.set_threshold(50_000, 20, 20)  # tracing makes many objects, few of which wait for the collector
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_PART}"
    os.environ["XLA_FLAGS"] = flags  # of other processes too
    keep_programs(config)
    if config.getoption("--find-slow"):
        config.pluginmanager.register(Stopwatch())
    if config.getoption("--quick"):
        return
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where an instruction comes from
    if jax.__version_info__ < (0, 11):  # later releases stop at this flag, which they no longer know
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XLA_FLAGS", f"{flags} --xla_cpu_use_fusion_emitters=false")
            jax.jit(lambda: 0)()  # flags are read once, by the first program


def pytest_collection_finish():
    """What imports have made stays until the end, and need not be looked through again."""
    gc.collect()
    gc.freeze()


def resident():
    """Bytes of memory that this process holds; zero where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.fixture(scope="session")
def forget():
    """What makes JAX forget its compiled programs where these have become too many."""
    limit = MOST

    def forget():
        nonlocal limit
        if resident() > limit:
            jax.clear_caches()
            gc.collect()
            if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)
            # what cannot be freed must not be tried after every test
            limit = max(MOST, resident() + MOST / 4)

    return forget


@pytest.fixture(autouse=True)
def _within_memory(forget):
    yield
    forget()


@pytest.fixture
def x64():
    """Run one test in float64. Arrays made outside of the test keep their precision, so make them inside."""
    with jax.enable_x64(True):
        yield
