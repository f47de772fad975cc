"""A printable summary of a posterior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kayn.posterior import mixing
from kayn.posterior.diagnostics import effective_sample_size
from kayn.posterior.joint import mixed_plate
from kayn.posterior.khat import pareto_khat
from kayn.posterior.labels import dims_of, labels_of
from kayn.posterior.pool import Pool
from kayn.posterior.spread import columns, shortest_interval, weighted_quantiles
from kayn.support.prepared import Prepared
from kayn.support.prints import Printed
from kayn.support.table import format_table

if TYPE_CHECKING:
    from pandas import DataFrame

QUANTILES = (0.05, 0.5, 0.95)
WEIGHED, CHAINED = ("ESS", "k-hat"), ("MC error", "bulk ESS", "tail ESS", "R-hat")
FORMATS = {"ESS": ".0f", "k-hat": ".2f", "MC error": ".2g", "bulk ESS": ".0f", "tail ESS": ".0f", "R-hat": ".3f"}
"""Diagnostics of weights and of chains, and how they are written."""


@dataclass(frozen=True)
class SummaryRow:
    """Posterior summary of one scalar: mean, sd, quantiles and diagnostics.

    Attributes:
        diagnostics: effective sample size and Pareto k-hat of weights; or Monte Carlo error of the mean, effective
            sample sizes and R-hat of chains. By name.
        interval: the shortest interval, where it was asked for.
    """

    name: str
    mean: float
    sd: float
    quantiles: tuple[float, ...]
    diagnostics: dict[str, float]
    interval: tuple[float, ...] = ()

    @property
    def ess(self) -> float:
        """Effective sample size, of chains in the bulk."""
        return self.diagnostics.get("bulk ESS", self.diagnostics.get("ESS", math.nan))

    @property
    def khat(self) -> float:
        """Pareto k-hat of weights, NaN for chains."""
        return self.diagnostics.get("k-hat", math.nan)

    @property
    def numbers(self) -> tuple[float, ...]:
        """As `Summary.columns` names them."""
        return (self.mean, self.sd, *self.quantiles, *self.interval, *self.diagnostics.values())


@dataclass(frozen=True, repr=False)
class Summary(Printed):
    """Rows for every site (the first elements of large ones, none of those whose elements differ between replicates),
    the log evidence, and what `Posterior.check` says.

    Attributes:
        levels: of the quantiles.
        hdi_prob: what the shortest intervals hold; None where there are none.
    """

    rows: tuple[SummaryRow, ...]
    hidden: tuple[tuple[str, int], ...]
    log_evidence: float
    log_evidence_error: float
    num_particles: int
    complaints: tuple[str, ...]
    levels: tuple[float, ...] = QUANTILES
    hdi_prob: float | None = None
    diagnostics: tuple[str, ...] = WEIGHED

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers of a row."""
        outside = (1 - (self.hdi_prob or 0)) / 2
        ends = () if self.hdi_prob is None else (f"hdi_{100 * outside:g}%", f"hdi_{100 * (1 - outside):g}%")
        return ("mean", "sd", *(f"{100 * q:.4g}%" for q in self.levels), *ends, *self.diagnostics)

    def to_dataframe(self) -> DataFrame:
        """The rows as a `pandas.DataFrame`, by name."""
        from pandas import DataFrame  # takes long to import

        return DataFrame([r.numbers for r in self.rows], [r.name for r in self.rows], list(self.columns))

    def __str__(self) -> str:
        """The log evidence and its error, a table of moments, quantiles and diagnostics, and warnings."""
        rows = [
            (
                r.name,
                *(f"{x:.3g}" for x in r.numbers[: -len(r.diagnostics)]),
                *("-" if np.isnan(x) else format(x, FORMATS[n]) for n, x in r.diagnostics.items()),
            )
            for r in self.rows
        ]
        error = "" if np.isnan(self.log_evidence_error) else f" +- {self.log_evidence_error:.2f}"
        known = f"{self.log_evidence:.2f}{error} nats" if not np.isnan(self.log_evidence) else "not available"
        lines = [f"log evidence {known}", format_table(("", *self.columns), rows)]
        lines += [f"  ({count} more elements of {name})" for name, count in self.hidden]
        lines += [f"  warning: {c}" for c in self.complaints]
        return "\n".join(lines)


def _label(name: str, where: Iterable[tuple[str, int]], labels: Mapping[str, np.ndarray]) -> str:
    """An element in words: `a[S07]`, by number where it is called nothing."""
    return f"{name}[{','.join(str(labels[d][i]) if d in labels else str(int(i)) for d, i in where)}]"


def _judged(posterior: Pool, name: str, weights: np.ndarray) -> np.ndarray | None:
    """Weights that tell how good the answers about a site are, a column for each element: those of its particles, or of
    what it is made of. What is computed from draws alone has none."""
    if name in posterior.drawn_names:
        return weights
    if name not in posterior.latent_names:
        return None
    own = np.asarray(posterior._pooled(posterior._drawn(name)))
    shape = posterior.problem.model.sites[name].shape
    whole = np.broadcast_to(own.reshape((*own.shape, *(1,) * (1 + len(shape) - own.ndim))), (len(own), *shape))
    return whole.reshape(len(own), -1)


def asked(posterior: Pool, names: str | Sequence[str] | None) -> Sequence[str]:
    """Some sites; where no names are given, those that the model says tell what was asked, or all latents."""
    if names is None:
        model = posterior.call.model
        return model.names if isinstance(model, Prepared) else posterior.latent_names
    return (names,) if isinstance(names, str) else names


def element_names(posterior: Pool, name: str, count: int) -> list[str]:
    """What the first elements of a site are called."""
    shape = posterior.problem.model.sites[name].shape
    if not shape:
        return [name]
    dims, labels = dims_of(posterior, name, shape, len(shape)), labels_of(posterior)
    where = (np.unravel_index(i, shape) for i in range(min(count, math.prod(shape))))
    return [_label(name, zip(dims, map(int, w), strict=True), labels) for w in where]


def summarise(
    posterior: Pool,
    max_rows: int,
    names: str | Sequence[str] | None = None,
    levels: tuple[float, ...] = QUANTILES,
    hdi_prob: float | None = None,
    complaints: Sequence[str] = (),
) -> Summary:
    """Summarise sites, at most `max_rows` elements of each; where no names are given, those that the model says
    tell what was asked, or all latents.

    Args:
        complaints: what is wrong with the posterior.

    Raises:
        QueryError: a name is unknown.
    """
    names = asked(posterior, names)
    rows: list[SummaryRow] = []
    hidden = []
    for name in names:
        posterior._known(name)
        shape = posterior.problem.model.sites[name].shape
        size = math.prod(shape)
        mixed = mixed_plate(posterior.problem, posterior.draws, name) is not None
        count = 0 if mixed else min(size, max_rows)
        rows += _rows(posterior, name, count, levels, hdi_prob)
        hidden += [(name, size - count)] if size > count else []
    sizes = [posterior.num_replicates * posterior.problem.layout.axis_of(n).size for n in posterior.drawn_names]
    return Summary(
        tuple(rows),
        tuple(hidden),
        float(posterior.log_evidence),
        float(posterior.log_evidence_error),
        max(sizes, default=0),
        tuple(complaints),
        levels,
        hdi_prob,
        CHAINED if posterior.chained else WEIGHED,
    )


def _rows(
    posterior: Pool, name: str, count: int, levels: tuple[float, ...], hdi_prob: float | None
) -> list[SummaryRow]:
    """Of the first `count` elements of a site."""
    if not count:
        return []
    values, weights = columns(posterior, name)
    mean, sd = np.ravel(posterior.mean(name)), np.ravel(posterior.std(name))
    judged = None if posterior.chained else _judged(posterior, name, weights)
    mixed = _mixed(posterior, name, count) if posterior.chained else {}
    rows = []
    for i, label in enumerate(element_names(posterior, name, count)):
        own, shares = values[:, i], weights[:, i]
        quantiles = tuple(float(x) for x in weighted_quantiles(own, shares, np.array(levels)))
        interval = () if hdi_prob is None else tuple(float(x) for x in shortest_interval(own, shares, hdi_prob))
        found = {n: float(v[i]) for n, v in mixed.items()} if posterior.chained else _of_weights(judged, i)
        rows.append(SummaryRow(label, float(mean[i]), float(sd[i]), quantiles, found, interval))
    return rows


def _of_weights(judged: np.ndarray | None, i: int) -> dict[str, float]:
    own = None if judged is None else judged[:, i, None]
    found = (math.nan, math.nan) if own is None else (effective_sample_size(own)[0], pareto_khat(own)[0])
    return dict(zip(WEIGHED, map(float, found), strict=True))


def _mixed(posterior: Pool, name: str, count: int) -> dict[str, np.ndarray]:
    """Diagnostics of a site's first elements, [count] by name."""
    own = posterior.draws.values.get(name)
    if own is None:
        found = np.asarray(posterior._fallback_draws()[name])
        own = found.reshape((posterior.num_replicates, -1, *found.shape[1:]))
    flat = np.asarray(own).reshape((*own.shape[:2], -1))
    return mixing.diagnosed(flat[..., :count])
