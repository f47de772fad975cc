"""A formula's model as source: arguments, sites, priors and the likelihood, as one would write them by hand.

The text that is shown is the text that runs.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kayn.formulas import priors
from kayn.formulas.parts import CUTPOINTS, Column, Effects, Parts

IMPORTS = ("import jax", "import jax.numpy as jnp", "import numpyro", "import numpyro.distributions as dist")
WIDTH = 110
"""Columns of the source."""
ZERO = 1e-6
"""A mean of so few standard deviations is none."""


def default_priors(parts: Parts) -> dict[str, str]:
    """Source of the prior of every site."""
    design, family = parts.design, parts.design.family
    data = design.data()
    values = np.asarray(data[design.outcome], float)
    values = values[~np.isnan(values)]
    centre, unit = family.scale(values / np.maximum(data["trials"], 1) if "trials" in data else values)
    found = {}
    if parts.level == CUTPOINTS:
        counts = np.bincount(values.astype(int), minlength=len(design.levels))
        found[parts.level_latent] = priors.cutpoints(counts)
    elif parts.level:
        found[parts.level_latent] = priors.normal(centre, priors.WIDTH * unit)
    found |= {c.label: priors.effect(c.values, unit) for c in parts.columns}
    for effects in parts.effects:
        for own, site in zip(effects.columns, effects.scale_sites, strict=True):
            found[site] = priors.group_scale(np.empty(0) if own is None else own.values, unit)
        if effects.joint:
            found[effects.cholesky_site] = f"dist.LKJCholesky({len(effects.columns)}, 2.0)"
    unit_text = priors.number(unit)
    return {**found, **{parts.parameters[n]: text.format(unit=unit_text) for n, text in family.parameters}}


def write(parts: Parts, prior: Mapping[str, str]) -> str:
    """The source of a model."""
    design = parts.design
    body = [*_common(parts, prior), *_groups(parts, prior), *_likelihood(parts, prior)]
    unused = {i for i, use in zip(IMPORTS, ("jax.nn", "jnp."), strict=False) if not any(use in line for line in body)}
    imports = [i for i in IMPORTS if i not in unused]
    parameters = ", ".join([*parts.arguments, f"{parts.outcome}=None"])
    head = textwrap.wrap(f"def model({parameters}):", WIDTH, subsequent_indent=" " * 10, break_long_words=False)
    title = f"# {design.grammar.text}  ({design.family.name}, {design.family.link} link)"
    return "\n".join([title, *imports, "", "", *head, *body, ""])


def _text(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _sample(name: str, prior: str, more: str = "") -> str:
    return f"numpyro.sample({_text(name)}, {prior}{more})"


def _common(parts: Parts, prior: Mapping[str, str]) -> Iterator[str]:
    """The level and the coefficients."""
    if parts.level:
        yield f"    centre = {_sample(parts.level_latent, prior[parts.level_latent])}"
    for column in parts.columns:
        yield f"    {column.variable} = {_sample(column.label, prior[column.label])}"
    if parts.centred:
        # cutpoints are compared with the predictor, so that they move the other way
        mark = " + " if parts.level == CUTPOINTS else " - "
        terms = ["centre", *(f"{c.variable} * {mean}" for c in parts.columns if (mean := _mean(c)))]
        yield from _sum(f"    numpyro.deterministic({_text(parts.level)}, ", terms, mark, ")")


def _mean(column: Column) -> str:
    """The mean of a column as source; "" where it is zero but for rounding."""
    mean = float(np.mean(column.values))
    return priors.number(mean, 6) if abs(mean) > ZERO * float(np.std(column.values)) else ""


def _groups(parts: Parts, prior: Mapping[str, str]) -> Iterator[str]:
    """Standard deviations, correlations and effects, factor by factor."""
    for plate in dict.fromkeys(e.plate for e in parts.effects):
        here = [e for e in parts.effects if e.plate == plate]
        for effects in here:
            for variable, site in zip(effects.scales, effects.scale_sites, strict=True):
                yield f"    {variable} = {_sample(site, prior[site])}"
            if effects.joint:
                yield from _covariance(effects, prior)
        yield f"    with numpyro.plate({_text(plate)}, {here[0].size}):"
        for effects in here:
            law = f"dist.Normal(0.0, {effects.scales[0]})"
            if effects.joint:
                law = f"dist.MultivariateNormal(jnp.zeros({len(effects.labels)}), scale_tril={effects.scale})"
            yield f"        {effects.variable} = {_sample(effects.site, law)}"
        for effects in here:
            for j, name in enumerate(effects.names if effects.joint else ()):
                yield f"    numpyro.deterministic({_text(name)}, {effects.variable}[:, {j}])"


def _covariance(effects: Effects, prior: Mapping[str, str]) -> Iterator[str]:
    cholesky = effects.cholesky
    yield f"    {cholesky} = {_sample(effects.cholesky_site, prior[effects.cholesky_site])}"
    yield f"    {effects.scale} = jnp.stack([{', '.join(effects.scales)}])[:, None] * {cholesky}"
    for a, b, name in effects.correlations:
        yield f"    numpyro.deterministic({_text(name)}, jnp.dot({cholesky}[{a}], {cholesky}[{b}]))"


def _likelihood(parts: Parts, prior: Mapping[str, str]) -> Iterator[str]:
    """The family's further parameters, the linear predictor, and what is observed."""
    family = parts.design.family
    for variable, site in parts.parameters.items():
        yield f"    {variable} = {_sample(site, prior[site])}"
    terms = ["centre"] if parts.level and parts.level != CUTPOINTS else []
    for column in parts.columns:
        terms.append(f"{column.variable} * {_centred(column) if parts.centred else column.code}")
    terms += parts.offsets
    for effects in parts.effects:
        for j, own in enumerate(effects.columns):
            read = f"{effects.variable}[{effects.index}{f', {j}' if effects.joint else ''}]"
            terms.append(read if own is None else f"{read} * {own.code}")
    yield f"    with numpyro.plate({_text(parts.rows)}, num_rows):"
    yield from _sum("        eta = ", terms or ["jnp.zeros(num_rows)"], " + ", "")
    yield f"        {_sample(parts.design.outcome, family.likelihood, f', obs={parts.outcome}')}"


def _centred(column: Column) -> str:
    mean = _mean(column)
    if not mean:
        return column.code
    return f"({column.code} + {mean[1:]})" if mean.startswith("-") else f"({column.code} - {mean})"


def _sum(before: str, terms: Sequence[str], mark: str, after: str) -> Iterator[str]:
    """A sum on one line, or a term a line."""
    line = before + mark.join(terms) + after
    if len(line) <= WIDTH:
        yield line
        return
    indent = " " * (len(before) - len(before.lstrip()))
    yield before.rstrip() + ("" if after else " (")
    yield f"{indent}    {terms[0]}"
    yield from (f"{indent}    {mark.strip()} {t}" for t in terms[1:])
    yield f"{indent})"
