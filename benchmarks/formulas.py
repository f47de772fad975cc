"""Formulas from end to end, with defaults: means and times beside those of NUTS on the source that a formula prints.

    python -m benchmarks.formulas [--only NAME] [--rows 400]

Both see the same model, priors included, in one process and in turn, cold; so the ratio of their CPU times is of this
run alone. A mean is off by its distance from that of NUTS in posterior standard deviations; NUTS' own error in the same
unit stands beside it.
"""

from __future__ import annotations

import argparse
import time
import warnings

import arviz_stats.base
import jax
import numpy as np
import pandas as pd
from numpyro.infer import MCMC, NUTS, init_to_median

import kayn

FORMULAS = {
    "line": ("score ~ hours + girl", "gaussian"),
    "interaction": ("score ~ hours * girl + (1 | school)", "gaussian"),
    "slopes": ("score ~ hours + (1 + hours | school)", "gaussian"),
    "nested": ("score ~ hours + (1 | school/klass)", "gaussian"),
    "crossed": ("score ~ hours + (1 | school) + (1 | item)", "gaussian"),
    "robust": ("score ~ hours + (1 | school)", "student"),
    "logistic": ("passed ~ hours + girl + (1 | school)", "bernoulli"),
    "binomial": ("p(solved, tasks) ~ hours + (1 | school)", "binomial"),
    "offset": ("absences ~ girl + offset(log(days)) + (1 | school)", "poisson"),
    "overdispersed": ("absences ~ hours + girl", "negative binomial"),
    "spline": ("minutes ~ bs(hours, df=4)", "gamma"),
    "share": ("share ~ hours + (1 | school)", "beta"),
    "ordinal": ("grade ~ hours + (1 | school)", "ordinal"),
    "zeros": ("visits ~ hours", "zero-inflated poisson"),
}


def table(rows: int) -> pd.DataFrame:
    """Pupils in classes of twelve schools, with an outcome for every family."""
    rng = np.random.default_rng(1)
    school, klass, item = (rng.integers(0, n, rows) for n in (12, 3, 10))
    hours, girl = rng.gamma(4.0, 1.0, rows), rng.integers(0, 2, rows)
    level, slope = rng.normal(0.0, 1.0, 12), rng.normal(0.0, 0.2, 12)
    eta = 0.3 * (hours - 4.0) + 0.4 * girl + level[school] + slope[school] * (hours - 4.0)
    odds = 1.0 / (1.0 + np.exp(-eta))
    days, tasks = rng.integers(5, 20, rows), rng.integers(3, 12, rows)
    unit = 0.5 * rng.normal(size=rows)
    classes, items = rng.normal(0.0, 2.0, (12, 3)), rng.normal(0.0, 3.0, 10)
    share = rng.beta(5.0 * odds, 5.0 * (1.0 - odds))
    return pd.DataFrame(
        {
            "hours": hours.round(2),
            "girl": girl,
            "school": [f"S{s:02d}" for s in school],
            "klass": [f"K{k}" for k in klass],
            "item": [f"I{i}" for i in item],
            "score": 50.0 + 5.0 * eta + classes[school, klass] + items[item] + rng.normal(0.0, 4.0, rows),
            "passed": (rng.random(rows) < odds).astype(int),
            "tasks": tasks,
            "solved": rng.binomial(tasks, odds),
            "days": days,
            "absences": rng.poisson(days * np.exp(-2.0 - 0.3 * girl + 0.4 * level[school] + unit)),
            "minutes": rng.gamma(3.0, np.exp(np.sin(hours)) / 3.0),
            "share": np.clip(share, 1e-3, 1.0 - 1e-3),
            "grade": pd.Categorical.from_codes(
                np.digitize(eta + rng.logistic(size=rows), [-1.0, 1.0]), list("CBA"), True
            ),
            "visits": rng.poisson(np.exp(0.2 + 0.1 * hours)) * (rng.random(rows) < 0.7),
        }
    )


def nuts(formula: kayn.Formula, names: list[str]) -> dict[str, np.ndarray]:
    """Draws [4, 1000, ...] by NumPyro's sampler with its defaults, four chains at once."""
    sampler = MCMC(
        NUTS(formula.model, init_strategy=init_to_median),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.key(1), *formula.args)
    found = sampler.get_samples(group_by_chain=True)
    return {n: np.asarray(found[n]) for n in names}


def sites_of(formula: kayn.Formula) -> list[str]:
    """Sites that are compared: all but the effects of single groups."""
    return [n for n in formula.names if n.startswith("sd(") or "|" not in n]


def by_kayn(formula: kayn.Formula, names: list[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Means and standard deviations by site, with every default."""
    posterior = kayn.fit(formula, progress=False).posterior()
    return {n: np.asarray(posterior.mean(n)) for n in names}, {n: np.asarray(posterior.std(n)) for n in names}


def farthest(rows: list[tuple[float, str, float, float]]) -> tuple[float, str, float, float, float]:
    """Of elements, each with the distance of its means, its name, the other's error and the ratio of the standard
    deviations: the first three of the one that is farthest off, and the ends of the ratios."""
    off, where, error, _ = max(rows)
    widths = [row[3] for row in rows]
    return off, where, error, min(widths), max(widths)


def compared(name: str, data: pd.DataFrame) -> None:
    """Print a line."""
    text, family = FORMULAS[name]
    formula = kayn.formula(text, data, family)
    names = sites_of(formula)
    start = time.process_time()
    means, sds = by_kayn(formula, names)
    own = time.process_time() - start
    start = time.process_time()
    draws = nuts(formula, names)
    other = time.process_time() - start
    rows = []
    for n in names:
        flat = draws[n].reshape(4, 1000, -1)
        for i in range(flat.shape[-1]):
            sd = flat[..., i].std()
            ess = arviz_stats.base.array_stats.ess(flat[..., i], chain_axis=0, draw_axis=1, method="mean")
            off = (np.ravel(means[n])[i] - flat[..., i].mean()) / sd
            rows.append((abs(off), f"{n}[{i}]" if flat.shape[-1] > 1 else n, ess**-0.5, np.ravel(sds[n])[i] / sd))
    off, where, error, low, high = farthest(rows)
    print(
        f"{name:<14}{own:6.1f} s  NUTS {other:6.1f} s  ratio {own / other:4.2f}  mean off {off:.3f} sd ({where}, NUTS "
        f"+-{error:.3f})  sd {low:.2f} to {high:.2f}",
        flush=True,
    )


def main() -> None:
    """Run all formulas, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*FORMULAS], nargs="*", default=[*FORMULAS])
    parser.add_argument("--rows", type=int, default=400)
    options = parser.parse_args()
    data = table(options.rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.only:
            compared(name, data)


if __name__ == "__main__":
    main()
