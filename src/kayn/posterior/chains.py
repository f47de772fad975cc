"""A posterior of what chains have drawn: every question of `Posterior`, of draws that are alike in weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import QueryError
from kayn.evidence.draws import Draws, deterministic_values
from kayn.evidence.problem import Problem, model_inputs
from kayn.posterior import mixing, stored
from kayn.posterior.blocks import block_size, joined, on_device, starts
from kayn.posterior.call import Call
from kayn.posterior.joint import BLOCK, JointDraws, entries
from kayn.posterior.posterior import Posterior
from kayn.posterior.replay import block_of
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.options import PathName
from kayn.support.validate import checked

UNKNOWN = (float("nan"), float("nan"))
FAILED = "weights that failed a check"
OF_DRAWS = "weights of the guide with these draws' moments"


@dataclass(frozen=True, eq=False, repr=False)
class Chains(Posterior):
    """Draws of chains, with every question of a `Posterior`; its replicates are the chains, its particles their draws,
    alike in weight: `draws.values` are [chains, draws, *shape] by latent.

    Attributes:
        evidence: the log evidence and its error, from importance weights; NaN where it was not estimated, since chains
            do not tell it.
        evidence_from: which weights.
        reasons: why a fit's posterior was sampled.
        course: how, in words.
    """

    chained: ClassVar[bool] = True
    evidence: tuple[float, float] = UNKNOWN
    evidence_from: str = FAILED
    reasons: tuple[str, ...] = ()
    course: str = ""

    @staticmethod
    def of(
        problem: Problem,
        call: Call,
        params: dict[str, PyTree],
        draws: Mapping[str, np.ndarray],
        **told: Any,
    ) -> Chains:
        """From draws of all latents, [chains, draws, *shape].

        Args:
            problem: the model with any axes: no question looks at them.
            told: further attributes.
        """
        own, count = Draws(dict(draws), {}, {}), len(next(iter(draws.values())))
        every = np.full(count, np.nan, np.float32)
        return Chains(problem, call, problem.numbers, params, own, every, {}, **told)

    def __str__(self) -> str:
        """The model, why and how it was sampled, whether chains agree, and the log evidence."""
        found = mixing.worst(self.draws.values)
        lines = [f"Posterior of {self.call.name}: {self.num_replicates} chains of {self.num_draws} draws{self.course}"]
        lines += [f"sampled, since: {reason}" for reason in self.reasons]
        if found:
            rhat, bulk = max(v[0] for v in found.values()), min(v[1] for v in found.values())
            lines.append(f"R-hat up to {rhat:.3f}, effective draws from {bulk:.0f}, over all elements of all latents")
        known = np.isfinite(self.evidence[0])
        lines.append(
            f"log evidence {self.evidence[0]:.2f} +- {self.evidence[1]:.2g} nats, from {self.evidence_from}"
            if known
            else "log evidence not available: chains do not tell it"
        )
        return "\n".join([*lines, *(f"warning: {c}" for c in mixing.complaints(found)), str(self.summary(4))])

    @property
    def num_draws(self) -> int:
        """Draws of each chain."""
        return next(iter(self.draws.values.values())).shape[1]

    @property
    def log_evidence(self) -> Array:
        """Estimate of log p(data) in nats that importance weights gave before; NaN where there is none."""
        return np.float32(self.evidence[0])

    @property
    def log_evidence_error(self) -> Array:
        """Monte Carlo standard error of `log_evidence`."""
        return np.float32(self.evidence[1])

    def mode(self) -> NoReturn:
        """Refused: a chain's draws do not say which of them has the largest density.

        Raises:
            QueryError: always.
        """
        raise QueryError("mode() is for weighed particles, and these are draws of chains; use mean() or quantile()")

    def check(self) -> list[str]:
        """What is wrong with the chains, as sentences that name the latent; empty when nothing is."""
        return list(mixing.complaints(mixing.worst(self.draws.values)))

    @checked()
    def save(self, path: PathName) -> None:
        """Write the draws to a file of arrays and JSON, which `kayn.load(path, model)` reads.

        Raises:
            KaynError: the file cannot be written, or holds an argument of the model that is no array, number or text.
        """
        names = ("params", "evidence", "evidence_from", "reasons", "course")
        found = {**{n: getattr(self, n) for n in names}, "draws": self.draws.values}
        stored.save(path, "chains", self.call, self.params, found)

    # -- internals

    @property
    def _usual_draws(self) -> int:
        return self.num_replicates * self.num_draws

    @property
    def _shares(self) -> Array:
        return np.full(self.num_replicates, 1 / self.num_replicates, np.float32)

    def _weights(self, name: str) -> Array:
        latent = self.problem.graph.latent(name)
        shape = (self.num_replicates, self.num_draws, *latent.shape[: latent.batch_ndim])
        return np.broadcast_to(np.float32(1 / self.num_draws), shape)

    def _joint(self, rng_key: KeyArray, num_samples: int, chains: int = 0, together: Any = None) -> JointDraws:
        """Draws at even distances, chain by chain."""
        refuse_too_many("num_samples", num_samples, entries(self.problem), QueryError)
        chains, count = self.num_replicates, self.num_draws
        per = -(-num_samples // chains)
        first = float(jax.random.uniform(as_key(rng_key)))
        at = np.floor((np.arange(per) + first) * count / per).astype(int) % count
        chosen = {
            n: np.asarray(v)[:, at].reshape((-1, *v.shape[2:]))[:num_samples] for n, v in self.draws.values.items()
        }
        return JointDraws(on_device({**chosen, **self._deterministic(chosen)}), {})

    def _deterministic(self, latents: Mapping[str, Array]) -> dict[str, Array]:
        """Deterministic sites of draws of the latents, block by block."""
        count = len(next(iter(latents.values())))
        size = block_size(count, BLOCK, entries(self.problem))

        def values(numbers: Mapping, params: Mapping, draws: Mapping[str, Array]) -> dict[str, Array]:
            return deterministic_values(self.problem, draws, model_inputs(self.problem, numbers, params, {}))

        run = self._jit(("deterministic", size), lambda: values)
        draws = JointDraws(dict(latents), {})
        parts = [run(self.numbers, self.params, block_of(draws, s, size).values) for s in starts(count, size)]
        return joined(parts, count)

    def _of_deterministic(self, name: str) -> None:
        return None

    def _of_function(self, function: Callable, names: tuple[str, ...]) -> None:
        return None

    def _from_draws(self, function: Callable[[Mapping], Array], what: str) -> Array:
        return jnp.mean(jax.vmap(function)(self._fallback_draws()), 0)

    def _fallback_draws(self) -> dict[str, Array]:
        if "all" not in self._found:
            self._found["all"] = self._joint(0, self.num_replicates * self.num_draws).values
        return self._found["all"]


jax.tree_util.register_dataclass(
    Chains,
    ["numbers", "params", "draws", "log_evidences", "axis_weights"],
    ["problem", "call", "widened", "evidence", "evidence_from", "reasons", "course"],
)
