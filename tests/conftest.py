"""Shared fixtures. Tests run in float32, JAX's default, unless they ask for float64 with the `x64` fixture."""

import sys
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# derandomize: the same examples on every run, so that statistical checks cannot fail by bad luck
settings.register_profile(
    "kayn",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.load_profile("kayn")

QUICK = {
    "test_arguments.py",
    "test_checkpoints.py",
    "test_even.py",
    "test_handlers.py",
    "test_keys.py",
    "test_reach.py",
    "test_results.py",
    "test_walks.py",
}
"""Files that meet most of what JAX, NumPyro and ArviZ change between releases, in little time."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="a selection of tests that takes about two minutes")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        left = [i for i in items if i.path.name not in QUICK or i.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left)
        items[:] = [i for i in items if i not in set(left)]


@pytest.fixture
def x64():
    """Run one test in float64. Arrays made outside of the test keep their precision, so make them inside."""
    with jax.enable_x64(True):
        yield
