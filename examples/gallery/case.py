"""What a page is made of, and how it is made: fit, compare, draw, write."""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam

import kayn
from examples._compare import Settings, run_nuts

Moments = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Posterior means and standard deviations, by site."""
SHOWN = 8
"""Elements of a site in a table, at most."""
BLUE, RED = "#1f5fa8", "#c2571a"
NUTS = Settings(False, True, True, 30, 4, 500, 500, 0, None)


@dataclass(frozen=True)
class Case:
    """A question and its data.

    Attributes:
        about: the question, and where the data come from.
        prepare: gives the model's arguments.
        sites: what the answer is about.
        picture: draws it: axes, posterior, arguments.
        tool: what the answer is compared with; `answer` gives its moments, NUTS where it is None.
        decentre: sites that NUTS samples in non-centred form, for its sake.
    """

    name: str
    title: str
    about: str
    model: Callable[..., Any]
    prepare: Callable[[], tuple]
    sites: Sequence[str]
    picture: Callable[[Any, Any, tuple], None]
    tool: str = "NUTS in NumPyro"
    answer: Callable[[tuple], Moments] | None = None
    accept: float = 0.9
    decentre: Sequence[str] = ()


def by_nuts(case: Case, args: tuple) -> Moments:
    """What NUTS finds in the same model."""
    model = reparam(case.model, {site: LocScaleReparam(0.0) for site in case.decentre})
    found = run_nuts(model, args, NUTS, case.accept)
    return {n: (found.mean[n], found.std[n]) for n in case.sites}


def rows(case: Case, posterior: Any, other: Moments) -> list[tuple[str, float, float, float, float]]:
    """Elements with their means and standard deviations, here and there."""
    out = []
    for name in case.sites:
        found = (posterior.mean(name), posterior.std(name), *other[name])
        mean, sd, theirs, spread = (np.ravel(np.asarray(v, float)) for v in found)
        for i in range(min(mean.size, SHOWN)):
            label = name if mean.size == 1 else f"{name}[{i}]"
            out.append((label, mean[i], sd[i], theirs[i], spread[i]))
    return out


def write(case: Case, folder: Path) -> float:
    """Write a page and its picture.

    Returns:
        how far the mean that is farthest off is from that of the other tool, in posterior standard deviations.
    """
    args = case.prepare()
    start = time.process_time()
    fit = kayn.fit(case.model, args, progress=False)
    posterior = fit.posterior()
    seconds = time.process_time() - start
    start = time.process_time()
    other = by_nuts(case, args) if case.answer is None else case.answer(args)
    theirs = time.process_time() - start
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    case.picture(axes, posterior, args)
    axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{case.name}.png", dpi=110)
    found = rows(case, posterior, other)
    worst = max(abs(mean - there) / spread for _, mean, _, there, spread in found)
    table = "\n".join(f"| `{n}` | {m:.3f} | {s:.3f} | {t:.3f} | {d:.3f} |" for n, m, s, t, d in found)
    said = (
        f"The mean that is farthest off differs by {worst:.2f} posterior standard deviations. {_evidence(posterior)} "
    )
    said += f"kayn took {seconds:.0f} CPU seconds from the model to the answer, compiling included; "
    said += f"{case.tool} took {theirs:.0f}."
    (folder / f"{case.name}.md").write_text(
        f"""# {case.title}

{textwrap.fill(case.about, 100)}

![{case.title}]({case.name}.png)

```python
{inspect.getsource(case.model).strip()}


fit = kayn.fit(model, args)
posterior = fit.posterior()
```

| | mean | sd | mean, {case.tool} | sd, {case.tool} |
|---|---|---|---|---|
{table}

{textwrap.fill(said, 100)}
""".replace("def " + case.model.__name__, "def model", 1),
        encoding="utf-8",
    )
    return worst


def _evidence(posterior: Any) -> str:
    """What is known of the log evidence, and how the answer was reached."""
    how = "The posterior was sampled, since weights alone failed a check." if posterior.chained else ""
    value, error = float(posterior.log_evidence), float(posterior.log_evidence_error)
    return f"The log evidence is {value:.2f} ± {error:.2g} nats. {how}".strip()


def points(axes: Any, mean: Any, sd: Any, labels: Sequence[str] | None = None, colour: str = BLUE) -> None:
    """Means and two standard deviations of some elements, one above the other."""
    mean, sd = (np.ravel(np.asarray(v, float)) for v in (mean, sd))
    at = np.arange(mean.size)
    axes.errorbar(mean, at, xerr=2 * sd, fmt="o", markersize=4, color=colour, linewidth=1)
    if labels is not None:
        axes.set_yticks(at, labels)


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of values on a grid."""
    mean = (weights * values).sum()
    return mean, np.sqrt((weights * (values - mean) ** 2).sum())


def sampled(model: Callable[..., Any], sites: Sequence[str]) -> Callable[[tuple], Moments]:
    """The answer of NUTS in another form of the model."""

    def answer(args: tuple) -> Moments:
        found = run_nuts(model, args, NUTS, 0.9)
        return {n: (found.mean[n], found.std[n]) for n in sites}

    return answer
