"""Twelve formulas through bambi and through kayn, with the same priors: means, and CPU times from table to answer.

    python -m venv other && other/bin/pip install bambi
    python -m benchmarks.beside_bambi other/bin/python [--only NAME] [--rows 400]

bambi has a process of its own for every formula, four chains of 1,000 draws after 1,000 of warm-up by its default
sampler, and nothing compiled before; imports count for neither. A mean is off by its distance from bambi's in posterior
standard deviations; bambi's own error in the same unit stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd

import kayn
from benchmarks.formulas import FORMULAS, by_kayn, farthest, sites_of, table

FAMILIES = {
    "student": "t",
    "negative binomial": "negativebinomial",
    "zero-inflated poisson": "zero_inflated_poisson",
}
OTHERS = {"precision": "kappa", "gate": "psi"}
"""What bambi calls parameters of families."""
FLIPPED = ("gate",)
"""Probabilities of what bambi's are not of."""
PEER = Path(__file__).with_name("_peer_bambi.py")
ASKED = [n for n in FORMULAS if n not in ("ordinal", "spline")]
"""bambi's thresholds have another prior, and its release of formulae another basis of splines."""


def formula_of(name: str) -> tuple[str, str]:
    """A formula and its family; bambi has no correlations of effects, so that `slopes` is without."""
    text, family = FORMULAS[name]
    return text.replace("(1 + hours | school)", "(1 + hours || school)"), family


def other_name(name: str) -> str:
    """What bambi calls a site."""
    group = re.fullmatch(r"sd\((.*)\)", name)
    return f"{group[1]}_sigma" if group else OTHERS.get(name, name)


def priors_for(formula: kayn.Formula) -> dict[str, str]:
    """The formula's priors by bambi's names."""
    names = {"Intercept_at_means": "Intercept"}
    return {other_name(names.get(n, n)).removesuffix("_sigma"): text for n, text in formula.priors.items()}


def by_bambi(python: str, name: str, formula: kayn.Formula, data: pd.DataFrame) -> dict:
    """What the other process answers."""
    text, family = formula_of(name)
    asked = {
        "formula": text.replace("||", "|"),
        "family": FAMILIES.get(family, family),
        "priors": priors_for(formula),
        "columns": {c: data[c].tolist() for c in data if c != "grade"},
    }
    with tempfile.TemporaryDirectory() as fresh:
        flags = {"PYTENSOR_FLAGS": f"base_compiledir={fresh}"}
        run = [python, str(PEER)]
        done = subprocess.run(
            run, input=json.dumps(asked), text=True, capture_output=True, check=False, env={**os.environ, **flags}
        )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout[done.stdout.index('{"found"') :])


def compared(python: str, name: str, data: pd.DataFrame) -> None:
    """Print a line of the table."""
    text, family = formula_of(name)
    start = time.process_time()
    formula = kayn.formula(text, data, family)
    names = sites_of(formula)
    means, sds = by_kayn(formula, names)
    own = time.process_time() - start
    other = by_bambi(python, name, formula, data)
    rows = []
    for n in names:
        (mean,), (sd,), (ess,) = (other["found"][other_name(n)][k] for k in ("mean", "sd", "ess"))
        mean = 1.0 - mean if n in FLIPPED else mean
        rows.append((float(abs(means[n] - mean) / sd), n.replace("|", "\\|"), ess**-0.5, float(sds[n] / sd)))
    off, where, error, low, high = farthest(rows)
    spent = other["seconds"]
    print(
        f"| {name} | {own:.1f} | {spent:.1f} | {own / spent:.2f} | {off:.3f}, of `{where}` | {error:.3f} | "
        f"{low:.2f} to {high:.2f} |",
        flush=True,
    )


def main() -> None:
    """Run all formulas, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="of an environment with bambi")
    parser.add_argument("--only", choices=ASKED, nargs="*", default=ASKED)
    parser.add_argument("--rows", type=int, default=400)
    options = parser.parse_args()
    data = table(options.rows)
    print("| formula | kayn | bambi | ratio | off | error of bambi | sd, ratio |\n|---|---|---|---|---|---|---|")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.only:
            compared(options.python, name, data)


if __name__ == "__main__":
    main()
