"""Every rule of `kayn.graph.plate_rules` against finite dependence: entries of the operands are changed one at a time,
and no entry of the result may move with another plate element than the one that its annotation names.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.core import Primitive

from kayn.graph import loops, plate_rules
from kayn.graph.aligned import Aligned, Operands
from kayn.graph.dependence import read_program
from kayn.graph.expressions import Node, Nodes
from kayn.graph.types import MIXED, Latent
from tests.graph.cases import CASES, Case, cases_with_moves, program

WITHOUT_CASE = {
    *("copy_p", "square_p", "mul_no_nan", "log2", "one_minus_square", "polynomial"),
    *("layout_constraint", "reshard", "sharding_constraint"),
}
"""Names that primitives of some releases have, and placements on devices."""
NEVER_FOLLOWED = {"householder_product"}
"""Its operands differ in rank, so that the rule for batches gives up."""


def allowed(latent: Latent, annotation: Mapping | Node, nodes: Nodes, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Which entries of a result may move with which of a latent's, [*latent's shape, *shape], and how many dimensions
    of several elements it is said to follow."""
    may, claims = np.full((*latent.shape, *shape), True), 0
    for plate, dim in latent.plates:
        value = None if isinstance(annotation, Node) else annotation.get((latent.name, plate))
        if value is MIXED:
            continue
        if value is None:
            return np.zeros_like(may), 0
        assert isinstance(value, Aligned)
        size = latent.shape[dim]
        link = np.arange(size) if value.link is None else nodes.concrete(value.link)
        assert len(link) == shape[value.dim], value
        where = [1] * may.ndim
        where[dim], where[len(latent.shape) + value.dim] = size, len(link)
        may = may & (np.arange(size)[:, None] == link).reshape(where)
        claims += size > 1
    return may, claims


def violations(case: Case, seen: list[tuple]) -> tuple[list[str], int]:
    """Claims that do not hold, and how many dimensions of latents are followed into results."""
    traced, latents = program(case)
    found, nodes = read_program(traced, latents, [*traced.consts, *(None for _ in latents)])
    wrong, claims = [], 0
    for output, annotation in enumerate(found.values()):
        for number, latent in enumerate(latents):
            may, followed = allowed(latent, annotation, nodes, traced.jaxpr.outvars[output].aval.shape)
            claims += followed
            for operand, place, moved in seen:
                if operand == number and (moved[output] & ~may[place]).any():
                    wrong.append(f"result {output} moves with entry {place} of {latent.name}: {annotation}")
    return wrong, claims


@pytest.mark.parametrize("name", CASES)
def test_no_rule_claims_what_does_not_hold(name, x64):
    """And every rule follows some dimension, so that there is something to hold."""
    claims = 0
    for one, seen in cases_with_moves(name):
        wrong, followed = violations(one, seen)
        assert not wrong, wrong
        claims += followed
    assert claims or name in NEVER_FOLLOWED


@pytest.mark.parametrize("name", [n for n in CASES if n in plate_rules.RULES and n not in NEVER_FOLLOWED])
def test_a_wrong_rule_is_noticed(name, x64, monkeypatch):
    """The same rule with every index one further on."""
    rule = plate_rules.RULES[name]

    def shifted(operands: Operands, params: Mapping) -> dict:
        def further(value: Any) -> Any:
            if not isinstance(value, Aligned):
                return value
            rows = np.arange(value.size) if value.link is None else operands.nodes.concrete(value.link)
            return replace(value, link=operands.nodes.constant((rows + 1) % value.size))

        return {k: further(v) for k, v in rule(operands, params).items()}

    monkeypatch.setitem(plate_rules.RULES, name, shifted)
    assert any(violations(*one)[0] for one in cases_with_moves(name))


def test_every_rule_has_a_case(x64):
    def names(jaxpr: Any) -> set[str]:
        inner = [getattr(v, "jaxpr", v) for e in jaxpr.eqns for v in jax.tree.leaves(list(e.params.values()))]
        return {e.primitive.name for e in jaxpr.eqns}.union(*(names(j) for j in inner if hasattr(j, "eqns")))

    assert {*CASES} | WITHOUT_CASE == {*plate_rules.RULES} | {*loops.RULES}
    installed = {p.name for p in gc.get_objects() if isinstance(p, Primitive)}
    for name, cases in CASES.items():
        if name not in installed:
            continue
        assert all(name in names(program(c)[0].jaxpr) for c in cases), name
