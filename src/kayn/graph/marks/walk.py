"""Walk a program and find which elements each entry of its outputs reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph.aligned import Key
from kayn.graph.expressions import Made, Node, Nodes, Operation, distinct
from kayn.graph.lost import Lost, line_of
from kayn.graph.marks.algebra import Mark, Marks, several, whole
from kayn.graph.marks.values import Values
from kayn.programs.calls import called
from kayn.programs.slices import equation_as_function


@dataclass(frozen=True, eq=False)
class Reading:
    """A variable: the expression that computes it, and what its entries read."""

    node: Node
    marks: Marks


@dataclass(frozen=True, eq=False)
class Equation:
    """An equation with what its operands are, as rules see it."""

    eqn: JaxprEqn
    operands: Sequence[Reading]
    results: Sequence[Node]
    walk: Walk

    @property
    def params(self) -> Mapping[str, Any]:
        """Those of the primitive."""
        return self.eqn.params

    def known(self, position: int) -> np.ndarray | None:
        """An operand's value, where data alone decide it."""
        return self.walk.values.known(self.operands[position].node)

    def shape(self, position: int) -> tuple[int, ...]:
        """An operand's shape."""
        return tuple(self.eqn.invars[position].aval.shape)

    def out_shape(self, output: int = 0) -> tuple[int, ...]:
        """A result's shape."""
        return tuple(self.eqn.outvars[output].aval.shape)


Rule = Callable[[Equation, Sequence[Mark | None]], Sequence[Mark] | None]
"""Marks of all results, of those of the operands, one latent's plate at a time; None where a rule does not apply."""
Body = Callable[[Equation], list[Marks] | None]
"""The same for equations that run other programs, all latents at once."""


@dataclass
class Walk:
    """One pass over a program.

    Attributes:
        values: numbers that rules ask for.
        rules, bodies: by primitive.
        lost: the line that is the first to join several elements of a plate, by latent and plate.
    """

    values: Values
    rules: Mapping[str, Rule]
    bodies: Mapping[str, Body]
    lost: dict[Key, Lost] = field(default_factory=dict)
    kept: list[Node] = field(default_factory=list)

    @property
    def nodes(self) -> Nodes:
        """The table of expressions."""
        return self.values.nodes

    def run(self, jaxpr: Jaxpr, inputs: Sequence[Reading], wanted: Sequence[JaxprEqn] | None = None) -> list[Reading]:
        """What the outputs are, given constants and inputs.

        Args:
            wanted: the equations that are looked at; None for all.
        """
        env: dict[Any, Reading] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

        def read(atom: Any) -> Reading:
            return Reading(self.nodes.constant(atom.val), {}) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns if wanted is None else wanted:
            env.update(zip(eqn.outvars, self._equation(eqn, [read(v) for v in eqn.invars], jaxpr), strict=True))
        blank = Reading(self.fresh(), {})
        return [read(v) if isinstance(v, Literal) or v in env else blank for v in jaxpr.outvars]

    def fresh(self) -> Node:
        """A value that is not known."""
        node = Node(None, (), Operation(Made.STEP))
        self.kept.append(node)  # nodes are told apart by identity while they live
        return node

    def constant(self, value: Any) -> Reading:
        """An array that a program within the program closes over."""
        node = self.nodes.apply(Operation(Made.CONSTANT, id(value)), lambda: value, ())
        return Reading(node, {})

    def _equation(self, eqn: JaxprEqn, operands: list[Reading], jaxpr: Jaxpr) -> list[Reading]:
        call = called(eqn)
        if call is not None:
            inner, consts = call
            before = set(self.lost)
            results = self.run(inner, [*map(self.constant, consts), *operands])
            for new in self.lost.keys() - before:  # what a library compiles apart has forgotten where it was called
                self.lost[new] = replace(self.lost[new], line=self.lost[new].line or line_of(eqn))
            return results
        key = (distinct(eqn.params), tuple(v.aval.dtype for v in eqn.outvars))
        operation, compute = Operation(eqn.primitive.name, key, eqn.params), equation_as_function(eqn, jaxpr)
        inputs = [o.node for o in operands]
        nodes = [self.nodes.apply(operation, compute, inputs, i) for i in range(len(eqn.outvars))]
        if not any(o.marks for o in operands):
            return [Reading(n, {}) for n in nodes]
        found = self._marks(Equation(eqn, operands, nodes, self))
        self._note(eqn, operands, found)
        return [Reading(n, m) for n, m in zip(nodes, found, strict=True)]

    def _marks(self, equation: Equation) -> list[Marks]:
        name, eqn = equation.eqn.primitive.name, equation.eqn
        before = set(self.lost)
        if name in self.bodies and (found := self.bodies[name](equation)) is not None:
            for new in self.lost.keys() - before:  # what joins two operands of a loop's step joins steps
                lost = self.lost[new]
                self.lost[new] = lost if lost.advice else replace(lost, primitive=name)
            return found
        rule = self.rules.get(name)
        out: list[dict[Key, Mark]] = [{} for _ in eqn.outvars]
        for key in dict.fromkeys(k for o in equation.operands for k in o.marks):
            marks = [o.marks.get(key) for o in equation.operands]
            own = None if rule is None else rule(equation, marks)
            if own is None:
                own = [whole(marks, v.aval.shape) for v in eqn.outvars]
            for place, mark in zip(out, own, strict=True):
                place[key] = mark
        return list(out)

    def _note(self, eqn: JaxprEqn, operands: Sequence[Reading], found: Sequence[Marks]) -> None:
        """Keep the line of an equation that is the first to join elements which came to it apart."""
        for key in dict.fromkeys(k for marks in found for k in marks):
            if key not in self.lost and any(several(m[key]).any() for m in found if key in m):
                self.lost[key] = Lost(line_of(eqn), eqn.primitive.name)
