"""What a formula makes of a table: columns of numbers for the common terms, an index and columns for every bracket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from kayn.errors import DataError, KaynError, ModelError
from kayn.formulas.families import Family, check_order, outcome_of
from kayn.formulas.frames import complete, refuse_unfit, refuse_unknown
from kayn.formulas.grammar import Grammar

if TYPE_CHECKING:
    import pandas as pd

INTERCEPT = "Intercept"
"""What `formulae` calls the constant, and takes a column of that name for."""
ELEMENTWISE = {name: f for name, f in vars(np).items() if isinstance(f, np.ufunc)}
FUNCTIONS: dict[str, Any] = {n: getattr(np, n) for n in ("log", "log2", "log10", "log1p", "exp", "sqrt", "abs")}
FUNCTIONS |= {"np": SimpleNamespace(pi=np.pi, e=np.e, where=np.where, clip=np.clip, **ELEMENTWISE)}
"""What formulas may call beside what `formulae` has: functions of numbers, and none that read or write files."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Columns of a sum of terms.

    Attributes:
        text: the sum as it is written.
        matrix: `formulae`'s, which evaluates new rows too.
    """

    text: str
    matrix: Any

    @staticmethod
    def of(text: str, frame: pd.DataFrame) -> Terms:
        """Evaluate a sum of terms; none of it may speak of groups."""
        with explained(text):
            design = _matrices(text, frame)
        if design.group is not None:
            raise ModelError(f"{text!r}: write what varies by group in brackets of its own, e.g. ... + (1 + x | group)")
        return Terms(text, design.common)

    def columns(self, frame: pd.DataFrame | None = None) -> dict[str, tuple[str, np.ndarray]]:
        """Kind and values of every term: "intercept", "offset" or another, and [rows] or [rows, columns].

        Args:
            frame: new rows; None for those that it was made of.
        """
        found = {}
        for name, term in (self.matrix.terms if self.matrix is not None else {}).items():
            with explained(self.text):
                values = term.data if frame is None else term.eval_new_data(frame)
                values = np.asarray(values) if not np.size(values) else np.asarray(values, float)
            if not np.size(values):
                raise DataError(f"{name!r} has one value in all rows, so that there is no effect of it; leave it out")
            found[name] = (term.kind, values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values)
        return found

    def labels(self) -> dict[str, list[str]]:
        """What the columns of every term are called."""
        return {
            n: [str(x) for x in t.labels] for n, t in (self.matrix.terms if self.matrix is not None else {}).items()
        }


@dataclass(frozen=True, eq=False)
class Factor:
    """What groups rows: one column or several.

    Attributes:
        known: the values of every group, a text a column, in the order of their numbers.
    """

    name: str
    columns: tuple[str, ...]
    known: tuple[tuple[str, ...], ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """What the groups are called."""
        return tuple(map(":".join, self.known))

    @staticmethod
    def of(name: str, columns: Sequence[str], frame: pd.DataFrame) -> Factor:
        """The groups that there are, sorted column by column."""
        import pandas as pd

        found = [pd.Categorical(frame[c]) for c in columns]
        codes = np.unique(np.stack([c.codes for c in found], axis=1), axis=0)
        texts = [[_text(v) for v in c.categories] for c in found]
        return Factor(name, tuple(columns), tuple(tuple(t[i] for t, i in zip(texts, r, strict=True)) for r in codes))

    def index(self, frame: pd.DataFrame) -> tuple[np.ndarray, int]:
        """The number of each row's group [rows], and how many groups there are: new ones follow those known."""
        rows = list(zip(*([_text(v) for v in frame[c].to_numpy()] for c in self.columns), strict=True))
        numbers = {group: i for i, group in enumerate(dict.fromkeys((*self.known, *rows)))}
        return np.array([numbers[row] for row in rows], np.int32), len(numbers)


@dataclass(frozen=True, eq=False)
class Bracket:
    """`(terms | factor)`: effects that vary together."""

    terms: Terms
    factor: Factor
    correlated: bool


@dataclass(frozen=True, eq=False)
class Design:
    """A formula on a table.

    Attributes:
        frame: the rows that are complete.
        predictors: the columns that rows have to have.
        response: `formulae`'s.
        levels: of an outcome of categories, in their order.
    """

    grammar: Grammar
    family: Family
    frame: pd.DataFrame
    predictors: frozenset[str]
    common: Terms
    brackets: tuple[Bracket, ...]
    response: Any
    levels: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """What the outcome is called."""
        return str(self.response.name)

    @staticmethod
    def of(grammar: Grammar, family: Family, frame: pd.DataFrame, missing: str = "drop") -> Design:
        """Evaluate a formula.

        Args:
            missing: whether rows with gaps are left out ("drop"), kept if it is the outcome alone that is missing
                ("impute"), or refused ("error").

        Raises:
            KaynError: a column is not there, a part cannot be evaluated, values are missing that are refused, or the
                outcome does not suit the family.
        """
        factors = [_factors(g.by) for g in grammar.groups]
        numbers = _variables(grammar.common).union(*(_variables(g.terms) for g in grammar.groups))
        if INTERCEPT in numbers:
            raise ModelError(
                f"formula {grammar.text!r}: no predictor can be called {INTERCEPT!r}; give it another name"
            )
        outcome = _variables(f"{grammar.outcome} ~ 1")
        names = numbers | {c for found in factors for columns in found.values() for c in columns}
        refuse_unknown(frame, names | outcome)
        refuse_unfit(frame, numbers | outcome)
        if missing == "impute" and family.name == "binomial":
            raise ModelError("missing='impute' is not for family 'binomial', whose trials may be missing; pass 'drop'")
        frame = complete(frame, names if missing == "impute" else names | outcome, missing == "error")
        there = frame[~frame[sorted(outcome)].isna().any(axis=1)]
        if not len(there):
            raise DataError(f"no row has an outcome {grammar.outcome!r}")
        brackets = []
        for group, found in zip(grammar.groups, factors, strict=True):
            terms = Terms.of(group.terms, frame)
            brackets += [Bracket(terms, Factor.of(n, c, frame), group.correlated) for n, c in found.items()]
        with explained(grammar.outcome):
            response = _matrices(f"{grammar.outcome} ~ 1", there).response
        outcome_of(family, response.name, response.kind, response.design_matrix, response.levels)
        check_order(family, response.name, there)
        levels = tuple(map(str, response.levels or ()))
        if family.name == "ordinal" and not levels:
            levels = tuple(_text(v) for v in np.unique(response.design_matrix))
        common = Terms.of(grammar.common, frame)
        return Design(grammar, family, frame, frozenset(names), common, tuple(brackets), response, levels)

    def data(self, frame: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
        """The outcome under its name, and the trials of a binomial; no outcome where new rows have none, NaN where it
        is missing."""
        frame = self.frame if frame is None else frame
        columns = _variables(f"{self.grammar.outcome} ~ 1")
        if not columns <= set(frame.columns):
            return self._trials(frame)
        gaps = frame[sorted(columns)].isna().any(axis=1).to_numpy()
        if gaps.all():
            return self._trials(frame)
        if not gaps.any():
            return self._data(frame)
        found = np.full(len(frame), np.nan)
        found[~gaps] = self._data(frame[~gaps])[self.outcome]
        return {**self._trials(frame), self.outcome: found}

    def _data(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        if self.levels:
            return {self.outcome: _numbers(self.outcome, frame[self.outcome], self.levels)}
        with explained(self.grammar.outcome):
            found = _matrices(f"{self.grammar.outcome} ~ 1", frame).response
        return outcome_of(self.family, self.outcome, found.kind, found.design_matrix, self.levels)

    def _trials(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        if self.family.name != "binomial":
            return {}
        with explained(self.grammar.outcome):
            return {"trials": np.asarray(self.response.evaluate_new_data(frame), np.int32)}


def _numbers(name: str, column: Any, levels: Sequence[str]) -> np.ndarray:
    numbers = {level: i for i, level in enumerate(levels)}
    texts = [_text(v) for v in column.to_numpy()]
    unknown = next((t for t in texts if t not in numbers), None)
    if unknown is not None:
        raise DataError(f"outcome {name!r} is {unknown!r}, which is none of {', '.join(map(repr, levels))}")
    return np.array([numbers[t] for t in texts], np.int32)


def _text(value: Any) -> str:
    """A value of a column as a label; whole numbers without a point."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _matrices(text: str, frame: pd.DataFrame) -> Any:
    from formulae import design_matrices
    from formulae.environment import Environment

    # by default names are also looked up where this is called from, modules that read files among them
    return design_matrices(text, frame, na_action="error", env=Environment([FUNCTIONS]))


def _description(text: str) -> Any:
    with explained(text):
        from formulae.model_description import model_description

        return model_description(text)


def _variables(text: str) -> set[str]:
    return {str(n) for n in _description(text).var_names if n}  # numbers in calls are called ""


def _factors(by: str) -> dict[str, list[str]]:
    """The columns of every factor on the right of a bar: `a/b` are `a` and `a:b`."""
    found = {}
    for term in _description(f"(1 | {by})").group_terms:
        columns = [c.name for c in term.factor.components]
        if any(hasattr(c, "call") for c in term.factor.components):
            raise ModelError(
                f"'| {by}': groups are columns, or columns joined by ':' or '/'; make {columns[0]} one first"
            )
        found[term.factor.name] = columns
    return found


@contextmanager
def explained(text: str) -> Iterator[None]:
    """Errors of `formulae` as kayn's own, in one line that names the part of the formula."""
    try:
        with redirect_stdout(StringIO()):  # `formulae` prints, beside what it raises
            yield
    except KaynError:
        raise
    except ImportError as error:
        raise KaynError("formulas need the formulae library: pip install 'kayn[formula]'") from error
    except KeyError as error:
        raise ModelError(
            f"formula part {text!r}: {error.args[0]!r} is neither a column nor a known function"
        ) from error
    except Exception as error:  # whatever a call within a formula raises
        told = str(error).strip().splitlines()
        raise ModelError(
            f"formula part {text!r} cannot be read: {told[0] if told else type(error).__name__}"
        ) from error
