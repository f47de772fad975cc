"""Pictures of a posterior: `posterior.plot.forest()` and its like, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kayn.errors import QueryError
from kayn.posterior.pool import Pool
from kayn.posterior.prior import prior_draws
from kayn.posterior.summary import asked, element_names, summarise
from kayn.support.drawing import BLUE, GREY, RED, intervals, literal, new_figure, outcome
from kayn.support.keys import as_key
from kayn.support.options import Names
from kayn.support.validate import checked

ELEMENTS, PAIRED = 40, 6
"""Elements of a site in a picture, and of all sites where every pair has one, at most."""
DRAWS = 1000
"""As many as `sample` takes, so that these are the same."""
MIDDLE = (0.005, 0.995)
"""What of a prior is within the picture, where it is wider than the posterior."""


@dataclass(frozen=True, eq=False)
class Plots:
    """Pictures of a posterior, as `matplotlib.figure.Figure`: `savefig` writes them.

    Without names a picture is of all latents, or of what a formula's model says was asked.
    """

    posterior: Pool

    @checked(QueryError)
    def forest(self, var_names: Names = None) -> Any:
        """Means and intervals of 90%."""
        rows = summarise(self.posterior, ELEMENTS, var_names).rows
        figure, axes = new_figure(7.5, 1.0 + 0.24 * len(rows))
        low, high = ([r.quantiles[i] for r in rows] for i in (0, -1))
        intervals(axes[0, 0], [r.name for r in rows], [r.mean for r in rows], low, high)
        return figure

    @checked(QueryError)
    def pairs(self, var_names: Names = None) -> Any:
        """Joint draws of every two of the first six elements."""
        found = [*self._elements(var_names)][:PAIRED]
        width = 1.0 + 1.7 * len(found)
        figure, axes = new_figure(width, width, len(found), len(found))
        for i, (name, values) in enumerate(found):
            for j, (other, its) in enumerate(found):
                if i == j:
                    axes[i, j].hist(values, 30, color=BLUE, alpha=0.6)
                elif j < i:
                    axes[i, j].scatter(its, values, s=3, color=BLUE, alpha=0.3, linewidth=0)
                else:
                    axes[i, j].set_axis_off()
                if i == len(found) - 1:
                    axes[i, j].set_xlabel(literal(other), fontsize=8)
            axes[i, 0].set_ylabel(literal(name), fontsize=8)
        return figure

    @checked(QueryError)
    def prior_posterior(self, var_names: Names = None) -> Any:
        """Draws from the posterior over draws from the prior, element by element, at most forty of a site."""
        call = self.posterior.call
        params = dict(self.posterior.params)
        prior = prior_draws(call.model, call.args, call.kwargs, as_key(0), DRAWS, params)
        found = [*self._elements(var_names)]
        before = [values for _, values in self._elements(var_names, prior)]
        columns = min(3, len(found))
        rows = -(-len(found) // columns)
        figure, axes = new_figure(2.6 * columns, 0.4 + 1.8 * rows, rows, columns)
        for own, (name, values), old in zip(axes.flat, found, before, strict=False):
            low, high = np.quantile(np.concatenate([values, old]), MIDDLE)
            edges = np.linspace(low, high, 41)
            for drawn, colour, label in ((old, GREY, "prior"), (values, BLUE, "posterior")):
                # one patch; a bar for every bin is most of the time that such a picture takes
                heights = np.histogram(drawn, edges, density=True)[0]
                own.stairs(heights, edges, fill=True, color=colour, alpha=0.6, label=label)
            own.set_title(literal(name), fontsize=9)
        for own in axes.flat[len(found) :]:
            own.set_axis_off()
        axes[0, 0].legend(frameon=False, fontsize=8)
        return figure

    def ppc(self) -> Any:
        """Histograms of the data over those of data drawn from the posterior, one for every observed site."""
        from kayn.posterior.arviz import to_datatree  # xarray takes long to import

        tree = to_datatree(self.posterior, as_key(0), DRAWS, None, predictive=True)
        data = tree["observed_data"].to_dataset()
        names = [*data.data_vars]
        if not names:
            raise QueryError("the model has no data that draws could be held against")
        figure, axes = new_figure(7.5, 0.2 + 3.0 * len(names), len(names))
        for own, name in zip(axes[:, 0], names, strict=True):
            drawn = np.asarray(tree["posterior_predictive"][name].values, float).reshape(DRAWS, -1)
            outcome(own, np.asarray(data[name].values, float).ravel(), drawn)
            own.set(xlabel=literal(str(name)), ylabel="data")
        return figure

    def evidence(self) -> Any:
        """Log evidence of each independent set of particles, and what they are together, with its error.

        Raises:
            QueryError: chains have no sets of particles.
        """
        if self.posterior.chained:
            raise QueryError("evidence() is for weighed particles, and these are draws of chains")
        found = np.sort(np.asarray(self.posterior.log_evidences, float))
        whole, error = float(self.posterior.log_evidence), float(self.posterior.log_evidence_error)
        figure, axes = new_figure(7.5, 2.8)
        own = axes[0, 0]
        own.scatter(np.arange(1, len(found) + 1), found, s=16, color=BLUE, label="a set of particles")
        own.axhspan(whole - 2 * error, whole + 2 * error, color=RED, alpha=0.2, linewidth=0)
        own.axhline(whole, color=RED, linewidth=1.2, label="together, two errors")
        own.set(xlabel="sets of particles, in order", ylabel="log evidence, nats")
        own.legend(frameon=False, fontsize=9)
        return figure

    def _elements(self, names: Any, draws: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        """Labels and draws of the elements of sites: those of the posterior where no others are given."""
        posterior = self.posterior
        for name in asked(posterior, names):
            posterior._known(name)
            draws = posterior.sample() if draws is None else draws
            values = np.asarray(draws[name], float)
            values = values.reshape(len(values), -1)
            yield from zip(element_names(posterior, name, ELEMENTS), values.T, strict=False)
