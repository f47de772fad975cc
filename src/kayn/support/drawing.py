"""Pictures with matplotlib, without its global state: figures and the parts that several pictures have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kayn.errors import KaynError

BLUE, GREY, RED = "#1f5fa8", "#9a9a9a", "#c2571a"
BINS = 30


def needs_matplotlib() -> None:
    """Refuse to go on without what draws pictures.

    Raises:
        KaynError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise KaynError("pictures need matplotlib: pip install 'kayn[plots]'") from error


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, np.ndarray]:
    """A figure and its axes: [rows, columns].

    Raises:
        KaynError: matplotlib is missing.
    """
    needs_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for own in axes.flat:
        own.spines[["top", "right"]].set_visible(False)
    return figure, axes


def intervals(
    axes: Any, names: Sequence[str], means: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    """A point and a line for every name, the first on top."""
    y = np.arange(len(names))[::-1]
    axes.hlines(y, low, high, color=BLUE, linewidth=1.2)
    axes.scatter(means, y, s=18, color=BLUE, zorder=3)
    axes.axvline(0.0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(y, [literal(n) for n in names], fontsize=8)


def outcome(axes: Any, data: np.ndarray, drawn: np.ndarray) -> None:
    """A histogram of data [rows] over those of data drawn from a model: [draws, rows]."""
    low, high = np.quantile(data, (0.0, 1.0))
    margin = 0.1 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    if np.all(data == np.floor(data)) and high - low <= BINS:
        edges = np.arange(low - 1.5, high + 2.0)
    counts = np.stack([np.histogram(d, edges)[0] for d in drawn])
    ends = np.quantile(counts, (0.05, 0.95), axis=0)
    axes.stairs(ends[1], edges, baseline=ends[0], fill=True, color=BLUE, alpha=0.3, label="drawn, middle 90%")
    axes.stairs(np.histogram(data, edges)[0], edges, color=RED, linewidth=1.4, label="data")
    axes.legend(frameon=False, fontsize=9)


def literal(text: str) -> str:
    """A text without what matplotlib reads as a formula."""
    return text.replace("$", r"\$")
