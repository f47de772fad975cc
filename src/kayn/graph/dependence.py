"""Walk a program's jaxpr and find which plate elements of which latents every output reads.

A conservative abstract interpretation: what does not depend on latents stays an expression (`Node`), what does carries
an annotation (`kayn.graph.plate_rules`). Nothing is computed, except index vectors that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph import loops
from kayn.graph.aligned import Aligned, Annotation, Operands, in_one_dimension, mixed
from kayn.graph.expressions import Made, Node, Nodes, Operation, distinct
from kayn.graph.lost import note_lost
from kayn.graph.plate_rules import RULES
from kayn.graph.types import Latent
from kayn.programs.calls import called
from kayn.programs.outputs import OutputName
from kayn.programs.slices import equation_as_function
from kayn.programs.trace import Program
from kayn.support.arrays import Array

Abstract = Annotation | Node


def read_program(
    program: Program, latents: Sequence[Latent], known: Sequence[Array]
) -> tuple[dict[OutputName, Abstract], Nodes]:
    """What every output of the program is: an annotation if it depends on a latent, else an expression.

    Args:
        program: the traced program.
        latents: those inputs that are latent, with their plates.
        known: values of the jaxpr's constants and inputs in order, None or tracers where unknown.
    """
    nodes = Nodes(known)
    by_name = {z.name: z for z in latents}
    inputs: list[Abstract] = [nodes.leaf(i) for i in range(len(program.consts))]
    for position in range(len(program.jaxpr.invars)):
        name = program.inputs[position] if position < len(program.inputs) else None
        if name in by_name:
            inputs.append(source(by_name[name]))
        else:
            inputs.append(nodes.leaf(len(program.consts) + position))
    outputs = _walk(program.jaxpr, inputs, nodes)
    found = [o if isinstance(o, Node) else in_one_dimension(o) for o in outputs]
    return dict(zip(program.outputs, found, strict=True)), nodes


def source(latent: Latent) -> Annotation:
    """The annotation of the latent's own value."""
    return {(latent.name, ""): None} | {
        (latent.name, p): Aligned(dim, None, latent.shape[dim]) for p, dim in latent.plates
    }


def _walk(jaxpr: Jaxpr, inputs: Sequence[Abstract], nodes: Nodes) -> list[Abstract]:
    env: dict[Any, Abstract] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def read(atom: Any) -> Abstract:
        return nodes.constant(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(eqn, [read(v) for v in eqn.invars], nodes, jaxpr), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn: JaxprEqn, inputs: list[Abstract], nodes: Nodes, jaxpr: Jaxpr) -> list[Abstract]:
    name = eqn.primitive.name
    call = called(eqn)
    if call is not None:
        inner, consts = call
        return _walk(inner, [*(_hidden(nodes, c) for c in consts), *inputs], nodes)
    known = [i for i in inputs if isinstance(i, Node)]
    if len(known) == len(inputs):
        return [_apply(eqn, known, nodes, output, jaxpr) for output in range(len(eqn.outvars))]

    annotations = [{} if isinstance(i, Node) else i for i in inputs]
    if name in loops.RULES:
        carried: list[Abstract] = list(loops.read_loop(eqn, inputs, nodes, _walk))
        note_lost(nodes.lost, eqn, annotations, carried)
        return carried
    rule = RULES.get(name)
    out: list[Abstract] = []
    for output, variable in enumerate(eqn.outvars):
        operands = Operands(
            nodes,
            annotations,
            [i if isinstance(i, Node) else None for i in inputs],
            [v.aval.shape for v in eqn.invars],
            variable.aval.shape,
            output,
        )
        out.append(mixed(annotations) if rule is None else rule(operands, eqn.params))
    note_lost(nodes.lost, eqn, annotations, out)
    return out


def _apply(eqn: JaxprEqn, inputs: Sequence[Node], nodes: Nodes, output: int, jaxpr: Jaxpr) -> Node:
    key = (distinct(eqn.params), tuple(v.aval.dtype for v in eqn.outvars))
    operation = Operation(eqn.primitive.name, key, eqn.params)
    return nodes.apply(operation, equation_as_function(eqn, jaxpr), inputs, output)


def _hidden(nodes: Nodes, value: Any) -> Node:
    return nodes.apply(Operation(Made.CONSTANT, id(value)), lambda: value, ())
