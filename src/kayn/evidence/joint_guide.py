"""kayn's own guide with joint Normals on the axes that were chosen without them."""

from __future__ import annotations

from dataclasses import replace

from kayn.axes.request import Request
from kayn.evidence.problem import Problem
from kayn.guides.factorised import FactorisedGuide
from kayn.guides.joint_blocks import joined
from kayn.particles.guide_program import trace_guide
from kayn.particles.shared_noise import evenly
from kayn.programs.sites import Inspected


def joint_guide(
    problem: Problem, guide: FactorisedGuide, inspected: Inspected, request: Request
) -> tuple[Problem, FactorisedGuide]:
    """A guide whose coordinates are joint where they share a particle, and its problem, on the same axes.

    Both are unchanged where no axis has several coordinates that are independent. Sites of a block depend on each
    other within an element of the plates that their axis runs over, which is all that these axes ask for.
    """
    changed = joined(guide, problem.layout, problem.graph, problem.model)
    if changed is guide:
        return problem, guide
    args, kwargs = inspected.args, inspected.kwargs
    params = {**changed.start, **inspected.params}
    traced = trace_guide(changed, args, kwargs, params, inspected.sites)
    if request.draws == "even":
        traced = evenly(traced, changed, args, kwargs, params)
    return replace(problem, guide=traced), changed


def asked_again(request: Request, problem: Problem, guide: FactorisedGuide) -> Request:
    """A request under which further problems with a joint guide put its blocks on one axis each, as this one has."""
    graph, layout = problem.graph, problem.layout
    scopes = {n: layout.axis_of(n).scope for block in guide.blocks for n in block}
    couple = dict(request.couple)
    for name, scope in scopes.items():
        gone = tuple(p for p in graph.latent(name).plate_names if p not in (*scope, *couple.get(name, ())))
        if gone:
            couple[name] = (*couple.get(name, ()), *gone)
    groups = request.groups
    for block in (b for b in guide.blocks if len(b) > 1):
        # what a user has grouped with some of them is on their axis already
        mine = [g for g in groups if set(g) & set(block)]
        groups = (*(g for g in groups if g not in mine), tuple(dict.fromkeys(n for g in (block, *mine) for n in g)))
    return replace(request, groups=groups, couple=tuple(couple.items()))
