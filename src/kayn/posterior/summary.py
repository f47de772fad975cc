"""A printable summary of a posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kayn.posterior.checks import check
from kayn.posterior.diagnostics import effective_sample_size, pareto_khat
from kayn.posterior.joint import mixed_plate
from kayn.posterior.pool import Pool
from kayn.support.table import format_table

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class SummaryRow:
    """Posterior summary of one scalar: mean, sd, quantiles, effective sample size and Pareto k-hat."""

    name: str
    mean: float
    sd: float
    quantiles: tuple[float, ...]
    ess: float
    khat: float


@dataclass(frozen=True)
class Summary:
    """Rows for every latent (the first elements of large ones, none of those whose elements differ between replicates),
    the log evidence, and what `Posterior.check` says."""

    rows: tuple[SummaryRow, ...]
    hidden: tuple[tuple[str, int], ...]
    log_evidence: float
    log_evidence_error: float
    num_particles: int
    complaints: tuple[str, ...]

    def __str__(self) -> str:
        """The log evidence and its error, a table of moments, quantiles and diagnostics, and warnings."""
        header = ("", "mean", "sd", *(f"{100 * q:.0f}%" for q in QUANTILES), "ESS", "k-hat")
        rows = [
            (
                r.name,
                *(f"{x:.3g}" for x in (r.mean, r.sd, *r.quantiles)),
                f"{r.ess:.0f}",
                "-" if np.isnan(r.khat) else f"{r.khat:.2f}",
            )
            for r in self.rows
        ]
        error = "" if np.isnan(self.log_evidence_error) else f" +- {self.log_evidence_error:.2f}"
        lines = [f"log evidence {self.log_evidence:.2f}{error} nats", format_table(header, rows)]
        lines += [f"  ({count} more elements of {name})" for name, count in self.hidden]
        lines += [f"  warning: {c}" for c in self.complaints]
        return "\n".join(lines)


def summarise(posterior: Pool, max_rows: int) -> Summary:
    """Summarise every latent, at most `max_rows` elements of each."""
    rows: list[SummaryRow] = []
    hidden = []
    total = 0
    for name in posterior.latent_names:
        if mixed_plate(posterior.problem, posterior.draws, name) is not None:
            hidden.append((name, math.prod(posterior.problem.graph.latent(name).shape)))
            continue
        values, weights = np.asarray(posterior.particles[name]), np.asarray(posterior.weights(name))
        total = max(total, values.shape[0])
        weights = np.broadcast_to(weights.reshape((*weights.shape, *(1,) * (values.ndim - weights.ndim))), values.shape)
        mean, sd = np.asarray(posterior.mean(name)), np.asarray(posterior.std(name))
        shape = values.shape[1:]
        flat_values, flat_weights = values.reshape(values.shape[0], -1), weights.reshape(values.shape[0], -1)
        for i in range(min(mean.size, max_rows)):
            label = _label(name, np.unravel_index(i, shape)) if shape else name
            rows.append(_row(label, flat_values[:, i], flat_weights[:, i], float(mean.flat[i]), float(sd.flat[i])))
        if mean.size > max_rows:
            hidden.append((name, mean.size - max_rows))
    return Summary(
        tuple(rows),
        tuple(hidden),
        float(posterior.log_evidence),
        float(posterior.log_evidence_error),
        total,
        tuple(check(posterior)),
    )


def _label(name: str, where: tuple) -> str:
    return f"{name}[{','.join(str(int(i)) for i in where)}]"


def _row(name: str, values: np.ndarray, weights: np.ndarray, mean: float, sd: float) -> SummaryRow:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    found = np.minimum(np.searchsorted(cumulative, np.array(QUANTILES) * cumulative[-1]), len(values) - 1)
    quantiles = tuple(float(values[order][i]) for i in found)
    ess = float(effective_sample_size(weights[:, None])[0])
    return SummaryRow(name, mean, sd, quantiles, ess, float(pareto_khat(weights[:, None])[0]))
