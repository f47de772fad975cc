"""What NumPy computes of known numbers is what XLA computes, bit by bit, or is left to XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kayn.programs import primitives
from kayn.programs.by_numpy import RULES, by_numpy

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 1, 3)).astype(np.float32)
Y = np.array([0.1, -np.inf, 3e38], np.float32)
ODD = np.array([0.1, np.nan, np.inf, 1e-42, -0.0, 3e9], np.float32)
WHOLE = np.array([[2**31 - 1, -7, 0], [5, -(2**31), 3]], np.int32)
POSITIVE = np.array([[3, 2, 1], [7, 4, 2]], np.int32)
TRUE = np.array([True, False, True])
BINARY = [lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge, lax.add, lax.sub, lax.mul, lax.max, lax.min]

CASES = {
    "reshape": [(lambda x: lax.reshape(x, (3, 2)), X)],
    "broadcast_in_dim": [(lambda x: lax.broadcast_in_dim(x, (4, 2, 5, 3), (1, 2, 3)), X)],
    "squeeze": [(lambda x: lax.squeeze(x, (1,)), X)],
    "transpose": [(lambda x: lax.transpose(x, (2, 0, 1)), X)],
    "slice": [(lambda x: lax.slice(x, (0, 1), (2, 3), (1, 2)), WHOLE), (lambda x: lax.slice(x, (1, 0), (2, 2)), WHOLE)],
    "rev": [(lambda x: lax.rev(x, (0, 2)), X)],
    "concatenate": [(lambda x, y: lax.concatenate([x, y], 1), WHOLE, POSITIVE)],
    "select_n": [(lax.select_n, TRUE, Y, Y[::-1])],
    "iota": [(lambda: lax.broadcasted_iota(jnp.int32, (2, 3), 1),)],
    "convert_element_type": [
        (lambda x, t=t: lax.convert_element_type(x, t), x)
        for x in (Y[:1], WHOLE, TRUE, np.float32([2.7, -2.7]), ODD)
        for t in (jnp.float32, jnp.int32, jnp.int8, jnp.bool_, jnp.float16)
        if x.dtype != t
    ],
    **{f.__name__: [(f, Y, Y[::-1]), (f, WHOLE, POSITIVE), (f, ODD, ODD[::-1])] for f in BINARY},
    **{f.__name__: [(f, Y), (f, WHOLE), (f, ODD)] for f in (lax.neg, lax.abs)},
    **{f.__name__: [(f, np.float32([0.5, -0.5, 2.0])), (f, ODD)] for f in (lax.floor, lax.ceil, lax.is_finite)},
    "and": [(lax.bitwise_and, WHOLE, POSITIVE), (lax.bitwise_and, TRUE, TRUE[::-1])],
    "or": [(lax.bitwise_or, WHOLE, POSITIVE), (lax.bitwise_or, TRUE, TRUE[::-1])],
    "xor": [(lax.bitwise_xor, WHOLE, POSITIVE), (lax.bitwise_xor, TRUE, TRUE[::-1])],
    "not": [(lax.bitwise_not, WHOLE), (lax.bitwise_not, TRUE)],
    "rem": [(lax.rem, WHOLE, POSITIVE), (lax.rem, WHOLE, 0 * POSITIVE), (lax.rem, Y, Y)],
    "reduce_sum": [(lambda x: x.sum(0), WHOLE), (lambda x: x.sum(0), X)],
    "reduce_max": [(lambda x: x.max(1), WHOLE), (lambda x: x.max(1), X)],
    "reduce_min": [(lambda x: x.min(), WHOLE)],
    "reduce_and": [(lambda x: x.all(), TRUE)],
    "reduce_or": [(lambda x: x.any(), TRUE)],
    "copy": [(lambda x: lax.copy_p.bind(x), WHOLE)],
    "stop_gradient": [],
    "copy_p": [],
}
"""By primitive: functions that JAX traces to it, and their operands. The last two are names of `copy`."""


def test_every_rule_has_a_case_and_a_primitive_of_jax():
    assert CASES.keys() == RULES.keys()
    assert RULES.keys() <= primitives.ELEMENTWISE | primitives.LINEAR | primitives.REDUCTIONS | primitives.SAME | {
        "iota"
    }


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n]])
def test_numbers_are_those_of_xla(name):
    answered = 0
    for function, *operands in CASES[name]:
        (eqn,) = (e for e in jax.make_jaxpr(function)(*operands).eqns if e.primitive.name == name)
        found = by_numpy(name, eqn.params, operands)
        if found is None:
            continue  # left to XLA
        expected = np.asarray(jax.jit(function)(*operands))
        answered += 1
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    assert answered
