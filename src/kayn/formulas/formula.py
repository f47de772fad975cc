"""`kayn.formula`: a model from a line of text and a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from kayn.errors import ModelError
from kayn.formulas import priors, source
from kayn.formulas.design import Design
from kayn.formulas.families import family_of
from kayn.formulas.frames import as_frame, complete, refuse_changed, refuse_unknown
from kayn.formulas.grammar import Grammar
from kayn.formulas.parts import Parts, parts_of, values_of
from kayn.support.prepared import Prepared
from kayn.support.prints import Printed
from kayn.support.validate import Rule, Text, checked

Priors = Annotated[
    Mapping[str, Any] | None,
    Rule("a mapping from sites to distributions, e.g. {'hours': 'Normal(0, 1)'}, or None", error=ModelError),
]


@dataclass(frozen=True, eq=False, repr=False)
class Formula(Printed, Prepared):
    """A NumPyro model that a formula has become, with its arguments: `kayn.fit(f)`, or `kayn.fit(f.model, f.args)`.

    Printed, it is the source of its model, which runs wherever it is pasted. `f.rows(table)` are the arguments for
    other rows, e.g. `posterior.predictive(0, 1000, *f.rows(table))`.

    Attributes:
        model: the NumPyro program, made of `source`.
        args: its arguments, the outcome last.
        labels: what groups are called, by plate.
        names: the sites that tell what was asked: coefficients, standard deviations, correlations, effects of groups.
        priors: source of the priors, by site.
        missing: "impute" where outcomes are missing that `kayn.fit` is to draw, see `Posterior.imputed`.
    """

    source: str
    model: Callable
    args: tuple[Any, ...]
    labels: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    priors: Mapping[str, str]
    parts: Parts
    missing: str = "error"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, on its own arguments where none are given."""
        return self.model(*(args if args or kwargs else self.args), **kwargs)

    @property
    def __name__(self) -> str:
        """The formula."""
        return self.parts.design.grammar.text

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the model."""
        return inspect.signature(self.model)

    def __str__(self) -> str:
        """The source of the model."""
        return self.source

    def rows(self, data: Any) -> tuple[Any, ...]:
        """The model's arguments for other rows: a table with the columns of the formula, where that of the outcome may
        lack. New groups come after those known.

        Raises:
            KaynError: a column is not there, or cannot be evaluated.
        """
        design = self.parts.design
        frame = as_frame(data)
        refuse_unknown(frame, design.predictors)
        refuse_changed(design.frame, frame, design.predictors)
        return values_of(design, complete(frame, design.predictors))


@checked(ModelError)
def formula(
    formula: Text,
    data: Any,
    family: Text = "gaussian",
    priors: Priors = None,
    missing: Literal["drop", "impute", "error"] = "drop",
) -> Formula:
    """A NumPyro model from a formula, such as "score ~ hours + girl + (1 + hours | school) + (1 | school:klass)".

    The grammar is that of lme4 and brms, as the `formulae` library reads it: interactions `a * b` and `a:b`,
    `offset(x)`, splines `bs(x, df=4)`, functions such as `log(x)`; `(1 + x | g)` for effects that vary by group and are
    correlated, `(x || g)` for independent ones, `a/b` and `a:b` for nested groups.

    Args:
        data: a table of pandas, polars or Arrow, or a mapping of columns.
        family: gaussian and student (identity link), bernoulli, binomial and beta (logit), poisson, negative binomial,
            gamma and zero-inflated poisson (log), or ordinal (cumulative logit).
        priors: distributions, or their text, e.g. {"hours": "Normal(0, 1)"}, by site. All others are weakly informative
            and scaled by the data; the source shows them.
        missing: "drop" leaves rows with gaps out, with a warning; "impute" keeps those where the outcome alone is
            missing, which `posterior.imputed()` draws; "error" refuses gaps and says where they are.

    Raises:
        KaynError: the formula does not parse, a column is not there, the outcome is outside of the family's support,
            values are missing that are refused, or a prior is of no site.
    """
    design = Design.of(Grammar.of(formula), family_of(family), as_frame(data), missing)
    return _made(parts_of(design), priors, missing)


def _made(parts: Parts, given: Mapping[str, Any] | None, missing: str) -> Formula:
    own = priors.given(given, source.default_priors(parts))
    text = source.write(parts, own)
    namespace: dict[str, Any] = {}
    # the text is built from identifiers, numbers and quoted names alone
    exec(compile(text, "<formula>", "exec"), namespace)  # noqa: S102
    args = values_of(parts.design)
    how = "impute" if missing == "impute" else "error"
    return Formula(text, namespace["model"], args, parts.labels, parts.names, own, parts, how)
