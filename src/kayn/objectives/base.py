"""What the objectives share: options, and the set-up of a problem from SVI's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.infer import ELBO

from kayn.axes.minibatches import proposal_count
from kayn.axes.request import TARGET_ELEMENTS, make_request
from kayn.axes.types import Axis
from kayn.errors import GuideError
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.soundness import telling
from kayn.evidence.weights import weigh_against
from kayn.objectives.state import Watched, next_state
from kayn.particles.density import own_path
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.options import Couple, Denominator, Drawing, Elements, Groups, Memory, Particles, Strategy
from kayn.support.validate import checked


@dataclass(frozen=True, eq=False)
class Call:
    """What SVI passes to a loss."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: Mapping[str, Any]


class Objective(ELBO):
    """What SVI calls; subclasses say what is minimised.

    Attributes:
        draws: how particles are drawn, as the request says; as in the estimators' literature.
    """

    draws: ClassVar[Drawing] = "independent"
    can_infer_discrete = True

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, PyTree],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Loss for SVI: a scalar in nats, whose gradient is that of the estimator."""
        call, key, params = Call(model, guide, args, kwargs), as_key(rng_key), dict(param_map)
        with (watched := Watched()):
            loss = self.objective(call, key, params)
        return {"loss": loss, "mutable_state": next_state(call, key, params) if watched.mutable else None}

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """What is minimised, a scalar in nats, whose gradient in `params` is the estimate.

        Args:
            call: model, guide and their arguments.
            rng_key: one of kayn's generator.
            params: constrained values of all parameters.
        """
        raise NotImplementedError


class MassivelyParallelELBO(Objective):
    """Base of kayn's objectives: `loss` is minus the log-evidence estimate over all combinations of particles.

    Args:
        num_particles: K, one number or a mapping from latent name (and "" for the rest).
        strategy: "parallel", "global" or "local".
        groups, couple, denominator, target_elements, memory: as in `kayn.Importance`.
    """

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        groups: Groups = (),
        couple: Couple = None,
        denominator: Denominator = "mixture",
        target_elements: Elements = TARGET_ELEMENTS,
        memory: Memory = None,
    ):
        self.request = make_request(num_particles, strategy, groups, couple, target_elements, memory, draws=self.draws)
        self.denominator = denominator
        super().__init__(num_particles=num_particles)

    def problem(self, call: Call, params: Mapping[str, PyTree]) -> Problem:
        """Structure, particle axes and plan for SVI's arguments."""
        return build_problem(call.model, call.guide, call.args, call.kwargs, params, self.request, self.denominator)


def only_gradient(surrogate: Array) -> Array:
    """Zero, with the gradient of `surrogate`, whose shape it has."""
    return surrogate - jax.lax.stop_gradient(surrogate)


def log_evidence_of(problem: Problem, draws: Draws, params: Mapping[str, PyTree], terms: Mapping[str, Array]) -> Array:
    """log Z, a scalar in nats, for given particles and (minus) log proposal densities;
    differentiable in the parameters."""
    return telling(weigh_against(problem, problem.numbers, draws, params, terms)).log_evidence()


def sampled_axes(problem: Problem) -> list[Axis]:
    """The particle axes that are drawn from the guide."""
    return [a for a in problem.layout.axes if not a.enumerated]


def site_count(problem: Problem, name: str) -> float:
    """How often the log density of a latent's guide counts in its axis's proposal:
    more than once for rows of a subsampled plate without index."""
    return proposal_count(problem.guide.density, problem.graph, problem.layout.axis_of(name), name)


def refuse_dependent_axes(problem: Problem, who: str, remedy: str) -> None:
    """Raise where the guide draws the particles of one axis given those of another.

    Raises:
        GuideError: it does.
    """
    earlier = {a.name: a.base for a in problem.guide.density.aliases}
    for axis in sampled_axes(problem):
        inside = (*axis.latents, *own_path(problem.guide, problem.graph, axis), *problem.guide.auxiliary)
        for name in axis.latents:
            others = [p for p in problem.guide.parents.get(name, ()) if p not in inside]
            if not others:
                continue
            given, advice = repr(others[0]), remedy
            if earlier.get(others[0]) in axis.latents:
                given = f"{earlier[others[0]]!r} at earlier steps"
                steps = next(plate for plate, dim in problem.graph.latent(name).plates if dim == 0)
                advice = (
                    f"Make its particles whole paths, with strategy='local' or couple={{{name!r}: {steps!r}}}, or "
                    "use kayn.RWS"
                )
            raise GuideError(
                f"kayn.{who} needs particle axes that the guide draws independently, but it draws {name!r} given "
                f"{given}, whose particles are indexed apart. {advice}"
            )


def along(score: Array, axis: Axis, plate: str | None) -> Array:
    """Summed over everything but one plate: [plate], or a scalar."""
    if plate is None:
        return jnp.sum(score)
    keep = axis.scope.index(plate)
    return jnp.sum(score, tuple(d for d in range(score.ndim) if d != keep))


def pathwise_problem(problem: Problem) -> Problem:
    """The same problem, whose particles can be differentiated.

    Raises:
        GuideError: a guide site cannot be reparameterised.
    """
    for name, site in problem.guide.density.sites.items():
        if site.kind == "sample" and not site.observed and not site.delta and not site.reparameterised:
            what = "discrete" if site.discrete else f"a {site.family}, which has no pathwise gradient"
            raise GuideError(
                f"kayn.VI needs reparameterised particles, but guide site {name!r} is {what}. Use kayn.RWS or "
                "kayn.VIMCO (their gradients do not go through the particles), kayn.QEM, or sum a discrete site out "
                f"with infer={{'enumerate': 'parallel'}}"
            )
    return problem
