"""What the objectives share: options, and the set-up of a problem from SVI's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpyro.infer import ELBO

from kayn.axes import TARGET_ELEMENTS, make_request
from kayn.evidence import Problem, build_problem


class MassivelyParallelELBO(ELBO):
    """Base of kayn's objectives: `loss` is minus the log-evidence estimate over all combinations of particles.

    Args:
        num_particles: K, one number or a mapping from latent name (and "" for the rest).
        strategy: "parallel", "global" or "local".
        groups, couple, denominator, target_elements, memory: as in `kayn.Importance`.
    """

    can_infer_discrete = True

    def __init__(
        self,
        num_particles: int | Mapping[str, int] = 10,
        strategy: str = "parallel",
        *,
        groups: Sequence[Sequence[str]] = (),
        couple: Mapping[str, str | Sequence[str]] | None = None,
        denominator: str = "mixture",
        target_elements: int = TARGET_ELEMENTS,
        memory: int | str | None = None,
    ):
        self.request = make_request(num_particles, strategy, groups, couple, target_elements, memory)
        self.denominator = denominator
        super().__init__(num_particles=num_particles)

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Mapping[str, Any], model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Loss for SVI: a scalar in nats, whose gradient is that of the estimator."""
        params = dict(param_map)
        problem = build_problem(model, guide, args, kwargs, params, self.request, self.denominator)
        return {"loss": self.objective(problem, rng_key, params), "mutable_state": None}

    def objective(self, problem: Problem, rng_key: Any, params: dict[str, Any]) -> Any:
        raise NotImplementedError
