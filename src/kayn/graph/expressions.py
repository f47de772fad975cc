"""Values that do not depend on any latent, kept as hash-consed expressions.

Ragged links are index vectors such as `county` in `alpha[county]`. They are remembered as the expression that
computes them from the program's constants and inputs, so that the same link works for concrete data, for data that
are arguments of an enclosing `jax.jit`, and for minibatches. Equal expressions are one object, so two reads through
the same index are recognised even when its numbers are unknown at trace time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from kayn.graph.lost import Lost
from kayn.programs.by_numpy import by_numpy
from kayn.support.arrays import Array


class Made(Enum):
    """Operations that no program has written, with which indices are put together."""

    INPUT = "input"
    LITERAL = "literal"
    CONSTANT = "constant"
    TAKE = "take"
    DERIVE = "derive"
    COLUMN = "column"
    STEP = "within a loop"


@dataclass(frozen=True)
class Operation:
    """What an expression does to its inputs: equal operations on the same inputs are one expression.

    Attributes:
        name: the name of JAX's primitive, if it is one.
        key: what tells its parameters apart, hashable.
        params: the parameters of a primitive.
    """

    name: str | Made
    key: Any = ()
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)


def distinct(value: Any) -> Any:
    """What tells parameters of primitives apart, hashable: equal for equal ones of the same types; functions, jaxprs
    and what has no equality are told apart by identity."""
    if isinstance(value, Jaxpr | ClosedJaxpr) or callable(value):
        return id(value)
    if isinstance(value, float | complex):
        return type(value), repr(value)  # zero is not minus zero
    if isinstance(value, np.ndarray | np.generic):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, Mapping):
        return tuple(sorted((name, distinct(v)) for name, v in value.items()))
    if type(value) in (tuple, list):
        return type(value), tuple(distinct(v) for v in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


@dataclass(frozen=True, eq=False)
class Node:
    """One expression. `leaf` is its position among the program's inputs, if it is one."""

    compute: Callable[..., Any] | None
    inputs: tuple[Node, ...]
    operation: Operation
    output: int = 0
    leaf: int | None = None
    literal: Array | None = None


@dataclass(frozen=True)
class Wrapped:
    """An index array with negative entries, of which a latent's plate is read from the end."""

    latent: str
    plate: str
    size: int
    values: np.ndarray


@dataclass
class Nodes:
    """The table of expressions of one program, and the concrete values of its inputs where they are known."""

    known: Sequence[Array]
    table: dict[Any, Node] = field(default_factory=dict)
    lengths: dict[Node, int] = field(default_factory=dict)
    """How long the vector is that a "take" takes from, where that is known."""
    wrapped: list[Wrapped] = field(default_factory=list)
    lost: dict[tuple[str, str], Lost] = field(default_factory=dict)
    """What mixes elements of a latent, by latent and plate."""
    _values: dict[int, Array] = field(default_factory=dict)

    def leaf(self, position: int) -> Node:
        """An input; concrete integer inputs with equal contents are the same leaf."""
        value = self.known[position]
        key: Any = ("leaf", position)
        if is_concrete(value) and jax.dtypes.issubdtype(value.dtype, np.integer):
            array = np.asarray(value)
            key = ("content", array.shape, str(array.dtype), array.tobytes())
        if key not in self.table:
            self.table[key] = Node(None, (), Operation(Made.INPUT), leaf=position)
        return self.table[key]

    def constant(self, value: Array) -> Node:
        """The node of an array with these numbers, the same for equal ones."""
        array = np.asarray(value)
        key = ("literal", array.shape, str(array.dtype), array.tobytes())
        if key not in self.table:
            self.table[key] = Node(None, (), Operation(Made.LITERAL), literal=array)
        return self.table[key]

    def apply(self, operation: Operation, compute: Callable[..., Any], inputs: Sequence[Node], output: int = 0) -> Node:
        """The node of an operation on others, the same for equal operations on the same nodes.

        Args:
            operation: what it is, parameters included.
            compute: what it does to arrays; returns one, or a list of which `output` is the place.
        """
        key = (operation, output, tuple(id(n) for n in inputs))
        if key not in self.table:
            self.table[key] = Node(compute, tuple(inputs), operation, output)
        return self.table[key]

    def canonical(self, node: Node) -> Node:
        """The first node seen with the same numbers, where these are known
        (indices are computed in many equal ways)."""
        value = self.concrete(node)
        if value is None:
            return node
        return self.table.setdefault(("canonical", value.shape, value.astype(np.int64).tobytes()), node)

    def concrete(self, node: Node) -> np.ndarray | None:
        """The value as NumPy array, or None when it depends on a traced input."""
        if not is_known(node, self.known, {}):
            return None
        return number(node, self.known, self._values)


def evaluate(
    node: Node,
    inputs: Sequence[Array],
    memo: dict[int, Array] | None = None,
    given: Callable[[Array], Array] = lambda value: value,
    computed: Callable[[Node, list[Array]], Any] = lambda node, operands: node.compute(*operands),  # type: ignore[misc]
) -> Array:
    """Compute an expression from the values of the program's inputs.

    Args:
        given: what is made of inputs and literals.
        computed: what a node is, of its operands.
    """
    memo = {} if memo is None else memo
    if node.leaf is not None:
        return given(inputs[node.leaf])
    if node.literal is not None:
        return given(node.literal)
    if id(node) not in memo:
        value = computed(node, [evaluate(n, inputs, memo, given, computed) for n in node.inputs])
        memo[id(node)] = value[node.output] if isinstance(value, list | tuple) else value
    return memo[id(node)]


def number(node: Node, inputs: Sequence[Array], memo: dict[int, Array]) -> np.ndarray | None:
    """The value of an expression whose inputs are known, now; None if it is a key."""
    value = evaluate(node, inputs, memo, _on_host, _now)
    return None if is_key(value) else np.asarray(value)


def _on_host(value: Array) -> Array:
    return value if is_key(value) else np.asarray(value)


def _now(node: Node, operands: list[Array]) -> Any:
    value = by_numpy(node.operation.name, node.operation.params, operands)
    if value is not None:
        return value
    assert node.compute is not None
    with jax.ensure_compile_time_eval():
        return node.compute(*operands)


def take(nodes: Nodes, link: Node, index: Node) -> Node:
    """The composed link `link[index]`."""
    return nodes.apply(Operation(Made.TAKE), _taken, (link, index))


def _taken(array: Array, index: Array) -> Array:
    if isinstance(array, np.ndarray) and isinstance(index, np.ndarray) and _is_within(index, len(array)):
        return array[index]
    return jnp.asarray(array)[index]


def _is_within(index: np.ndarray, size: int) -> bool:
    """Whether NumPy and JAX read the same entries."""
    return not index.size or (index.min() >= 0 and index.max() < size)


def one_column(nodes: Nodes, index: Node, select: tuple[int | slice, ...]) -> Node:
    """One column of an array of indices."""
    key = tuple(None if isinstance(s, slice) else s for s in select)
    operation = Operation(Made.COLUMN, key)
    return nodes.apply(operation, lambda i: (i if isinstance(i, np.ndarray) else jnp.asarray(i))[select], (index,))


def derive(nodes: Nodes, to_inner: Node, to_outer: Node, inner_size: int) -> Node:
    """The map inner -> outer of nested plates, from the maps rows -> inner and rows -> outer.

    Inner elements that no row mentions map to 0, which is harmless: nothing was summed into them.
    """

    def compute(inner: Array, outer: Array) -> Array:
        return jnp.zeros(inner_size, jnp.int32).at[inner].set(jnp.asarray(outer, jnp.int32))

    return nodes.apply(Operation(Made.DERIVE, inner_size), compute, (to_inner, to_outer))


def nested_through(
    nodes: Nodes, to_inner: Node, to_outer: Node, sizes: tuple[int, int], used: Sequence[Node] = ()
) -> Node | None:
    """The map inner -> outer if rows that share an inner element always share the outer one, else None.

    Decided by numbers where they are known, otherwise by the form of the expression (`outer_of_inner[inner]`). A map
    among `used` that agrees on all rows is preferred, because another factor reads the outer plate through it; where no
    row tells, it must not lead out of the plate, as one between two other plates may.

    Args:
        sizes: of the inner plate and of the outer one.
    """
    inner_size, outer_size = sizes
    if to_outer.operation.name is Made.TAKE and to_outer.inputs[1] is to_inner:
        return to_outer.inputs[0]
    inner, outer = nodes.concrete(to_inner), nodes.concrete(to_outer)
    if inner is None or outer is None:
        return None
    for node in used:
        known = nodes.concrete(node)
        if known is None or known.shape != (inner_size,) or np.any((known < 0) | (known >= outer_size)):
            continue
        if np.array_equal(known[inner], outer):
            return node
    table = np.zeros(inner_size, np.int64)
    table[inner] = outer
    return derive(nodes, to_inner, to_outer, inner_size) if np.array_equal(table[inner], outer) else None


def is_key(value: Any) -> bool:
    """Whether a value is a typed key, which is no array of numbers."""
    return jax.dtypes.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)


def is_concrete(value: Any) -> bool:
    """Whether numbers are known now, and not only when a traced program runs."""
    return value is not None and not isinstance(value, jax.core.Tracer)


def is_known(node: Node, inputs: Sequence[Array], seen: dict[int, bool]) -> bool:
    """Whether all that an expression is computed of is; answers for its parts are kept in `seen`, by identity."""
    if id(node) not in seen:
        own = node.literal if node.leaf is None else inputs[node.leaf]
        atom = node.compute is None
        seen[id(node)] = is_concrete(own) if atom else all(is_known(n, inputs, seen) for n in node.inputs)
    return seen[id(node)]
