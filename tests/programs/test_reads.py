"""Reads of long vectors are kept apart from arithmetic, with the same values."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from kayn.programs.reads import LONG, _apart

INDEX = np.arange(2 * LONG) % 5


def barriers(jaxpr):
    return jaxpr.pretty_print().count("optimization_barrier")


def test_long_reads_stand_alone_and_values_stay():
    def function(u, v):
        inner = jax.jit(lambda w: 2.0 * w[INDEX])
        return jnp.exp(u[INDEX]) + inner(v), v[INDEX[:3]].sum()

    u, v = jnp.linspace(-1.0, 1.0, 5), jnp.arange(5.0)
    closed = jax.make_jaxpr(function)(u, v)
    changed = _apart(closed.jaxpr)
    assert barriers(closed.jaxpr) == 0
    # those of u and, within another function, of v; three rows are no long read
    assert barriers(changed) == 2
    for found, expected in zip(jaxpr_as_fun(ClosedJaxpr(changed, closed.consts))(u, v), function(u, v), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
