"""Models side by side: by the evidence of their data, and by how well they predict data that are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from kayn.errors import QueryError
from kayn.fit import Fit
from kayn.posterior.loo import Loo
from kayn.posterior.posterior import Posterior
from kayn.support.options import Key, Samples
from kayn.support.prints import Printed
from kayn.support.table import format_table
from kayn.support.validate import Rule, Text, checked

if TYPE_CHECKING:
    from pandas import DataFrame

Models = Annotated[
    Mapping[Text, Fit | Posterior],
    Rule(
        "a mapping from names to fits or posteriors, e.g. {'pooled': fit, 'by school': other}, at least one",
        lambda models: len(models) > 0,
        QueryError,
    ),
]
COLUMNS = ("log_evidence", "error", "log_bayes_factor", "probability", "elpd_loo", "se", "elpd_diff", "dse", "p_loo")


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """Models in the order of their log evidence.

    Columns: the log evidence and its Monte Carlo error; the log Bayes factor against the first model; the posterior
    probability of each model if all are as probable before; the expected log predictive density of data left out one at
    a time, its standard error, how far it is below the best one's, the standard error of that difference; the effective
    number of parameters. All but the probability are in nats.

    Attributes:
        rows: by model, in the order of `COLUMNS`.
        complaints: what makes a figure unreliable.
    """

    rows: tuple[tuple[str, tuple[float, ...]], ...]
    complaints: tuple[str, ...]

    def __str__(self) -> str:
        """A table, and warnings."""
        digits = [".3g" if c == "probability" else ".2f" for c in COLUMNS]
        table = [(name, *map(format, numbers, digits)) for name, numbers in self.rows]
        return "\n".join([format_table(("", *COLUMNS), table), *(f"  warning: {c}" for c in self.complaints)])

    def to_dataframe(self) -> DataFrame:
        """The table as a `pandas.DataFrame`, by model."""
        from pandas import DataFrame  # takes long to import

        return DataFrame([r for _, r in self.rows], [n for n, _ in self.rows], list(COLUMNS))


@checked(QueryError)
def compare(models: Models, rng_key: Key = 0, num_samples: Samples = 1000) -> Comparison:
    """Compare models of the same data by log evidence (with Bayes factors) and by leave-one-out cross-validation.

    Args:
        models: fits or posteriors by name; of a fit, `posterior()` is taken.
        num_samples: draws that the cross-validation rests on.

    Raises:
        QueryError: the models are of different data, which no figure compares.
    """
    posteriors = {n: m.posterior() if isinstance(m, Fit) else m for n, m in models.items()}
    loos = {n: p.loo(rng_key, num_samples) for n, p in posteriors.items()}
    _refuse_other_data(loos)
    evidences = {n: float(p.log_evidence) for n, p in posteriors.items()}
    order = sorted(evidences, key=lambda n: -evidences[n])
    best = max(loos.values(), key=lambda found: found.elpd)
    ratios = {n: math.exp(evidences[n] - evidences[order[0]]) for n in order}
    rows = []
    for name in order:
        found, error = loos[name], float(posteriors[name].log_evidence_error)
        apart = found.pointwise - best.pointwise
        evidence = (evidences[name], error, evidences[name] - evidences[order[0]], ratios[name] / sum(ratios.values()))
        dse = math.sqrt(apart.size * float(apart.var()))
        rows.append((name, (*evidence, found.elpd, found.se, float(apart.sum()), dse, found.p_loo)))
    complaints = [f"{n}: {c}" for n in order for c in posteriors[n].check()]
    complaints += [
        f"{n}: k-hat is above 0.7 for {loos[n].poor} of {loos[n].khat.size} data, so elpd_loo is unreliable; "
        "compare by log evidence"
        for n in order
        if loos[n].poor
    ]
    return Comparison(tuple(rows), tuple(complaints))


def _refuse_other_data(loos: Mapping[str, Loo]) -> None:
    first, *others = loos
    for name in others:
        one, other = ([loos[n].data[s] for s in sorted(loos[n].data)] for n in (first, name))
        if len(one) == len(other) and all(map(np.array_equal, one, other)):
            continue
        counts = [loos[n].pointwise.size for n in (first, name)]
        why = f"{counts[0]} and {counts[1]} of them" if counts[0] != counts[1] else "other values"
        raise QueryError(
            f"models {first!r} and {name!r} are of different data ({why}); log evidence and cross-validation compare "
            "models of the same data, in the same units, alone"
        )
