"""Which plate elements a loop's results depend on: rules for `scan`, `while` and `cond`,
whose bodies are programs themselves.

A loop's carry is followed by a fixed point: what enters the first step and what leaves any step is joined until nothing
is added. So a recurrent network keeps its sequences apart, however far back its state reaches, as long as every step
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn

from kayn.graph.aligned import Annotation, merge, mixed, move
from kayn.graph.expressions import Made, Node, Nodes, Operation
from kayn.graph.types import MIXED

Abstract = Annotation | Node
Walk = Callable[[Jaxpr, Sequence[Abstract], Nodes], list[Abstract]]


def read_loop(eqn: JaxprEqn, inputs: Sequence[Abstract], nodes: Nodes, walk: Walk) -> list[Annotation]:
    """The annotations of a loop's outputs, given those of its inputs, some of which depend on latents.

    Args:
        walk: reads a program.
    """
    return RULES[eqn.primitive.name](eqn, inputs, _Bodies(nodes, walk))


class _Bodies:
    """Reads loop bodies. What changes from step to step is unknown: no index may be remembered that rests on it."""

    def __init__(self, nodes: Nodes, walk: Walk):
        self.nodes, self.walk = nodes, walk
        self.unknown: set[int] = set()
        self.kept: list[Node] = []

    def anew(self) -> Node:
        """A value that differs from step to step."""
        node = Node(None, (), Operation(Made.STEP))
        self.kept.append(node)  # identities are compared while it lives
        self.unknown.add(id(node))
        return node

    def inside(self, annotation: Annotation) -> Abstract:
        return annotation or self.anew()

    def run(self, closed: Any, inputs: Sequence[Abstract]) -> list[Annotation]:
        """A body's outputs, in terms that hold at every step."""
        outputs = self.walk(closed.jaxpr, [*(self.anew() for _ in closed.consts), *inputs], self.nodes)
        return [{} if isinstance(x, Node) else {k: self._settled(v) for k, v in x.items()} for x in outputs]

    def _settled(self, value: Any) -> Any:
        link = None if value is MIXED or value is None else value.link
        return MIXED if link is not None and self._varies(link, {}) else value

    def _varies(self, node: Node, seen: dict[int, bool]) -> bool:
        if id(node) not in seen:
            seen[id(node)] = id(node) in self.unknown or any(self._varies(n, seen) for n in node.inputs)
        return seen[id(node)]

    def fixed_point(self, step: Callable[[list[Annotation]], list[Annotation]], start: list[Annotation]) -> Any:
        """The carry that enters any step, and all that a step gives for it; the carry comes first."""
        carry = start
        while True:
            found = step(carry)
            joined: list[Annotation] = [merge([before, now]) for before, now in zip(carry, found, strict=False)]
            if joined == carry:
                return carry, found
            carry = joined


def _scan(eqn: JaxprEqn, inputs: Sequence[Abstract], bodies: _Bodies) -> list[Annotation]:
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    fixed, init, xs = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
    now = [_at_a_step(bodies.nodes, _annotation(x)) for x in xs]

    def step(carry: list[Annotation]) -> list[Annotation]:
        return bodies.run(eqn.params["jaxpr"], [*fixed, *map(bodies.inside, carry), *map(bodies.inside, now)])

    carry, found = bodies.fixed_point(step, [_annotation(x) for x in init])
    return [*carry, *(move(bodies.nodes, y, lambda a: replace(a, dim=a.dim + 1)) for y in found[carried:])]


def _while(eqn: JaxprEqn, inputs: Sequence[Abstract], bodies: _Bodies) -> list[Annotation]:
    asked, used = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, fixed, init = inputs[:asked], inputs[asked : asked + used], inputs[asked + used :]

    def step(carry: list[Annotation]) -> list[Annotation]:
        return bodies.run(eqn.params["body_jaxpr"], [*fixed, *map(bodies.inside, carry)])

    carry, _ = bodies.fixed_point(step, [_annotation(x) for x in init])
    go_on = bodies.run(eqn.params["cond_jaxpr"], [*condition, *map(bodies.inside, carry)])
    # where latents say how often, every result depends on all that they are
    return [merge([c, mixed(go_on)]) for c in carry]


def _cond(eqn: JaxprEqn, inputs: Sequence[Abstract], bodies: _Bodies) -> list[Annotation]:
    chosen, operands = mixed([_annotation(inputs[0])]), inputs[1:]
    branches = [bodies.run(branch, operands) for branch in eqn.params["branches"]]
    return [merge([*found, chosen]) for found in zip(*branches, strict=True)]


def _annotation(x: Abstract) -> Annotation:
    return {} if isinstance(x, Node) else x


def _at_a_step(nodes: Nodes, annotation: Annotation) -> Annotation:
    """One row of an array: whatever runs along the rows may be any element."""
    return move(nodes, annotation, lambda a: replace(a, dim=a.dim - 1) if a.dim else MIXED)


RULES = {"scan": _scan, "while": _while, "cond": _cond}
