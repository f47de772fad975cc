"""What the source of a formula's model consists of: its arguments, coefficients and effects of groups, each named."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kayn.errors import ModelError
from kayn.formulas.design import INTERCEPT, Bracket, Design
from kayn.support.names import fresh

CUTPOINTS = "cutpoints"
TAKEN = {"jax", "jnp", "numpyro", "dist", "model", "eta", "trials", "num_rows", "centre", CUTPOINTS}
"""Identifiers that the source has anyway."""
ALONE = ("intercept", "offset")
"""Kinds of terms without a coefficient, as `formulae` calls them."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column of numbers.

    Attributes:
        label: what its coefficient is called, as a site.
        variable: the same in the source.
        code: how the source reads it, `hours` or `klass[:, 1]`.
    """

    label: str
    variable: str
    code: str
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects that vary by a factor: one, or a vector of correlated ones.

    Attributes:
        site, variable: of the effects, as a site and in the source.
        scales: variables of their standard deviations.
        cholesky, scale: variables of the Cholesky factors of their correlation and covariance.
        plate, index, size: of the factor: a site, and two arguments.
        columns: what is multiplied by the effects; None for the intercept.
        labels: of the columns.
    """

    factor: str
    site: str
    variable: str
    scales: tuple[str, ...]
    cholesky: str
    scale: str
    plate: str
    index: str
    size: str
    columns: tuple[Column | None, ...]
    labels: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether the effects of a group are one vector."""
        return len(self.columns) > 1

    @property
    def names(self) -> list[str]:
        """What the effects are called one by one."""
        return [f"{label}|{self.factor}" for label in self.labels]

    @property
    def scale_sites(self) -> list[str]:
        """Sites of the standard deviations."""
        return [f"sd({name})" for name in self.names]

    @property
    def cholesky_site(self) -> str:
        """The site of the Cholesky factor of the correlation."""
        return f"cholesky({self.site})"

    @property
    def correlations(self) -> list[tuple[int, int, str]]:
        """Pairs of effects, and what their correlation is called."""
        pairs = [(a, b) for b in range(len(self.labels)) for a in range(b)]
        return [(a, b, f"cor({self.labels[a]}, {self.labels[b]}|{self.factor})") for a, b in pairs]


@dataclass
class _Names:
    taken: set[str] = field(default_factory=lambda: {*TAKEN})

    def of(self, label: str) -> str:
        """An identifier like a label, that is not taken yet."""
        text = re.sub(r"\W+", "_", label).strip("_") or "x"
        text = f"x_{text}" if not text.isidentifier() or keyword.iskeyword(text) else text
        found = fresh(text, self.taken)
        self.taken.add(found)
        return found


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a formula's model.

    Attributes:
        arguments: all but the outcome.
        outcome: the argument.
        level: the site that the linear predictor's level is: an intercept, cutpoints, or "" where there is none.
        offsets: arguments.
        rows: the plate.
        parameters: sites of the family's further parameters, by what they are called in its likelihood.
    """

    design: Design
    arguments: tuple[str, ...]
    outcome: str
    level: str
    columns: tuple[Column, ...]
    offsets: tuple[str, ...]
    effects: tuple[Effects, ...]
    rows: str
    parameters: Mapping[str, str]

    @property
    def centred(self) -> bool:
        """Whether predictors are taken from their means, so that the level is that of average rows."""
        return bool(self.level and self.columns)

    @property
    def level_latent(self) -> str:
        """The latent of the level."""
        return f"{self.level}_at_means" if self.centred else self.level

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """What the elements of plates and vectors are called."""
        found = {e.plate: b.factor.groups for e, b in zip(self.effects, self._brackets(), strict=True)}
        found |= {f"{e.site}_dim_1": e.labels for e in self.effects if e.joint}
        return {n: np.asarray(labels) for n, labels in found.items()}

    def _brackets(self) -> list[Bracket]:
        by_name = {b.factor.name: b for b in self.design.brackets}
        return [by_name[e.factor] for e in self.effects]

    @property
    def names(self) -> tuple[str, ...]:
        """Sites that tell what was asked, coefficients first and the effects of groups last."""
        return (
            *([self.level] if self.level else []),
            *(c.label for c in self.columns),
            *(s for e in self.effects for s in e.scale_sites),
            *(name for e in self.effects for _, _, name in e.correlations),
            *self.parameters.values(),
            *(name for e in self.effects for name in (e.names if e.joint else [e.site])),
        )

    def refuse_twins(self) -> None:
        """Refuse a formula that says one thing twice.

        Raises:
            ModelError: two of its sites would have one name.
        """
        more = {self.level_latent, *(e.plate for e in self.effects), self.rows} - {self.level}
        joint = [name for e in self.effects if e.joint for name in (e.site, e.cholesky_site)]
        for name, count in Counter([*self.names, *more, *joint, self.design.outcome]).items():
            if count > 1:
                raise ModelError(
                    f"formula {self.design.grammar.text!r} has {name!r} twice; say it once, or give the column that is "
                    "called so another name"
                )


def parts_of(design: Design) -> Parts:
    """Give every column, factor and effect of a design its name.

    Raises:
        ModelError: something stands twice.
    """
    names, arguments = _Names(), _Arguments()
    names.taken |= {name for name, _ in design.family.parameters}  # as identifiers; sites follow
    outcome = names.of(design.outcome)
    common, labels = design.common.columns(), design.common.labels()
    columns: list[Column] = []
    for term, (kind, values) in common.items():
        if kind not in ALONE:
            columns += _columns(arguments.of(term, names), labels[term], values, names)
    offsets = [arguments.of(term, names) for term, (kind, _) in common.items() if kind == "offset"]
    family = design.family
    taken = {design.outcome, INTERCEPT, *(c.label for c in columns)}
    parameters = {name: fresh(name, taken) for name, _ in family.parameters}
    taken |= {*parameters.values()}
    plates = {b.factor.name: fresh(b.factor.name, taken) for b in design.brackets}
    effects = [e for b in design.brackets for e in _effects(b, plates[b.factor.name], arguments, names)]
    rows = fresh("rows", {*taken, *plates.values()})
    intercept = any(kind == "intercept" for kind, _ in common.values())
    level = CUTPOINTS if family.name == "ordinal" else INTERCEPT if intercept else ""
    more = ["num_rows", *(["trials"] if family.name == "binomial" else [])]
    own = (*arguments.found.values(), *more)
    found = Parts(design, own, outcome, level, tuple(columns), tuple(offsets), tuple(effects), rows, parameters)
    found.refuse_twins()
    return found


@dataclass
class _Arguments:
    """Arguments by what they hold, in their order."""

    found: dict[str, str] = field(default_factory=dict)

    def of(self, what: str, names: _Names, like: str = "") -> str:
        if what not in self.found:
            self.found[what] = names.of(like or what)
        return self.found[what]


def _columns(code: str, labels: Sequence[str], values: np.ndarray, names: _Names) -> Iterator[Column]:
    columns = [values] if values.ndim == 1 else values.T
    for i, (label, own) in enumerate(zip(labels, columns, strict=True)):
        yield Column(label, names.of(f"b_{label}"), code if values.ndim == 1 else f"{code}[:, {i}]", own)


def _effects(bracket: Bracket, plate: str, arguments: _Arguments, names: _Names) -> Iterator[Effects]:
    factor = bracket.factor.name
    index = arguments.of(f"index of {factor}", names, factor)
    size = arguments.of(f"number of {factor}", names, f"num_{factor}")
    columns: list[Column | None] = []
    told = bracket.terms.labels()
    for term, (kind, values) in bracket.terms.columns().items():
        columns += [None] if kind == "intercept" else _columns(arguments.of(term, names), told[term], values, names)
    for part in [columns] if bracket.correlated else [[c] for c in columns]:
        labels = tuple("1" if c is None else c.label for c in part)
        word = factor if bracket.correlated or labels == ("1",) else f"{labels[0]}_{factor}"
        variables = [names.of(f"{w}_{word}") for w in ("u", *(["cholesky", "scale"] if len(part) > 1 else []))]
        scales = tuple(names.of(f"sd_{factor}" if label == "1" else f"sd_{label}_{factor}") for label in labels)
        u, cholesky, scale = [*variables, "", ""][:3]
        site = f"{' + '.join(labels)}|{factor}"
        yield Effects(factor, site, u, scales, cholesky, scale, plate, index, size, tuple(part), labels)


def values_of(design: Design, frame: Any = None) -> tuple[Any, ...]:
    """The arguments of a formula's model for some rows, in the order of `Parts.arguments`, and the outcome.

    Args:
        frame: new rows, where groups may be new and the outcome may lack; None for those of the design.
    """
    found: dict[str, Any] = {}
    common = design.common.columns(frame)
    found |= {n: v for n, (kind, v) in common.items() if kind not in ALONE}
    found |= {n: v for n, (kind, v) in common.items() if kind == "offset"}
    rows = design.frame if frame is None else frame
    for bracket in design.brackets:
        factor: Callable[[str], str] = f"{{}} of {bracket.factor.name}".format
        if factor("index") not in found:
            index, number = bracket.factor.index(rows)
            found |= {factor("index"): index, factor("number"): number}
        for term, (kind, values) in bracket.terms.columns(frame).items():
            if kind != "intercept":
                found.setdefault(term, values)
    data = design.data(frame)
    more = [len(rows), *([data.get("trials")] if design.family.name == "binomial" else [])]
    return (*found.values(), *more, data.get(design.outcome))
