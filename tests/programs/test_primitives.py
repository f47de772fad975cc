"""JAX's primitives: every one has a rule or is listed as having none, in the installed release."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from kayn.graph import flow, loops, plate_rules, predictor_terms, reads, regions
from kayn.graph.bodies import Look, Origin, Source
from kayn.graph.influence import influences
from kayn.programs import primitives, squeeze

ALL = """
import gc
import jax, jax.lax.linalg, jax.nn, jax.numpy, jax.random, jax.scipy.special, jax.scipy.stats
import numpyro, numpyro.contrib.control_flow, numpyro.distributions
from jax.extend.core import Primitive
print(*sorted({p.name for p in gc.get_objects() if isinstance(p, Primitive)}), sep="\\n")
"""
"""Asked of a process of its own: other tests import parts of JAX that no model needs."""
READERS = {
    "how plates move": {*plate_rules.RULES, *loops.RULES},
    "which elements count": {*reads.RULES, *regions.RULES},
    "sums and products": {*predictor_terms.RULES, *primitives.SAME},
    "flow of data": set(flow.SPECIAL),
    "dimensions of size one": set(squeeze.RULES),
    "cost": {*primitives.TRANSCENDENTAL, *primitives.POLYNOMIAL},
    "calls": set(primitives.CALLS),
}
KNOWN = set().union(*READERS.values())
ONLY_PLATES = {"householder_product", "symmetric_product", "top_k"}
ONLY_ELEMENTS = {
    "dynamic_update_slice",
    "scatter",
    "scatter-add",
    "scatter-max",
    "scatter-min",
    "scatter-mul",
    "scatter-sub",
}
"""Of these, one of the two readers knows nothing: all elements are taken to count, all plates to be mixed."""


@pytest.fixture(scope="module")
def present():
    """Names of the installed JAX's primitives."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", ALL], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_every_primitive_is_listed(present):
    assert len(present) > 200
    assert {"add", "dot_general", "scan", "jit", "gather"} <= present
    new = sorted(present - KNOWN - primitives.WITHOUT_RULE)
    assert not new, (
        f"JAX {jax.__version__} has primitives that kayn has not heard of: {new}. Where a model can make one of a "
        "latent, say in kayn.programs.primitives what it does (ELEMENTWISE, LINEAR, IDENTITY, ...) or write a rule in "
        "kayn.graph.plate_rules; else add it to WITHOUT_RULE"
    )


def test_no_primitive_is_listed_twice():
    assert not KNOWN & primitives.WITHOUT_RULE


def test_readers_know_the_same_primitives(present):
    """One that is followed by plates is followed by elements as well, and the other way around."""
    plates, elements = READERS["how plates move"] & present, READERS["which elements count"] & present
    assert plates - elements == ONLY_PLATES & present
    assert elements - plates == ONLY_ELEMENTS & present


X = np.linspace(-1.0, 1.0, 12).reshape(3, 4).astype(np.float32)
PARTLY = {
    "log2": lambda x: jnp.log2(1 + x**2),
    "one_minus_square": lambda x: jnp.sqrt(1 - jnp.tanh(x) ** 2),
    "name": lambda x: checkpoint_name(jnp.sin(x), "kept"),
    "device_put": lambda x: jnp.add(*jax.device_put((2 * x, x + 1), jax.devices()[0])),
    "complex": lambda x: jnp.abs(jax.lax.complex(x, x - 1)),
    "stack": lambda x: jnp.stack([x, 2 * x])[1],
    "unstack": lambda x: jnp.stack(jnp.unstack(x)),
    "tile": lambda x: jnp.tile(x, (2, 1))[3:],
}


@pytest.mark.parametrize("name", PARTLY)
def test_elements_that_do_not_count_are_told_apart(name):
    """Of a function of [3, 4] to [3, 4], a few entries are wanted."""
    wanted = np.zeros((3, 4), bool)
    wanted[0, 1] = wanted[2] = True
    closed = jax.make_jaxpr(PARTLY[name])(X)
    values = [*closed.consts, jnp.asarray(X)]
    origins = [*(Origin(Source.KNOWN, False) for _ in closed.consts), Origin(Source.CONTINUOUS, False)]
    found = influences(closed.jaxpr, values, origins, [jnp.asarray(wanted)], Look())
    np.testing.assert_array_equal(np.broadcast_to(found[-1], (3, 4)), wanted)


@pytest.mark.parametrize("left", [True, False])
def test_right_hand_sides_of_triangular_systems_are_apart(left):
    matrix = np.tril(np.ones((3, 3), np.float32))

    def solve(x):
        return jax.lax.linalg.triangular_solve(matrix, x, left_side=left, lower=True)

    wanted = np.zeros((3, 4) if left else (4, 3), bool)
    wanted[1, 1] = True
    closed = jax.make_jaxpr(solve)(wanted.astype(np.float32))
    values = [*closed.consts, jnp.zeros(wanted.shape)]
    origins = [*(Origin(Source.KNOWN, False) for _ in closed.consts), Origin(Source.CONTINUOUS, False)]
    found = influences(closed.jaxpr, values, origins, [jnp.asarray(wanted)], Look())[-1]
    np.testing.assert_array_equal(found, np.broadcast_to(wanted.any(0 if left else 1, keepdims=True), wanted.shape))
