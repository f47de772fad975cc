"""Expressions are one object where they are equal, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kayn.graph.expressions import Made, Nodes, Operation, distinct, nested_through

LONG = np.zeros(5000)
OTHER = np.concatenate([LONG[:2500], [1.0], LONG[2501:]])

DIFFERENT = {
    "number and truth value": (1, True),
    "number and float": (1, 1.0),
    "text and number": ("1", 1),
    "signs of zero": (0.0, -0.0),
    "long arrays that print alike": (LONG, OTHER),
    "types of arrays": (LONG, LONG.astype(np.float32)),
    "shapes of arrays": (LONG, LONG[None]),
    "functions of one name": (lambda x: x, lambda x: x),
    "within a tuple": ((0, (1, 2.0)), (0, (1, 2))),
    "within a mapping": ({"a": 1}, {"a": True}),
    "traced functions": (jax.make_jaxpr(jnp.sin)(1.0), jax.make_jaxpr(jnp.cos)(1.0)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_parameters_are_told_apart(name):
    first, second = DIFFERENT[name]
    assert distinct(first) != distinct(second)
    assert distinct(first) == distinct(first)


def test_equal_parameters_are_one():
    pairs = [(LONG, LONG.copy()), ((1, "a", None), (1, "a", None)), ({"a": 1, "b": [2]}, {"b": [2], "a": 1})]
    for first, second in pairs:
        assert distinct(first) == distinct(second)
        assert hash(distinct(first)) == hash(distinct(second))


def test_equal_operations_on_the_same_inputs_are_one_node():
    nodes = Nodes([jnp.arange(3), jnp.arange(4)])
    first, second = nodes.leaf(0), nodes.leaf(1)

    def apply(name, key, inputs, output=0):
        return nodes.apply(Operation(name, key), lambda *arrays: arrays[0], inputs, output)

    one = apply("neg", (), [first])
    assert apply("neg", (), [first]) is one
    others = [
        apply("neg", (), [second]),
        apply("neg", (1,), [first]),
        apply("neg", (), [first], 1),
        apply(Made.TAKE, (), [first]),
    ]
    assert len({id(n) for n in (one, *others)}) == 5


def test_a_map_between_other_plates_leads_out_of_the_plate():
    """Of three inner elements rows mention the last two; one map that agrees there goes to an outer plate of more."""
    nodes = Nodes([jnp.array([1, 1, 2]), jnp.array([0, 0, 1]), jnp.array([4, 0, 1]), jnp.array([1, 0, 1])])
    inner, outer, wider, other = (nodes.leaf(i) for i in range(4))
    assert nested_through(nodes, inner, outer, (3, 5), [wider, other]) is wider
    assert nested_through(nodes, inner, outer, (3, 2), [wider, other]) is other
    made = nested_through(nodes, inner, outer, (3, 2), [wider])
    np.testing.assert_array_equal(nodes.concrete(made), [0, 0, 1])
