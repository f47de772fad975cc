"""Arguments: bad values of every public function, generated from its annotations, end in a KaynError that names the argument."""

import inspect

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn import datasets, meters
from kayn.checks import Unfit, fit, hints_of
from kayn.errors import DataError, DataWarning, KaynError

BAD = [
    None,
    True,
    -1,
    0,
    1.5,
    10**12,
    float("nan"),
    float("inf"),
    "",
    "nonsense",
    [],
    [1],
    {},
    {"a": -1},
    np.zeros(3),
    object(),
    1j,
]
CLASSES = [
    kayn.QEM,
    kayn.Importance,
    kayn.RWS,
    kayn.VI,
    kayn.VIMCO,
    kayn.Reinforce,
    kayn.RELAX,
    kayn.Concrete,
    kayn.Sleep,
    kayn.Posterior,
    kayn.Fit,
]
FUNCTIONS = [
    kayn.fit, kayn.analyze, kayn.train, kayn.by_parameter, kayn.cache_compilation, kayn.FactorisedGuide.from_model,
    meters.log_evidence, meters.evidence_meter, meters.gradient_noise, meters.layers, meters.active_units,
    datasets.load, datasets.simulate_radon,
]  # fmt: skip
CHECKED = FUNCTIONS + [
    m for c in CLASSES for n, m in inspect.getmembers(c, inspect.isfunction)
    if hasattr(m, "__wrapped__") and (n == "__init__" or not n.startswith("_"))
]  # fmt: skip


@pytest.mark.parametrize("function", CHECKED, ids=lambda f: f.__qualname__)
def test_values_that_do_not_fit_are_refused_before_anything_runs(function):
    hints, refused = hints_of(function), 0
    for name, hint in hints.items():
        for value in BAD:
            try:
                fit(value, hint)
                continue
            except (Unfit, KaynError):
                pass
            kind = inspect.signature(function).parameters[name].kind
            required = {n: None for n, p in inspect.signature(function).parameters.items()
                        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}  # fmt: skip
            if kind is not inspect.Parameter.VAR_POSITIONAL:
                with pytest.raises(KaynError):
                    function(**{**required, name: value})
                refused += 1
    assert refused or not hints


def slope(x, y=None):
    s = numpyro.sample("s", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(s * x, 1.0), obs=y)


X, Y = np.array([1.0, 2.0, 0.5]), np.array([0.3, 0.1, 0.2])


@pytest.mark.parametrize(
    "y", [[0.1, 0.2, 0.3], Y.astype(object), Y.astype(str), np.ma.array(Y, mask=[0, 1, 0]), Y[:, None], Y + 0j, Y[:0]]
)
def test_data_that_are_no_numbers_are_refused(y):
    with pytest.raises(DataError, match="'y'"):
        kayn.analyze(slope, X, y)


def test_missing_covariates_and_data_are_named():
    with pytest.raises(DataError, match=r"argument .x..*at 1,"):
        kayn.analyze(slope, np.array([1.0, np.nan, 0.5]), Y)
    with pytest.raises(DataError, match="argument 'x' is an array of texts"):
        kayn.analyze(slope, X.astype(str), Y)
    with pytest.warns(DataWarning, match="argument 'y' is None"):
        kayn.analyze(slope, X)


def test_numbers_that_no_memory_holds_are_refused():
    with pytest.raises(KaynError, match="would take"):
        kayn.Importance(
            slope, lambda x, y: numpyro.sample("s", dist.Normal(0.0, 1.0)), 5, num_replicates=2**31 - 1
        ).run(0, None, X, jnp.asarray(Y))
