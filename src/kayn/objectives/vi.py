"""Massively parallel variational inference: ascend log Z by pathwise gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kayn import evidence
from kayn.errors import GuideError
from kayn.evidence import Problem
from kayn.objectives.base import MassivelyParallelELBO


class VI(MassivelyParallelELBO):
    """Minus log Z, with gradients through reparameterised particles.

    With the "parallel" strategy this is the TMC / MP-VI bound (Aitchison, Tensor Monte Carlo, 2019), with "global" the
    importance weighted bound of K joint draws. E log Z never exceeds the log evidence.

    Particles are independent draws here, also those of kayn's own guides, which elsewhere fill the quantiles evenly: even
    particles make the bound so flat around the posterior that it hardly determines the guide's scales.

    Raises (from `loss`):
        GuideError: a guide site cannot be reparameterised.
    """

    def objective(self, problem: Problem, rng_key: Any, params: dict[str, Any]) -> Any:
        refuse_unreparameterised(problem)
        problem = replace(problem, guide=replace(problem.guide, draw=None))
        numbers = problem.numbers
        draws = evidence.draw_particles(problem, numbers, rng_key, params)
        slots = evidence.weigh(problem, numbers, draws, params)
        return -evidence.log_evidence(problem, numbers, slots, params, draws.subsample)


def refuse_unreparameterised(problem: Problem) -> None:
    for name, site in problem.guide.density.sites.items():
        if site.kind == "sample" and not site.observed and not site.delta and not site.reparameterised:
            what = "discrete" if site.discrete else f"a {site.family}, which has no pathwise gradient"
            raise GuideError(
                f"kayn.VI needs reparameterised particles, but guide site {name!r} is {what}. Use kayn.RWS (its gradients do not go "
                "through the particles), kayn.QEM, or sum a discrete site out with infer={'enumerate': 'parallel'}"
            )
