"""The posterior that users hold: pooled particles, with prediction, export and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from kayn.errors import QueryError
from kayn.posterior import checks, predict, summary
from kayn.posterior.pool import Pool
from kayn.support.arrays import Array
from kayn.support.options import Coords, Key, Plates, Samples
from kayn.support.validate import Natural, checked

if TYPE_CHECKING:
    from xarray import DataTree


@dataclass(frozen=True, eq=False)
class Posterior(Pool):
    """Weighted particles of a model's latents, and every question to them; attributes are those of `Pool`."""

    @checked(QueryError)
    def predictive(
        self, rng_key: Key, num_samples: Samples, *args: Any, new_plates: Plates = (), **kwargs: Any
    ) -> dict[str, Array]:
        """Draws of all sites of the model, data included, given posterior draws of the latents: [S, *shape].

        See `kayn.posterior.predict.predictive`.
        """
        return predict.predictive(self, rng_key, num_samples, args, kwargs, new_plates)

    @checked(QueryError)
    def log_predictive(
        self, rng_key: Key, num_samples: Samples, *args: Any, new_plates: Plates = (), **kwargs: Any
    ) -> predict.LogPredictive:
        """Log predictive density, in nats, of held-out data passed as the model's arguments.

        See `kayn.posterior.predict.log_predictive`.
        """
        return predict.log_predictive(self, rng_key, num_samples, args, kwargs, new_plates)

    @checked(QueryError)
    def log_likelihood(self, rng_key: Key, num_samples: Samples = 1000) -> dict[str, Array]:
        """Pointwise log likelihood of the training data: [S, *rows] for every observed site, nats."""
        return predict.log_likelihood(self, rng_key, num_samples)

    @checked(QueryError)
    def to_datatree(self, rng_key: Key = 0, num_samples: Samples = 1000, coords: Coords = None) -> DataTree:
        """Draws, log likelihood and data as an `xarray.DataTree` in ArviZ's schema.

        See `kayn.posterior.arviz.to_datatree`.
        """
        from kayn.posterior import arviz  # xarray takes long to import

        return arviz.to_datatree(self, rng_key, num_samples, coords)

    @checked(QueryError)
    def summary(self, max_rows: Natural = 12) -> summary.Summary:
        """Mean, sd, quantiles, ESS and k-hat of every latent; print it."""
        return summary.summarise(self, max_rows)

    def check(self) -> list[str]:
        """What is wrong with this posterior, as sentences that name the latent; empty when nothing is."""
        return checks.check(self)


jax.tree_util.register_dataclass(
    Posterior,
    ["numbers", "params", "draws", "log_evidences", "axis_weights"],
    ["problem", "call"],
)
