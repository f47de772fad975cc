"""The posterior that users hold: pooled particles, with prediction, export and checks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kayn.errors import QueryError
from kayn.posterior import loo, poor_fit, predict, spread, stored, summary
from kayn.posterior.plots import Plots
from kayn.posterior.pool import Pool
from kayn.programs.tables import as_arguments
from kayn.support.arrays import Array
from kayn.support.names import in_model
from kayn.support.options import Coords, Key, Levels, Mass, Name, Names, PathName, Plates, Samples
from kayn.support.prints import Printed
from kayn.support.table import format_table
from kayn.support.validate import MOST, Natural, checked
from kayn.xla.compilation import is_traced

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree

    from kayn.posterior.loo import Loo


SHOWN = 30
"""Latents that a posterior prints, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Printed, Pool):
    """Weighted particles of a model's latents, and every question to them; attributes are those of `Pool`.

    `posterior["a"]` are 1000 joint draws of a site, [1000, *shape], the same draws for all sites.
    """

    def __str__(self) -> str:
        """The model, the log evidence, and shape, plates and particles of every latent."""
        lines = [f"Posterior of {self.call.name}: {self.num_replicates} independent sets of particles"]
        if not is_traced(self.log_evidences):
            lines += [f"log evidence {float(self.log_evidence):.2f} +- {float(self.log_evidence_error):.2g} nats"]
        latents = self.problem.graph.latents
        rows = [
            (
                in_model(z.name),
                str(tuple(self.problem.model.sites[in_model(z.name)].shape)),
                ", ".join(z.plate_names) or "-",
                str(self.problem.layout.axis_of(z.name).size),
            )
            for z in latents[:SHOWN]
        ]
        lines += [format_table(("latent", "shape", "plates", "particles of each set"), rows)] if rows else []
        lines += [f"  ({len(latents) - SHOWN} more latents)"] if len(latents) > SHOWN else []
        return "\n".join(lines)

    @checked(QueryError)
    def __getitem__(self, name: Name) -> Array:
        """Joint draws of a latent or deterministic site: [1000, *shape], the same draws for all sites."""
        self._known(name)
        if "draws" in self._found:
            return self._found["draws"][name]
        draws = self.sample()
        if not is_traced(draws):
            self._found["draws"] = draws
        return draws[name]

    @checked(QueryError)
    def quantile(self, name: Name | None = None, q: Levels = summary.QUANTILES) -> Array | dict[str, Array]:
        """Posterior quantiles of every element of a latent or deterministic site; without a name, by latent.

        Args:
            q: a level or a list of levels, from 0 to 1.

        Returns:
            [*q.shape, *shape], as `numpy.quantile` gives them over draws.
        """
        levels = np.asarray(q)
        return self._each(name, lambda n: spread.quantile(self, n, levels))

    @checked(QueryError)
    def hdi(self, name: Name | None = None, prob: Mass = 0.94) -> Array | dict[str, Array]:
        """The shortest interval of every element of a site that holds a share of its posterior: [*shape, 2].

        Without a name, by latent.
        """
        return self._each(name, lambda n: spread.hdi(self, n, prob))

    @checked(QueryError)
    def predictive(
        self, rng_key: Key = 0, num_samples: Samples = 1000, *args: Any, new_plates: Plates = (), **kwargs: Any
    ) -> dict[str, Array]:
        """Draws of all sites of the model, data included, given posterior draws of the latents: [S, *shape].

        See `kayn.posterior.predict.predictive`.
        """
        args, kwargs, _ = as_arguments(self.call.model, args, kwargs, self.call.labels)
        return predict.predictive(self, rng_key, num_samples, args, kwargs, new_plates)

    @checked(QueryError)
    def imputed(self, rng_key: Key = 0, num_samples: Samples = 1000) -> dict[str, Array]:
        """Data that were missing in part, with posterior draws in the gaps, by site: [S, *shape].

        They are there after `kayn.fit(..., missing="impute")` or "drop", and empty where nothing was missing.
        """
        return predict.imputed(self, rng_key, num_samples)

    @checked(QueryError)
    def log_predictive(
        self, rng_key: Key, num_samples: Samples, *args: Any, new_plates: Plates = (), **kwargs: Any
    ) -> predict.LogPredictive:
        """Log predictive density, in nats, of held-out data passed as the model's arguments.

        See `kayn.posterior.predict.log_predictive`.
        """
        args, kwargs, _ = as_arguments(self.call.model, args, kwargs, self.call.labels)
        return predict.log_predictive(self, rng_key, num_samples, args, kwargs, new_plates)

    @checked(QueryError)
    def log_likelihood(self, rng_key: Key = 0, num_samples: Samples = 1000) -> dict[str, Array]:
        """Pointwise log likelihood of the training data: [S, *rows] for every observed site, nats."""
        return predict.log_likelihood(self, rng_key, num_samples)

    @checked(QueryError)
    def loo(self, rng_key: Key = 0, num_samples: Samples = 1000) -> Loo:
        """Expected log predictive density of data left out one at a time, from joint draws; print it."""
        return loo.loo(self, rng_key, num_samples)

    @checked(QueryError)
    def to_datatree(
        self,
        rng_key: Key = 0,
        num_samples: Samples | None = None,
        coords: Coords = None,
        *,
        predictive: bool = False,
        prior: bool = False,
    ) -> DataTree:
        """Draws, log likelihood and data as an `xarray.DataTree` in ArviZ's schema, on request with predictions.

        See `kayn.posterior.arviz.to_datatree`.

        Args:
            num_samples: None for 1000, and for all draws of chains, which stay in their chains.
        """
        from kayn.posterior import arviz  # xarray takes long to import

        count = self._usual_draws if num_samples is None else num_samples
        return arviz.to_datatree(self, rng_key, count, coords, predictive, prior)

    @checked(QueryError)
    def summary(
        self,
        max_rows: Natural = 12,
        *,
        var_names: Names = None,
        quantiles: Levels = summary.QUANTILES,
        hdi_prob: Mass | None = None,
    ) -> summary.Summary:
        """Mean, sd, quantiles, ESS and k-hat; print it, or take `to_dataframe()` of it.

        Args:
            max_rows: elements of every site, at most.
            var_names: latents and deterministic sites; None for all latents.
            quantiles: levels from 0 to 1.
            hdi_prob: adds the ends of the shortest interval that holds this share.
        """
        levels = tuple(np.ravel(quantiles).tolist())
        return summary.summarise(self, max_rows, var_names, levels, hdi_prob, self.check())

    def to_dataframe(self, **options: Any) -> DataFrame:
        """The summary of all elements of all latents as a `pandas.DataFrame`; options as in `summary`."""
        return self.summary(**{"max_rows": MOST - 1, **options}).to_dataframe()

    @checked()
    def save(self, path: PathName) -> None:
        """Write the posterior to a file of arrays and JSON, which `kayn.load(path, model)` reads.

        Raises:
            KaynError: the file cannot be written, or holds an argument of the model that is no array, number or text.
        """
        names = ("params", "log_evidences", "axis_weights", "widened")
        draws = {f.name: getattr(self.draws, f.name) for f in fields(self.draws)}
        found = {**{n: getattr(self, n) for n in names}, "draws": draws}
        stored.save(path, "posterior", self.call, self.params, found)

    @property
    def _usual_draws(self) -> int:
        return 1000

    @property
    def plot(self) -> Plots:
        """Pictures: `forest()`, `pairs()`, `prior_posterior()`, `ppc()` and `evidence()`, with the extra `plots`."""
        return Plots(self)

    def check(self) -> list[str]:
        """What is wrong with this posterior, as sentences that name the latent; empty when nothing is."""
        return poor_fit.check(self)


jax.tree_util.register_dataclass(
    Posterior,
    ["numbers", "params", "draws", "log_evidences", "axis_weights"],
    ["problem", "call", "widened"],
)
