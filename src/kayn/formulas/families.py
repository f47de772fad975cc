"""Families of outcomes: their likelihood as source, link, support, and further parameters with their priors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kayn.errors import DataError, DataWarning, ModelError, warn

if TYPE_CHECKING:
    import pandas as pd

Test = Callable[[np.ndarray], np.ndarray]
NARROW = 1e-3
"""Shares of an outcome are taken to be at least so far from 0 and 1 where the prior's centre is chosen."""


@dataclass(frozen=True)
class Family:
    """What an outcome follows, given the linear predictor `eta`.

    Attributes:
        link: of the mean; in words.
        likelihood: source of the distribution.
        support: what values may be, in words, and the test.
        parameters: further sites and the source of their priors; `{unit}` stands for the outcome's scale.
    """

    name: str
    link: str
    likelihood: str
    support: str
    test: Test
    parameters: tuple[tuple[str, str], ...] = ()

    def checked(self, name: str, values: np.ndarray) -> np.ndarray:
        """An outcome as the likelihood takes it.

        Raises:
            DataError: a value is outside of the support.
        """
        values = np.asarray(values, float)
        outside = np.flatnonzero(~(self.test(values) & np.isfinite(values)))
        if outside.size:
            raise DataError(
                f"outcome {name!r} is {values[outside[0]]:g} in row {outside[0]}; outcomes of family {self.name!r} "
                f"are {self.support} ({outside.size} of {values.size} rows are not)"
            )
        return values.astype(np.int32) if self.name in WHOLE else values

    def scale(self, values: np.ndarray) -> tuple[float, float]:
        """The centre and the unit of the linear predictor, by which priors are scaled."""
        mean = float(np.mean(values)) if len(values) else 0.0
        if self.link == "identity":
            return mean, float(np.std(values)) or 1.0
        if self.link == "log":
            return float(np.log(max(mean, NARROW))), 1.0
        if self.link == "logit":
            share = min(max(mean, NARROW), 1 - NARROW)
            return float(np.log(share / (1 - share))), 1.0
        return 0.0, 1.0


MOST = 2**24
"""Whole numbers up to which float32 has them all."""


def _whole(values: np.ndarray) -> np.ndarray:
    return (values >= 0) & (values == np.floor(values)) & (values <= MOST)


def _any(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape, bool)


CONCENTRATION = "dist.LogNormal(1.0, 1.5)"
COUNTS = (f"counts: whole numbers, 0 or more, up to {MOST:,}", _whole)
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "gaussian",
            "identity",
            "dist.Normal(eta, sigma)",
            "finite numbers",
            _any,
            (("sigma", "dist.HalfNormal({unit})"),),
        ),
        Family(
            "student",
            "identity",
            "dist.StudentT(nu, eta, sigma)",
            "finite numbers",
            _any,
            (("sigma", "dist.HalfNormal({unit})"), ("nu", "dist.Gamma(2.0, 0.1)")),
        ),
        Family("bernoulli", "logit", "dist.Bernoulli(logits=eta)", "0 or 1", lambda v: (v == 0) | (v == 1)),
        Family("binomial", "logit", "dist.Binomial(trials, logits=eta)", *COUNTS),
        Family("poisson", "log", "dist.Poisson(jnp.exp(eta))", *COUNTS),
        Family(
            "negative binomial",
            "log",
            "dist.NegativeBinomial2(jnp.exp(eta), alpha)",
            *COUNTS,
            (("alpha", CONCENTRATION),),
        ),
        Family(
            "gamma",
            "log",
            "dist.Gamma(shape, shape * jnp.exp(-eta))",
            "positive numbers",
            lambda v: v > 0,
            (("shape", CONCENTRATION),),
        ),
        Family(
            "beta",
            "logit",
            "dist.Beta(precision * jax.nn.sigmoid(eta), precision * jax.nn.sigmoid(-eta))",
            "between 0 and 1, these excluded",
            lambda v: (v > 0) & (v < 1),
            (("precision", "dist.LogNormal(2.0, 1.5)"),),
        ),
        Family(
            "ordinal",
            "cumulative logit",
            "dist.OrderedLogistic(eta, centre)",
            "ordered categories, or whole numbers",
            _whole,
        ),
        Family(
            "zero-inflated poisson",
            "log",
            "dist.ZeroInflatedPoisson(gate, jnp.exp(eta))",
            *COUNTS,
            (("gate", "dist.Beta(1.0, 1.0)"),),
        ),
    )
}
"""Families by name."""
WHOLE = ("bernoulli", "binomial", "poisson", "negative binomial", "ordinal", "zero-inflated poisson")
"""Families of whole numbers."""


def family_of(name: Any) -> Family:
    """A family by its name; case, `_` and `-` do not matter.

    Raises:
        ModelError: there is none.
    """
    key = str(name).lower().replace("_", " ").replace("-", " ")
    known = {n.replace("-", " "): f for n, f in FAMILIES.items()}
    found = known.get({"normal": "gaussian", "negativebinomial": "negative binomial", "t": "student"}.get(key, key))
    if found is None:
        raise ModelError(f"family {name!r} is none of {', '.join(map(repr, FAMILIES))}")
    return found


def check_order(family: Family, name: str, frame: pd.DataFrame) -> None:
    """Say which order the categories of an ordinal outcome get where it is that of the alphabet.

    Raises:
        DataError: there is one category.
    """
    if family.name != "ordinal" or name not in frame.columns:
        return
    column = frame[name]
    if column.nunique() < 2:
        raise DataError(f"outcome {name!r} is {column.iloc[0]!r} in all rows; family 'ordinal' needs two categories")
    if column.dtype.kind not in "iufb" and not hasattr(column, "cat"):
        order = " < ".join(map(repr, sorted(map(str, column.unique()))[:6]))
        warn(
            f"outcome {name!r} has texts, which are taken in the order of the alphabet, {order}; for another one make "
            "it whole numbers, or pandas.Categorical(..., categories=[lowest, ..., highest], ordered=True)",
            DataWarning,
        )


def outcome_of(family: Family, name: str, kind: str, values: Any, levels: Any) -> dict[str, np.ndarray]:
    """What the likelihood is given: the outcome under its name, with the number of trials of a binomial.

    Args:
        kind: "numeric", "categoric" or "proportion", as `formulae` says.
        values: [rows], or [rows, levels] of categories, or [rows, 2] of successes and trials.

    Raises:
        DataError: the family has no such outcomes.
    """
    if (kind == "proportion") != (family.name == "binomial"):
        raise DataError(
            f"outcome {name!r}: family 'binomial', and no other, takes successes and trials, written p(successes, "
            "trials) ~ ..."
        )
    if kind == "proportion":
        successes, trials = (family.checked(name, v) for v in np.asarray(values).T)
        more = np.flatnonzero(successes > trials)
        if more.size:
            row = more[0]
            raise DataError(f"outcome {name!r} has {successes[row]} successes of {trials[row]} trials in row {row}")
        return {name: successes, "trials": trials}
    if kind == "categoric":
        if not (family.name == "ordinal" or (family.name == "bernoulli" and len(levels) == 2)):
            told = ", ".join(map(repr, levels[:5])) + (", ..." if len(levels) > 5 else "")
            raise DataError(
                f"outcome {name!r} has the categories {told}; outcomes of family {family.name!r} are {family.support}"
            )
        values = np.argmax(np.asarray(values), axis=1)
    elif family.name == "ordinal":
        family.checked(name, values)
        values = np.unique(values, return_inverse=True)[1]
    return {name: family.checked(name, values)}
