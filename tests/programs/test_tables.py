"""Columns and tables of other libraries as arguments: what a model sees, what results are called, what is refused."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal

import kayn
from kayn import DataError, QueryError
from kayn.programs.tables import Labels, as_arguments
from kayn.support.packing import pack, unpack
from kayn.support.tables import Table

pandas = pytest.importorskip("pandas")
pytest.importorskip("narwhals")
pytestmark = pytest.mark.filterwarnings("ignore::kayn.errors.KaynWarning")

SCHOOL = ["S07", "S01", "S07", "S12", "S01"]
CODES = [1, 0, 1, 2, 0]
SCORE = [1.0, 0.5, 2.0, -1.0, 0.0]


def given(x, y=None):
    """A program of two arguments, for their names."""


def converted(value):
    (found,), _, labels = as_arguments(given, (value,), {})
    return found, {n: v.tolist() for n, v in labels.categories.items()}


def pandas_of(values):
    return pandas.Series(values, index=range(10, 10 + len(values)))


def columns(kind):
    if kind == "pandas":
        return pandas_of
    library = pytest.importorskip(kind)
    return library.Series if kind == "polars" else lambda values: library.chunked_array([values])


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_columns_become_arrays(kind):
    column = columns(kind)
    for values, expected in ([1, 2, 3], [1, 2, 3]), ([0.5, None], [0.5, np.nan]), ([True, False], [True, False]):
        found, labels = converted(column(values))
        assert type(found) is np.ndarray and not labels
        assert_array_equal(found, expected)
    found, labels = converted(column(SCHOOL))
    assert_array_equal(found, CODES)
    assert found.dtype == np.int32
    assert labels == {"x": ["S01", "S07", "S12"]}


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_missing_categories_are_named(kind):
    with pytest.raises(DataError, match=r"argument 'x' has 2 missing categories of 4, at 1, 3\. Drop these rows"):
        converted(columns(kind)(["a", None, "b", None]))


def test_categories_keep_their_order():
    kind = pandas.CategoricalDtype(["S12", "none", "S07", "S01"])
    for value in (pandas.Series(SCHOOL, dtype=kind), pandas.Categorical(SCHOOL, dtype=kind)):
        found, labels = converted(value)
        assert_array_equal(found, [2, 3, 2, 0, 3])
        assert labels == {"x": ["S12", "none", "S07", "S01"]}
    numbers = pandas.Series([30, 10, 30]).astype("category")
    assert_array_equal(converted(numbers)[0], [1, 0, 1])
    assert_array_equal(
        converted(pandas.Series(["lo", "hi"]).astype(pandas.CategoricalDtype(["lo", "hi"], True)))[0], [0, 1]
    )


def test_what_is_an_array_already_is_left_alone():
    for value in (np.arange(3), 3, None, "text", ["a", "b"], np.array(["a", "b"]), {"x": (np.ones(2), 1)}):
        found, labels = converted(value)
        assert not labels
        assert found is value or repr(found) == repr(value)
    array = np.arange(2)
    assert converted(array)[0] is array
    assert type(converted(np.ma.array([1.0, 2.0]))[0]) is np.ndarray
    hidden = np.ma.array([1.0, 2.0], mask=[True, False])
    assert converted(hidden)[0] is hidden


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_tables_have_columns_and_rows(kind):
    library = pytest.importorskip(kind)
    make = library.table if kind == "pyarrow" else library.DataFrame
    found, labels = converted(make({"school": SCHOOL, "score": SCORE, "note": ["a", None, None, None, "b"]}))
    assert isinstance(found, Table)
    assert (len(found), found.columns) == (5, ["school", "score"])
    assert_array_equal(found["school"], CODES)
    assert_array_equal(found.score, SCORE)
    assert labels == {"x['school']": ["S01", "S07", "S12"]}
    with pytest.raises(DataError, match=r"argument \"x\['note'\]\" has 3 missing categories"):
        found["note"]
    with pytest.raises(DataError, match="no column 'hours'; it has 'school', 'score', 'note'"):
        found["hours"]
    assert not hasattr(found, "hours")
    arrays = {}
    again = unpack(pack("x", found, arrays), arrays)
    assert (type(again), len(again), again.refused) == (Table, 5, found.refused)


def test_arrays_of_xarray_tell_their_labels():
    import xarray

    array = xarray.DataArray([[1.0, 2.0]], dims=("year", "site"), coords={"site": ["north", "south"]})
    (found,), _, labels = as_arguments(given, (array,), {})
    assert_array_equal(found, [[1.0, 2.0]])
    assert {n: v.tolist() for n, v in labels.dims.items()} == {"site": ["north", "south"]}
    (found,), _, _ = as_arguments(given, (array.to_dataset(name="y"),), {})
    assert_array_equal(found["y"], [[1.0, 2.0]])


def test_unseen_categories_come_after_the_known_ones():
    known = Labels({"x": np.array(["S07", "S01"])})
    (found,), _, labels = as_arguments(given, (pandas_of(["S99", "S01", "S03", "S07"]),), {}, known)
    assert_array_equal(found, [3, 1, 2, 0])
    assert labels.categories["x"].tolist() == ["S07", "S01", "S03", "S99"]


# -- in a model


def model(school, schools, score=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("schools", schools):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("pupils", len(school)):
        numpyro.sample("score", dist.Normal(a[school], 1), obs=score)


def of_table(table, schools):
    model(table["school"], schools, table["score"])


@pytest.fixture(scope="module")
def posterior():
    school, score = pandas_of(SCHOOL), pandas_of(SCORE)
    return kayn.fit(model, (school, 3, score), num_particles=4, num_steps=8, progress=False).posterior(None, 2)


def test_answers_are_those_of_arrays_and_have_labels(posterior):
    plain = kayn.fit(
        model, (np.array(CODES, np.int32), 3, np.array(SCORE)), num_particles=4, num_steps=8, progress=False
    )
    assert_array_equal(plain.posterior(None, 2).mean("a"), posterior.mean("a"))
    assert [r.name for r in posterior.summary().rows] == ["mu", "a[S01]", "a[S07]", "a[S12]"]
    assert posterior.to_datatree(num_samples=5)["posterior"].coords["schools"].values.tolist() == ["S01", "S07", "S12"]
    own = posterior.to_datatree(num_samples=5, coords={"schools": [1, 7, 12]})
    assert own["posterior"].coords["schools"].values.tolist() == [1, 7, 12]


def test_labels_are_kept_in_files(posterior, tmp_path):
    posterior.save(tmp_path / "p")
    assert [r.name for r in kayn.load(tmp_path / "p", model).summary().rows][1:] == ["a[S01]", "a[S07]", "a[S12]"]


def test_predictions_read_new_columns_by_the_same_categories(posterior):
    found = posterior.predictive(0, 50, pandas_of(["S12", "S07"]), 3)
    expected = posterior.predictive(0, 50, np.array([2, 1], np.int32), 3)
    assert_array_equal(found["score"], expected["score"])
    grown = posterior.predictive(0, 50, pandas_of(["S02", "S07"]), 4)
    assert_array_equal(grown["a"][:, :3], found["a"])


def test_a_table_is_one_argument():
    table = pandas.DataFrame({"school": SCHOOL, "score": SCORE})
    found = kayn.Importance(of_table, None, 4).run(0, None, table, 3)
    assert [r.name for r in found.summary().rows][1:] == ["a[S01]", "a[S07]", "a[S12]"]
    assert kayn.analyze(of_table, table, 3).links[0].target == "schools"


def test_labels_of_plates_may_be_given():
    def fitted(**coords):
        arguments = (np.array(CODES, np.int32), 3, np.array(SCORE))
        return kayn.fit(model, arguments, num_particles=2, num_steps=1, progress=False, coords=coords).posterior(
            None, 1
        )

    assert [r.name for r in fitted(schools=["x", "y", "z"]).summary().rows][1:] == ["a[x]", "a[y]", "a[z]"]
    with pytest.raises(QueryError, match=r"'school', which is no plate; plates: .*'schools'"):
        fitted(school=["x", "y", "z"]).summary()
    with pytest.raises(QueryError, match=r"labels of shape \(2,\) for 'schools', which has 3 elements"):
        fitted(schools=["x", "y"]).summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CODES[:4], 3, SCORE), r"has shape \(5,\), but its distribution has shape \(4,\)"),
        (([0, 1, 2, 3, 0], 3, SCORE), r"argument 'school': latent 'a' has 3 elements .* \(1 of 5 rows, at 3\)"),
        (([0, 1, -1, 2, 0], 3, SCORE), "argument 'school' reads latent 'a' at index -1 .* at 2"),
    ],
)
def test_rows_that_do_not_fit_are_named(arguments, message):
    arrays = (np.array(arguments[0]), arguments[1], np.array(arguments[2]))
    with pytest.raises(DataError, match=message):
        kayn.analyze(model, *arrays)


def test_columns_of_different_length_are_named():
    def two(x, z, y):
        b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(b * x + z, 1), obs=y)

    with pytest.raises(DataError, match=r"different numbers of rows: 3 \('x', 'y'\), 2 \('z'\)"):
        kayn.analyze(two, np.ones(3), np.ones(2), np.ones(3))
