"""A page that says what a formula has found, what was checked, and what to doubt: one file, pictures included."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kayn.errors import KaynError
from kayn.fit import Fit
from kayn.formulas.formula import Formula
from kayn.posterior.posterior import Posterior
from kayn.posterior.summary import Summary, SummaryRow
from kayn.support.drawing import intervals, literal, new_figure, outcome

SHOWN = 40
"""Elements of a site on a page, at most."""
SMALL = 5
"""Rows of a group below which its effect is mostly that of the others."""
DRAWS = 400
"""Draws of data that the fit is held against."""
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}"
    "td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #ddd}td:first-child{text-align:left}"
    "pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:.8rem}img{max-width:100%}"
)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a page is made of.

    Attributes:
        data: the outcome's rows, as far as they are there; `drawn` the same drawn from the posterior: [draws, rows].
        notes: what was said of the data.
    """

    formula: Formula
    fit: Fit
    posterior: Posterior
    summary: Summary
    data: np.ndarray
    drawn: np.ndarray
    notes: tuple[str, ...]

    @staticmethod
    def of(formula: Formula, fit: Fit, posterior: Posterior, notes: Sequence[str] = ()) -> Findings:
        """Summarise a fit of a formula, and draw data from it."""
        drawn = np.asarray(posterior.predictive(1, DRAWS)[formula.parts.design.outcome], float)
        data = np.asarray(formula.args[-1], float)
        there = ~np.isnan(data)
        summary = posterior.summary(max_rows=SHOWN)
        return Findings(formula, fit, posterior, summary, data[there], drawn[:, there], tuple(notes))

    def checks(self) -> list[str]:
        """What was checked, a sentence each."""
        rows = [r for r in self.summary.rows if np.isfinite(r.ess)]
        found = [
            f"Log evidence {self.summary.log_evidence:.2f} +- {self.summary.log_evidence_error:.2g} nats, from "
            f"{self.posterior.num_replicates} independent sets of particles."
        ]
        if rows:
            worst = min(rows, key=lambda r: r.ess)
            found.append(f"The smallest effective sample size is {worst.ess:.0f}, that of {worst.name}.")
        inside = self.coverage()
        found.append(f"{100 * inside:.0f}% of the rows lie within the middle 90% of what the model predicts for them.")
        for name, of in (("mean", np.mean), ("standard deviation", np.std)):
            low, high = np.quantile(of(self.drawn, axis=1), (0.05, 0.95))
            found.append(f"The {name} of the outcome is {of(self.data):.4g}; the model gives {low:.4g} to {high:.4g}.")
        return found

    def coverage(self) -> float:
        """The share of rows within the middle 90% of what is predicted for them, ends included."""
        low, high = np.quantile(self.drawn, (0.05, 0.95), axis=0)
        return float(np.mean((self.data >= low) & (self.data <= high)))

    def doubts(self) -> list[str]:
        """What there is to doubt, a sentence each."""
        found = [*self.notes, *self.summary.complaints]
        if not self.fit.converged:
            found.append("The fit had not stopped improving when it ended, or its weights were poor.")
        room = 4 * np.sqrt(0.09 / self.data.size)
        if self.coverage() < 0.9 - room:
            found.append("Fewer rows than there should be lie where the model predicts them: try another family.")
        for name, of in (("mean", np.mean), ("standard deviation", np.std)):
            low, high = np.quantile(of(self.drawn, axis=1), (0.005, 0.995))
            if not low <= of(self.data) <= high:
                found.append(f"The {name} of the outcome is none that the model gives: try another family.")
        for bracket in {b.factor.name: b for b in self.formula.parts.design.brackets}.values():
            index, number = bracket.factor.index(self.formula.parts.design.frame)
            few = int(np.sum(np.bincount(index, minlength=number) < SMALL))
            if few:
                found.append(
                    f"{few} of {number} groups of {bracket.factor.name} have fewer than {SMALL} rows; their "
                    "effects are drawn towards those of the others."
                )
        return found or ["Nothing that was checked."]


def write(findings: Findings, path: str | os.PathLike[str]) -> None:
    """Write the page.

    Raises:
        KaynError: the file cannot be written, or matplotlib is missing.
    """
    try:
        Path(path).write_text(page(findings), encoding="utf-8")
    except OSError as error:
        raise KaynError(f"the report cannot be written to {str(path)!r}: {error.strerror}") from error


def page(findings: Findings) -> str:
    """The page as HTML."""
    formula = findings.formula
    title = html.escape(formula.__name__)
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{findings.data.size} rows, {html.escape(_family(formula))}.</p>",
        "<h2>What was found</h2>",
        *(f"<p><img alt='{html.escape(words)}' src='{image}'></p>" for words, image in pictures(findings)),
        _table(findings.summary),
        "<h2>What was checked</h2>",
        _list(findings.checks()),
        "<h2>What to doubt</h2>",
        _list(findings.doubts()),
        "<h2>The model</h2>",
        f"<pre>{html.escape(formula.source)}</pre>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _family(formula: Formula) -> str:
    family = formula.parts.design.family
    return f"family {family.name} with {family.link} link"


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(s)}</li>" for s in sentences) + "</ul>"


def _table(summary: Summary) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in ("", *summary.columns))
    rows = [
        f"<tr><td>{html.escape(r.name)}</td>"
        + "".join(f"<td>{'-' if np.isnan(x) else format(x, '.3g')}</td>" for x in r.numbers)
        + "</tr>"
        for r in summary.rows
    ]
    more = [f"<p>{count} more elements of {html.escape(name)}.</p>" for name, count in summary.hidden]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>{''.join(more)}"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def pictures(findings: Findings) -> Iterator[tuple[str, str]]:
    """What each picture shows in words, and the picture as an address that holds it."""
    by_site: dict[str, list[SummaryRow]] = {}
    for row in findings.summary.rows:
        by_site.setdefault(row.name.split("[")[0] if _grouped(findings, row) else "", []).append(row)
    for site, rows in by_site.items():
        words = f"effects {site}" if site else "coefficients and standard deviations"
        yield f"Means and 90% intervals: {words}", _intervals(rows, words)
    yield "The outcome, and the same drawn from the model", _outcome(findings)


def _grouped(findings: Findings, row: SummaryRow) -> bool:
    effects: Mapping[str, Any] = {name: e for e in findings.formula.parts.effects for name in (e.site, *e.names)}
    return any(row.name.startswith(f"{name}[") for name in effects)


def _address(figure: Any) -> str:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def _intervals(rows: Sequence[SummaryRow], title: str) -> str:
    figure, axes = new_figure(7.5, 1.0 + 0.24 * len(rows))
    low, high = ([r.quantiles[i] for r in rows] for i in (0, -1))
    intervals(axes[0, 0], [r.name for r in rows], [r.mean for r in rows], low, high)
    axes[0, 0].set_title(literal(title), loc="left", fontsize=11)
    return _address(figure)


def _outcome(findings: Findings) -> str:
    figure, axes = new_figure(7.5, 3.2)
    outcome(axes[0, 0], findings.data, findings.drawn)
    axes[0, 0].set(xlabel=literal(findings.formula.parts.design.outcome), ylabel="rows")
    return _address(figure)
