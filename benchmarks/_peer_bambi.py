"""A formula through bambi, in an environment with bambi and without kayn; `benchmarks.beside_bambi` starts it.

It reads a request from standard input, and writes means, standard deviations, effective sample sizes and CPU seconds.
"""

from __future__ import annotations

import ast
import json
import resource
import sys

import arviz as az
import bambi
import numpy as np
import pandas as pd

ARGUMENTS = {
    "Normal": ("mu", "sigma"),
    "HalfNormal": ("sigma",),
    "LogNormal": ("mu", "sigma"),
    "Gamma": ("alpha", "beta"),
    "Beta": ("alpha", "beta"),
}


def prior(text: str) -> bambi.Prior:
    """From `dist.Normal(0.0, 2.5)`."""
    family, _, numbers = text.removeprefix("dist.").partition("(")
    values = ast.literal_eval(f"({numbers.removesuffix(')')},)")
    return bambi.Prior(family, **dict(zip(ARGUMENTS[family], values, strict=True)))


def prior_of(name: str, text: str) -> bambi.Prior:
    """That of a coefficient or a family's parameter; for `1|g` that of the effects' standard deviation."""
    return bambi.Prior("Normal", mu=0, sigma=prior(text)) if "|" in name else prior(text)


def seconds() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    data = pd.DataFrame(asked["columns"])
    begun = seconds()
    priors = {name: prior_of(name, text) for name, text in asked["priors"].items()}
    model = bambi.Model(asked["formula"], data, family=asked["family"], priors=priors)
    draws = model.fit(draws=1000, tune=1000, chains=4, cores=1, random_seed=1, progressbar=False).posterior
    spent = seconds() - begun
    ess = az.ess(draws, method="mean")
    found = {
        str(name): {
            "mean": np.ravel(draws[name].mean(("chain", "draw"))).tolist(),
            "sd": np.ravel(draws[name].std(("chain", "draw"))).tolist(),
            "ess": np.ravel(ess[name]).tolist(),
        }
        for name in draws.data_vars
    }
    json.dump({"found": found, "seconds": spent}, sys.stdout)


if __name__ == "__main__":
    main()
