"""Arguments: bad values of every public function, generated from its annotations,
end in a KaynError that names the argument."""

import inspect
from contextlib import ExitStack

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

import kayn
from kayn import datasets, meters
from kayn.errors import DataError, DataWarning, KaynError
from kayn.support.validate import Unfit, fit, hints_of

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


# -- shapes of data: nothing is counted more often than a plate says

ROWS = 4
COVARIATE, OUTCOME = jnp.linspace(-1.0, 1.0, ROWS), jnp.array([0.3, 0.1, -0.4, 0.7])


def observed(law, data, plates=(), mask=None):
    """A model of one latent and one site of data under plates, each (size, dim)."""

    def model():
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        fn = law(b) if mask is None else law(b).mask(mask)
        with ExitStack() as stack:
            for i, (size, dim) in enumerate(plates):
                stack.enter_context(numpyro.plate(f"p{i}", size, dim=dim))
            numpyro.sample("y", fn, obs=data)

    return model


def column(b):
    return dist.Normal(b * COVARIATE[:, None], 1.0)


def row(b):
    return dist.Normal(b * COVARIATE, 1.0)


def vectors(b):
    return dist.MultivariateNormal(b * COVARIATE, jnp.eye(ROWS)).expand([5, 3])


COUNTED_TOO_OFTEN = {
    "a column of means under a plate": observed(column, OUTCOME, [(ROWS, -1)]),
    "a column of means": observed(column, OUTCOME),
    "a column of means as one event": observed(lambda b: column(b).to_event(2), OUTCOME),
    "a square of means": observed(lambda b: dist.Poisson(jnp.exp(b) * jnp.ones((ROWS, ROWS))), jnp.arange(ROWS)),
    "a column of a mask": observed(row, OUTCOME, [(ROWS, -1)], jnp.ones((ROWS, 1), bool)),
    "rows of vectors": observed(vectors, jnp.zeros((3, ROWS))),
    "a column of data": observed(row, OUTCOME[:, None], [(ROWS, -1)]),
}
COUNTED_AS_SAID = {
    "one value for all rows": observed(row, 0.3),
    "one value of one row": observed(row, jnp.ones(1), [(ROWS, -1)]),
    "rows once for every element of a plate": observed(row, OUTCOME, [(3, -2), (ROWS, -1)]),
    "a column once for every element of a plate": observed(
        lambda b: dist.Normal(b, 1.0), jnp.ones((3, 1)), [(3, -2), (ROWS, -1)]
    ),
    "an event once for every element of a plate": observed(lambda b: row(b).to_event(1), OUTCOME, [(3, -1)]),
    "one vector for all": observed(vectors, jnp.zeros(ROWS)),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED_TOO_OFTEN)
def test_data_are_not_counted_along_a_dimension_that_is_no_plate(case):
    with pytest.raises(DataError, match=r"'y' has shape \(.*but its distribution has shape \("):
        kayn.Importance(COUNTED_TOO_OFTEN[case], None, 5).run(0, None)


@pytest.mark.parametrize("case", COUNTED_AS_SAID)
def test_data_are_counted_as_plates_say(case):
    assert np.isfinite(kayn.Importance(COUNTED_AS_SAID[case], None, 5).run(0, None).log_evidence)


def needs(x, *, y=None):
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def test_a_scan_under_a_plate_is_named():
    def model():
        with numpyro.plate("series", 2):
            scan(lambda z, _: (numpyro.sample("z", dist.Normal(z, 1.0)), None), jnp.zeros(2), None, length=3)

    with pytest.raises(kayn.errors.ModelError, match="plate"):
        kayn.Importance(model, None, 5).run(0, None)


@pytest.mark.parametrize(
    "data", [None, [1.0, 2.0], [OUTCOME, OUTCOME], "y", (OUTCOME, None), np.ma.masked_invalid([1.0, np.nan])]
)
def test_data_of_a_training_that_are_no_arrays(data):
    """A list of two arrays would be two rows of one array, and a masked array would lose its mask."""
    phase = kayn.Phase(kayn.VI(2, "local"), optax.sgd(0.01))
    for name, rest in (("data", {"data": data}), ("held_out", {"data": OUTCOME, "held_out": data})):
        if data is None and name == "held_out":
            continue
        with pytest.raises(DataError, match=name):
            kayn.train(needs, needs, phase, **rest, batch_size=1, num_steps=1, progress=False)
