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


@pytest.fixture
def x64():
    """Run one test in float64. Arrays made outside of the test keep their precision, so make them inside."""
    with jax.enable_x64(True):
        yield
