"""Formulas: the source that is shown, its density by hand, names, new rows, and what is refused."""

import re
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from scipy import stats

import kayn
from kayn.errors import DataError, DataWarning, KaynError, ModelError

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
ROWS = 40
TABLE = pd.DataFrame(
    {
        "score": RNG.normal(50, 10, ROWS),
        "hours": RNG.uniform(2, 8, ROWS),
        "girl": RNG.random(ROWS) > 0.5,
        "school": np.repeat(["S1", "S2", "S3", "S4"], 10),
        "klass": np.tile(["a", "b"], 20),
        "solved": RNG.integers(0, 5, ROWS),
        "tasks": np.full(ROWS, 6),
        "share": RNG.uniform(0.1, 0.9, ROWS),
        "grade": pd.Categorical(np.tile(["low", "middle", "high", "low"], 10), ["low", "middle", "high"], ordered=True),
    }
)


def pasted(formula):
    """The program that the printed text is."""
    names = {}
    exec(str(formula), names)  # noqa: S102 (this is what is tested)
    return names["model"]


def drawn(formula):
    """Values of all latents, and of deterministic sites."""
    found = kayn.prior_predictive(formula, num_samples=1, rng_key=3)
    return {n: np.asarray(v[0]) for n, v in found.items()}


def test_the_density_of_correlated_and_nested_groups_is_that_by_hand():
    text = "score ~ hours * girl + (1 + hours | school) + (1 | school:klass)"
    formula = kayn.formula(text, TABLE, priors={"hours": "Normal(0, 1)"})
    v = drawn(formula)
    latents = {n: x for n, x in v.items() if n in formula.priors or n in ("1 + hours|school", "1|school:klass")}
    mine, _ = log_density(pasted(formula), formula.args, {}, latents)

    hours, girl, school = TABLE.hours.to_numpy(), TABLE.girl.to_numpy().astype(float), formula.args[3]
    x = np.stack([hours, girl, hours * girl])
    b = np.stack([v["hours"], v["girl"], v["hours:girl"]])
    u, w = v["1 + hours|school"], v["1|school:klass"]
    nested = np.unique(list(zip(TABLE.school, TABLE.klass, strict=True)), axis=0, return_inverse=True)[1]
    eta = v["Intercept_at_means"] + b @ (x - x.mean(1, keepdims=True)) + u[school, 0] + u[school, 1] * hours + w[nested]
    unit, scales = TABLE.score.std(ddof=0), np.array([v["sd(1|school)"], v["sd(hours|school)"]])
    cholesky = v["cholesky(1 + hours|school)"]
    covariance = scales[:, None] * (cholesky @ cholesky.T) * scales
    # LKJ of two with concentration 2: density of the correlation r is 3/4 (1 - r^2); of the Cholesky factor, whose
    # free entry is r itself, the same
    total = np.log(0.75 * (1 - cholesky[1, 0] ** 2))
    total += stats.norm.logpdf(v["Intercept_at_means"], TABLE.score.mean(), 2.5 * unit)
    total += stats.norm.logpdf(v["hours"], 0, 1)
    total += stats.norm.logpdf(b[1:], 0, 2.5 * unit / x[1:].std(1)).sum()
    total += stats.halfnorm.logpdf(scales, scale=2.5 * unit / np.array([1.0, hours.std()])).sum()
    total += stats.halfnorm.logpdf(v["sd(1|school:klass)"], scale=2.5 * unit) + stats.halfnorm.logpdf(
        v["sigma"], scale=unit
    )
    total += stats.multivariate_normal.logpdf(u, np.zeros(2), covariance).sum()
    total += stats.norm.logpdf(w, 0, v["sd(1|school:klass)"]).sum()
    total += stats.norm.logpdf(TABLE.score, eta, v["sigma"]).sum()
    # priors are shown with three digits
    assert mine == pytest.approx(total, rel=3e-3)
    assert v["Intercept"] == pytest.approx(v["Intercept_at_means"] - b @ x.mean(1), rel=1e-4)
    assert v["cor(1, hours|school)"] == pytest.approx((cholesky @ cholesky.T)[0, 1], abs=1e-5)
    np.testing.assert_allclose(v["hours|school"], u[:, 1], rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ordered(y, eta, v):
    # at the means of predictors, as eta is
    below = np.array([0, *sigmoid(v["cutpoints_at_means"][:, None] - eta).T.T.tolist(), 1], dtype=object)
    below = np.stack([np.broadcast_to(np.asarray(p, float), eta.shape) for p in below])
    return np.log(np.diff(below, axis=0)[y, np.arange(len(y))])


def zero_inflated(y, eta, v):
    poisson = stats.poisson.pmf(y, np.exp(eta))
    return np.log(v["gate"] * (y == 0) + (1 - v["gate"]) * poisson)


FAMILIES = {
    "gaussian": ("score", lambda y, eta, v: stats.norm.logpdf(y, eta, v["sigma"])),
    "student": ("score", lambda y, eta, v: stats.t.logpdf(y, v["nu"], eta, v["sigma"])),
    "bernoulli": ("girl", lambda y, eta, v: stats.bernoulli.logpmf(y, sigmoid(eta))),
    "binomial": ("p(solved, tasks)", lambda y, eta, v: stats.binom.logpmf(y, 6, sigmoid(eta))),
    "poisson": ("solved", lambda y, eta, v: stats.poisson.logpmf(y, np.exp(eta))),
    "negative_binomial": (
        "solved",
        lambda y, eta, v: stats.nbinom.logpmf(y, v["alpha"], v["alpha"] / (v["alpha"] + np.exp(eta))),
    ),
    "gamma": ("score", lambda y, eta, v: stats.gamma.logpdf(y, v["shape"], scale=np.exp(eta) / v["shape"])),
    "beta": (
        "share",
        lambda y, eta, v: stats.beta.logpdf(y, v["precision"] * sigmoid(eta), v["precision"] * sigmoid(-eta)),
    ),
    "ordinal": ("grade", ordered),
    "zero-inflated poisson": ("solved", zero_inflated),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihood_of_a_family_is_that_by_hand(family):
    outcome, density = FAMILIES[family]
    formula = kayn.formula(f"{outcome} ~ hours", TABLE, family=family)
    v = drawn(formula)
    v["hours"] = v["hours"] * np.float32(0.1)
    level = "cutpoints_at_means" if family == "ordinal" else "Intercept_at_means"
    eta = v["hours"] * (TABLE.hours.to_numpy() - TABLE.hours.mean()) + (0 if family == "ordinal" else v[level])
    y = formula.args[-1]
    latents = {n: v[n] for n in formula.priors}
    model = pasted(formula)
    with_data, _ = log_density(model, formula.args, {}, latents)
    prior, _ = log_density(model, (*formula.args[:-1], None), {}, {**latents, outcome: y})
    assert with_data == pytest.approx(float(prior), rel=1e-6)
    scored = kayn_scores(model, formula.args, latents)
    np.testing.assert_allclose(scored, density(np.asarray(y), eta, v), rtol=2e-4, atol=2e-4)


def kayn_scores(model, args, latents):
    """Log density of every row, under given values of the latents."""
    from numpyro import handlers

    seeded = handlers.substitute(handlers.seed(model, jax.random.key(0)), latents)
    trace = handlers.trace(seeded).get_trace(*args)
    (site,) = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
    return np.asarray(site["fn"].log_prob(site["value"]))


def test_one_fit_answers_in_the_words_of_the_formula():
    """Balanced groups: the estimate of the slope is that of least squares, whatever the variances are."""
    rng = np.random.default_rng(1)
    groups, each = 8, 5
    x = np.tile(np.arange(each), groups)
    y = 3 + 0.5 * x + np.repeat(rng.normal(0, 1, groups), each) + rng.normal(0, 0.5, groups * each)
    table = pd.DataFrame({"y": y, "x": x, "g": np.repeat([f"G{i}" for i in range(groups)], each)})
    formula = kayn.formula("y ~ x + (1 | g)", table)
    posterior = kayn.fit(formula, progress=False).posterior()
    slope, intercept = np.polyfit(x, y, 1)
    # exact but for the prior, which is 40 times as wide, and for the error of particles: 0.05 sd
    assert posterior.mean("x") == pytest.approx(slope, abs=0.15 * float(posterior.std("x")))
    assert posterior.mean("Intercept") == pytest.approx(intercept, abs=0.15 * float(posterior.std("Intercept")))
    within = y - np.repeat(y.reshape(groups, each).mean(1), each)
    residual = within - slope * (x - x.mean())
    exact = np.sqrt((residual**2).sum() / (groups * (each - 1) - 1) / ((x - x.mean()) ** 2).sum())
    assert posterior.std("x") == pytest.approx(exact, rel=0.15)
    rows = [row.name for row in posterior.summary().rows]
    assert rows[:5] == ["Intercept", "x", "sd(1|g)", "sigma", "1|g[G0]"]
    new = formula.rows(pd.DataFrame({"x": [0, 1, 2], "g": ["G7", "new", "G0"]}))
    drawn = np.asarray(posterior.predictive(0, 2000, *new)["y"])
    known, fresh = drawn[:, 0].std(), drawn[:, 1].std()
    assert fresh > 1.3 * known
    level = y.reshape(groups, each).mean(1) - slope * x.mean()
    assert drawn[:, 0].mean() == pytest.approx(level[7], abs=0.3)
    assert drawn[:, 2].mean() == pytest.approx(level[0] + 2 * slope, abs=0.3)


def test_new_rows_are_read_as_the_first_ones_were():
    formula = kayn.formula("score ~ scale(hours) + klass + bs(hours, df=4) + (1 | school/klass)", TABLE)
    again = formula.rows(TABLE)
    for one, other in zip(formula.args, again, strict=True):
        np.testing.assert_allclose(one, other)
    part = formula.rows(TABLE.iloc[[30, 3]].drop(columns="score").assign(school=["S4", "S9"]))
    np.testing.assert_allclose(part[0], formula.args[0][[30, 3]])
    assert part[3].tolist() == [3, 4]
    assert part[4] == 5
    assert part[-1] is None


def test_groups_whose_labels_read_alike_stay_apart():
    table = TABLE.assign(left=["a:b", "a"] * 20, right=["c", "b:c"] * 20)
    f = kayn.formula("score ~ (1 | left:right)", table)
    index, number = f.args[:2]
    assert number == 2
    np.testing.assert_array_equal(index, index[0] + (1 - 2 * index[0]) * np.tile([0, 1], 20))
    assert list(f.labels["left:right"]) == ["a:b:c", "a:b:c"]
    new = f.rows(table.assign(left=["a:b", "z"] * 20, right=["c", "b:c"] * 20))
    assert new[1] == 3 and set(new[0]) == {index[0], 2}


def test_brackets_are_correlated_and_bars_are_not():
    one = kayn.formula("score ~ 1 + (1 + hours | school)", TABLE)
    apart = [
        kayn.formula(f"score ~ 1 + {text}", TABLE)
        for text in ("(1 | school) + (0 + hours | school)", "(1 + hours || school)", "(hours || school)")
    ]
    assert "cholesky(1 + hours|school)" in one.priors
    assert all("cholesky" not in f.source and f.names == apart[0].names for f in apart)
    assert str(one).count("numpyro.plate") == 2


def test_tables_of_all_libraries_are_the_same():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = TABLE[["score", "hours", "school"]]
    text = "score ~ log(hours) + (1 | school)"
    first = kayn.formula(text, columns)
    tables = [polars.from_pandas(columns), pyarrow.Table.from_pandas(columns), {n: columns[n] for n in columns}]
    for table in tables:
        other = kayn.formula(text, table)
        assert other.source == first.source
        for one, same in zip(first.args, other.args, strict=True):
            np.testing.assert_array_equal(one, same)


def test_rows_with_gaps_are_left_out_and_told():
    table = TABLE.assign(hours=TABLE.hours.where(TABLE.index != 4), score=TABLE.score.where(TABLE.index != 7))
    with pytest.warns(DataWarning, match=r"2 of 40 rows are left out, at 4, 7.*'score' in 1, 'hours' in 1"):
        formula = kayn.formula("score ~ hours", table)
    assert len(formula.args[-1]) == 38


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("score ~ hoours", {}, DataError, "no column 'hoours'; it has 'score'"),
        ("scores ~ hours", {}, DataError, "no column 'scores'"),
        ("score ~ hours + (1 | skool)", {}, DataError, "no column 'skool'"),
        ("score hours", {}, ModelError, "one ~"),
        ("score ~ hours + (1 |", {}, ModelError, "without its other half"),
        ("score ~ hours +", {}, ModelError, "'hours \\+ ' cannot be read"),
        ("score ~ hours, girl", {}, ModelError, "comma"),
        ("score ~ 1 | school", {}, ModelError, "in brackets"),
        ("score ~ (hours | school):girl", {}, ModelError, "in brackets of its own"),
        ("score ~ wiggle(hours)", {}, ModelError, "'wiggle' is neither a column nor a known function"),
        ("score ~ hours", {"family": "normall"}, ModelError, "family 'normall' is none of 'gaussian'"),
        ("score ~ hours", {"family": "poisson"}, DataError, "outcome 'score' is .* counts: whole numbers"),
        ("solved ~ hours", {"family": "bernoulli"}, DataError, "are 0 or 1"),
        ("girl ~ hours", {"family": "beta"}, DataError, "between 0 and 1"),
        ("solved ~ hours", {"family": "gamma"}, DataError, "positive"),
        ("solved ~ hours", {"family": "binomial"}, DataError, r"p\(successes, trials\)"),
        ("grade ~ hours", {}, DataError, "categories 'low', 'middle', 'high'"),
        ("score ~ (1 | school) + (1 + hours | school)", {}, ModelError, r"'sd\(1\|school\)' twice"),
        ("score ~ Intercept", {}, ModelError, "no predictor can be called 'Intercept'"),
        ("score ~ hours + place", {}, DataError, "'place' has one value in all rows"),
        ("score ~ day", {}, DataError, "column 'day' has dates or times"),
        ("score ~ hours", {"priors": {"minutes": "Normal(0, 1)"}}, ModelError, "'minutes'; this formula has priors of"),
        ("score ~ hours", {"priors": {"hours": "Normal(0, __import__('os'))"}}, ModelError, "must be a distribution"),
        ("score ~ hours", {"priors": {"hours": "print(1)"}}, ModelError, "must be a distribution"),
        ("score ~ hours", {"priors": {"hours": 3}}, ModelError, "pass a distribution"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(text, options, error, message):
    table = TABLE.assign(Intercept=TABLE.hours, place="here", day=pd.Timestamp("2020-01-01"))
    with pytest.raises(KaynError, match=message) as caught:
        kayn.formula(text, table, **options)
    assert isinstance(caught.value, error)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "outcome"), [("gaussian", "score"), ("poisson", "solved"), ("ordinal", "grade")])
def test_missing_outcomes_are_kept_where_they_are_to_be_drawn(family, outcome):
    table = TABLE.copy()
    table[outcome] = table[outcome].where(table.index != 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = kayn.formula(f"{outcome} ~ hours", table, family, missing="impute")
    assert kept.missing == "impute"
    assert np.flatnonzero(np.isnan(kept.args[-1])).tolist() == [2]
    with pytest.warns(kayn.DataWarning, match="1 of .* rows are left out, at 2"):
        dropped = kayn.formula(f"{outcome} ~ hours", table, family)
    assert np.array_equal(np.delete(kept.args[-1], 2), dropped.args[-1])
    with pytest.raises(DataError, match=f"missing of column '{outcome}' at 2; fill them"):
        kayn.formula(f"{outcome} ~ hours", table, family, missing="error")
    with pytest.warns(kayn.DataWarning, match=r"'hours' in 1"):  # what predicts is not drawn
        without = kayn.formula(
            f"{outcome} ~ hours", table.assign(hours=table.hours.where(table.index != 4)), family, missing="impute"
        )
    assert len(without.args[-1]) == len(table) - 1


def test_the_library_that_is_missing_is_named(monkeypatch):
    for name in ("formulae", "formulae.model_description"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KaynError, match=re.escape("pip install 'kayn[formula]'")):
        kayn.formula("score ~ hours", TABLE)


def test_priors_are_distributions_or_their_text():
    import numpyro.distributions as dist

    texts = [
        kayn.formula("score ~ hours", TABLE, priors={"hours": prior}).priors["hours"]
        for prior in ("Normal(0, 2)", "dist.Normal(0, scale=2)", dist.Normal(0.0, 2.0))
    ]
    assert [re.sub(r"loc=|scale=", "", t) for t in texts] == ["dist.Normal(0.0, 2.0)"] * 3


def test_names_that_are_no_identifiers_or_are_taken_are_quoted():
    table = TABLE.rename(columns={"hours": "for", "school": "eta", "klass": "model"})
    formula = kayn.formula("share ~ `for` + model + (1 | eta)", table, family="beta")
    assert {"for", "model[b]", "1|eta"} <= {*formula.names}
    kayn.prior_predictive(formula, num_samples=2)


def test_columns_called_like_parameters_keep_their_names():
    table = TABLE.rename(columns={"hours": "sigma", "score": "rows"}).assign(nu=TABLE.hours.astype(object))
    formula = kayn.formula("rows ~ sigma + nu + (1 | school)", table, "student", priors={"sigma": "Normal(0, 1)"})
    assert formula.names[:-1] == ("Intercept", "sigma", "nu", "sd(1|school)", "sigma_2", "nu_2")
    assert formula.priors["sigma"] == "dist.Normal(0.0, 1.0)" and "HalfNormal" in formula.priors["sigma_2"]
    v = drawn(formula)
    mine, _ = log_density(pasted(formula), formula.args, {}, {n: v[n] for n in (*formula.priors, "1|school")})
    other = TABLE.assign(x=TABLE.hours)
    plain = kayn.formula("score ~ hours + x + (1 | school)", other, "student", priors={"hours": "Normal(0, 1)"})
    names = {"hours": "sigma", "x": "nu", "sigma": "sigma_2", "nu": "nu_2"}
    values = {n: v[names.get(n, n)] for n in (*plain.priors, "1|school")}
    right, _ = log_density(pasted(plain), plain.args, {}, values)
    np.testing.assert_allclose(mine, right, rtol=1e-6)


def test_the_guide_runs():
    text = (ROOT / "docs" / "guides" / "formulas.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    code = code.replace("kayn.fit(f).posterior()", "kayn.fit(f, num_steps=2).posterior(escalate=False)")
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two steps are a poor fit
        exec(code, names)  # noqa: S102 (our own documentation)
    assert names["drawn"].shape == (1000, 2)


@pytest.mark.parametrize(
    ("text", "columns", "options", "message"),
    [
        ("y ~ x", {"x": np.arange(6) + 10**17}, {}, "column 'x' lies at 1e\\+17 and varies by"),
        ("y ~ x", {"x": 1.6e9 + np.arange(6.0)}, {}, "subtract what all have in common"),
        ("y ~ x", {"x": np.ones(6) * 1j}, {}, "column 'x' has complex numbers"),
        ("y ~ x", {"x": pd.Series(["a", 1.0] * 3, dtype=object)}, {}, "values of type float, str, e.g. 1.0 in row 1"),
        ("y ~ x", {"x": [b"a"] * 6}, {}, "column 'x' has values of type bytes"),
        ("y ~ 1", {"y": np.full(6, 2**31)}, {"family": "poisson"}, "counts: whole numbers, 0 or more, up to"),
        ("y ~ 1", {"y": pd.Categorical(["a"] * 6)}, {"family": "ordinal"}, "'a' in all rows"),
        ("y ~ 1", {}, {"priors": {"sigma": "Normal(0, 1)"}}, "'sigma' is from 0 to inf"),
        ("y ~ np.load('x')", {}, {}, "cannot be read"),
        ("y ~ os", {}, {}, "no column 'os'"),
    ],
)
def test_nothing_is_guessed_or_rounded_away(text, columns, options, message):
    table = pd.DataFrame({"y": np.arange(6) % 3, **columns})
    with pytest.raises(KaynError, match=message):
        kayn.formula(text, table, **options)


def test_the_order_of_texts_is_told():
    with pytest.warns(DataWarning, match="order of the alphabet, 'high' < 'low' < 'mid'"):
        kayn.formula("y ~ 1", {"y": ["low", "mid", "high"] * 2}, family="ordinal")


def test_columns_of_one_name_and_new_rows_of_another_kind_are_refused():
    table = pd.DataFrame({"y": np.arange(6.0), "x": np.arange(6.0)})
    with pytest.raises(DataError, match="several columns that are called 'x'"):
        kayn.formula("y ~ x", pd.concat([table, table[["x"]]], axis=1))
    with pytest.raises(DataError, match="column 'x' had numbers, but has 'a' now"):
        kayn.formula("y ~ x", table).rows({"x": ["a"]})


@pytest.mark.parametrize("prior", ["HalfCauchy(1)", "Exponential(1)", "Uniform(0, 10)", "TruncatedNormal(1, 2, low=0)"])
def test_priors_within_what_a_site_can_be_are_taken(prior):
    f = kayn.formula("y ~ 1", {"y": np.arange(6.0)}, priors={"sigma": prior})
    assert prior.split("(")[0] in f.priors["sigma"]
