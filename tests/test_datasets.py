"""Data sets: built-in ones, conversion of published files (small synthetic archives), lookup, download errors,
real files."""

import hashlib
import io
import json
import os
import re
import urllib.error
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from kayn import datasets
from kayn.datasets import DATASETS, DatasetError

DATA = os.environ.get("KAYN_DATA")
FETCHABLE = tuple(name for name, dataset in DATASETS.items() if dataset.source is not None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no KAYN_DATA, and no network."""
    monkeypatch.delenv("KAYN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(datasets, "_read_url", refuse)
    return tmp_path / "kayn"


def serve(monkeypatch, name, content, **changes):
    """Let `name`'s origin serve `content`; the checksums are those of the content unless changed."""
    source = DATASETS[name].source
    right = {
        "checksum": datasets.checksum(source.convert(content)),
        "md5": hashlib.md5(content).hexdigest() if source.md5 else None,
    }
    changed = replace(DATASETS[name], source=replace(source, **(right | changes)))
    monkeypatch.setattr(datasets, "DATASETS", {**DATASETS, name: changed})
    requests = []

    def read(url):
        requests.append(url)
        return content

    monkeypatch.setattr(datasets, "_read_url", read)
    return requests


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# -- the published forms of the data, written from converted arrays


def lines(*columns, separator="|"):
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    return "".join(separator.join(str(cell) for cell in row) + "\n" for row in rows)


def publish_radon_homes(arrays):
    content = {
        "J": int(arrays["county"].max()) + 1,
        "N": arrays["county"].size,
        "county_idx": (arrays["county"].astype(int) + 1).tolist(),
        "floor_measure": arrays["floor"].tolist(),
        "log_radon": [float(str(value)) for value in arrays["log_radon"]],
        "log_uppm": [float(str(value)) for value in arrays["log_uppm"]],
    }
    return zipped({"radon_all.json": json.dumps(content)})


def publish_election88(arrays):
    content = {"N": arrays["y"].size, "n_state": 51}
    content |= {
        key: (arrays[key].astype(int) + 1).tolist() for key in ("age", "age_edu", "edu", "region_full", "state")
    }
    content |= {key: arrays[key].tolist() for key in ("black", "female", "y")}
    content["v_prev_full"] = [float(str(value)) for value in arrays["v_prev_full"]]
    return zipped({"election88.json": json.dumps(content)})


def publish_chimpanzees(arrays):
    names = ("actor", "recipient", "condition", "block", "trial", "prosoc_left", "chose_prosoc", "pulled_left")
    columns = [arrays[f"table_{name}"].astype(int).astype(str) for name in names]
    columns[1] = np.where(columns[1] == "-1", "NA", columns[1])
    header = ";".join(f'"{name}"' for name in names) + "\n"
    return (header + lines(*columns, separator=";")).encode()


def publish_movielens_100k(arrays):
    user, item = arrays["user"].astype(int) + 1, arrays["item"].astype(int) + 1
    ratings = (user, item, arrays["rating"], arrays["timestamp"])
    held_out = arrays["test"] == 1
    films = [
        "|".join([str(i + 1), "Café (1990)", f"01-Jan-{year}" if year else "", "", "url", *map(str, flags)])
        for i, (year, flags) in enumerate(zip(arrays["release_year"], arrays["genres"], strict=True))
    ]
    people = lines(
        np.arange(arrays["age"].size) + 1,
        arrays["age"],
        np.where(arrays["female"] == 1, "F", "M"),
        arrays["occupation_names"][arrays["occupation"]],
        np.full(arrays["age"].size, "T8H1N"),
    )
    names = arrays["genre_names"]
    return zipped(
        {
            "ml-100k/u.data": lines(*ratings, separator="\t"),
            "ml-100k/ua.test": lines(*(column[held_out] for column in ratings), separator="\t"),
            "ml-100k/u.item": "\n".join(films).encode("latin-1") + b"\n",
            "ml-100k/u.user": people,
            "ml-100k/u.occupation": "\n".join(arrays["occupation_names"].tolist()) + "\n",
            "ml-100k/u.genre": lines(names, np.arange(names.size)) + "\n",
            "ml-100k/README": "not read",
        }
    )


def publish_mnist_10k(arrays):
    buffer = io.BytesIO()
    np.savez(
        buffer, x_train=arrays["images"], x_test=arrays["images"], y_train=arrays["labels"], y_test=arrays["labels"]
    )
    return buffer.getvalue()


PUBLISH = {
    "radon_homes": publish_radon_homes,
    "election88": publish_election88,
    "chimpanzees": publish_chimpanzees,
    "movielens_100k": publish_movielens_100k,
    "mnist_10k": publish_mnist_10k,
}


def small(name):
    """Made-up arrays with the keys and types of a real set."""
    rng = np.random.default_rng(1)
    if name == "radon_homes":
        return {
            "county": np.array([0, 0, 1, 2], np.int16),
            "floor": np.array([0, 9, 1, 0], np.uint8),
            "log_radon": rng.normal(size=4).astype(np.float32),
            "log_uppm": rng.normal(size=4).astype(np.float32),
        }
    if name == "election88":
        groups = {key: np.array([0, 3, 1], np.uint8) for key in ("age", "age_edu", "edu", "region_full", "state")}
        indicators = {key: np.array([1, 0, 1], np.uint8) for key in ("black", "female", "y")}
        return {**groups, **indicators, "v_prev_full": np.array([0.5, 0.25, 0.51], np.float32)}
    if name == "mnist_10k":
        return {"images": rng.integers(0, 256, (3, 28, 28)).astype(np.uint8), "labels": np.array([7, 2, 1], np.uint8)}
    if name == "chimpanzees":
        columns = ("actor", "condition", "block", "trial", "prosoc_left", "chose_prosoc", "pulled_left")
        arrays = {f"table_{key}": rng.integers(0, 2, 504).astype(np.uint8) for key in columns}
        arrays["table_recipient"] = rng.integers(-1, 8, 504).astype(np.int8)
        for key in ("condition", "prosoc_left", "pulled_left"):
            cube = arrays[f"table_{key}"].reshape(7, 6, 12)
            arrays[f"{key}_train"], arrays[f"{key}_test"] = cube[..., :10], cube[..., 10:]
        return arrays
    return {
        "user": np.array([1, 0, 1, 0], np.int16),
        "item": np.array([2, 2, 0, 1], np.int16),
        "rating": np.array([5, 1, 3, 4], np.uint8),
        "timestamp": np.array([881250949, 891717742, 878887116, 880606923], np.int32),
        "test": np.array([0, 1, 1, 0], np.uint8),
        "genres": np.array([[0, 1, 0], [1, 0, 0], [0, 1, 1]], np.uint8),
        "release_year": np.array([1995, 0, 1922], np.int16),
        "age": np.array([24, 53], np.uint8),
        "female": np.array([0, 1], np.uint8),
        "occupation": np.array([1, 0], np.uint8),
        "occupation_names": np.array(["artist", "writer"]),
        "genre_names": np.array(["unknown", "Action", "Film-Noir"]),
    }


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


# -- built in


def test_eight_schools_is_the_published_table():
    data = datasets.eight_schools()
    np.testing.assert_array_equal(data["y"], [28, 8, -3, 7, -1, 1, 18, 12])
    np.testing.assert_array_equal(data["sigma"], [15, 10, 16, 11, 9, 11, 10, 18])


def test_simulated_radon_is_ragged_and_repeatable():
    first, again, other = datasets.simulate_radon(3), datasets.simulate_radon(3), datasets.simulate_radon(4)
    np.testing.assert_array_equal(first.log_radon, again.log_radon)
    assert first.log_radon.shape != other.log_radon.shape or (first.log_radon != other.log_radon).any()
    sizes = first.county_sizes
    assert sizes.shape == (85,)
    assert sizes.sum() == first.county.size
    assert sizes.min() >= 1
    assert sizes.max() <= 100
    assert sizes.max() > 10 * np.median(sizes[sizes <= np.median(sizes)])
    assert datasets.simulate_radon(0, num_groups=5).true_alpha.shape == (5,)


def test_simulated_radon_follows_its_own_numbers():
    """The residuals of a large draw: z-scores within 4 (false-alarm rate 1e-4 over both; the seed is fixed)."""
    data = datasets.simulate_radon(0, num_groups=2000)
    residual = data.log_radon - data.true_alpha[data.county] - data.true_beta * data.floor
    assert abs(residual.mean()) < 4 * data.true_sigma / np.sqrt(residual.size)
    assert abs(residual.std() - data.true_sigma) < 4 * data.true_sigma / np.sqrt(2 * residual.size)


def test_simulated_radon_needs_a_group():
    with pytest.raises(DatasetError, match="num_groups is 0; it must be a whole number, at least 1"):
        datasets.simulate_radon(num_groups=0)


# -- checksum


def test_checksum_ignores_integer_width_and_order_of_keys():
    arrays = {"a": np.array([1, 2], np.uint8), "b": np.array([0.5], np.float32)}
    wide = {"b": np.array([0.5], np.float64), "a": np.array([1, 2], ">i8")}
    assert datasets.checksum(arrays) == datasets.checksum(wide)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": np.array([1, 3])},
        {"a": np.array([[1, 2]])},
        {"c": np.array([1, 2])},
        {"a": np.array([1.0, 2.0])},
        {"a": np.array(["1", "2"])},
    ],
)
def test_checksum_sees_values_shapes_names_and_kinds(changed):
    assert datasets.checksum({"a": np.array([1, 2])}) != datasets.checksum(changed)


def test_checksum_refuses_objects():
    with pytest.raises(DatasetError, match="'a' has dtype object"):
        datasets.checksum({"a": np.array([None])})


# -- conversion and download


@pytest.mark.parametrize("name", FETCHABLE)
def test_published_form_converts_to_the_same_arrays(name):
    expected = small(name)
    assert_same(DATASETS[name].source.convert(PUBLISH[name](expected)), expected)


@pytest.mark.parametrize("name", FETCHABLE)
def test_fetch_converts_once_and_keeps_the_result(name, cache, monkeypatch):
    expected = small(name)
    requests = serve(monkeypatch, name, PUBLISH[name](expected))
    assert datasets.locate(name) is None
    assert_same(datasets.load(name), expected)
    assert datasets.locate(name) == cache / f"{name}.npz"
    assert_same(datasets.load(name), expected)
    assert requests == [DATASETS[name].source.url]
    assert [path.name for path in cache.iterdir()] == [f"{name}.npz"]  # no temporary file is left


def test_changed_content_is_refused(cache, monkeypatch):
    serve(monkeypatch, "election88", publish_election88(small("election88")), checksum="0" * 64)
    with pytest.raises(DatasetError, match=r"expected 0{64}\. The file at the origin has changed"):
        datasets.load("election88")
    assert datasets.locate("election88") is None


def test_damaged_download_is_refused_by_the_published_md5(cache, monkeypatch):
    serve(monkeypatch, "movielens_100k", publish_movielens_100k(small("movielens_100k")), md5="f" * 32)
    with pytest.raises(DatasetError, match="MD5 of the file is"):
        datasets.load("movielens_100k")


# an archive has the time in it, which must not get into the name of a test
@pytest.mark.parametrize(
    "content",
    [b"<html>", zipped({"other.json": "{}"}), zipped({"election88.json": "{}"})],
    ids=["a page", "another archive", "an empty archive"],
)
def test_unexpected_form_is_refused(content, cache, monkeypatch):
    monkeypatch.setattr(datasets, "_read_url", lambda url: content)
    with pytest.raises(DatasetError, match="does not have the expected form"):
        datasets.load("election88")


def test_chimpanzee_table_without_a_column_is_refused(cache, monkeypatch):
    monkeypatch.setattr(datasets, "_read_url", lambda url: b'"actor";"block"\n1;2\n')
    with pytest.raises(DatasetError, match=r"expected form .*pulled_left"):
        datasets.load("chimpanzees")


@pytest.mark.parametrize("name", FETCHABLE)
def test_without_network_the_error_names_the_remedy(name, cache):
    with pytest.raises(DatasetError, match=rf"(?s)Could not download data set '{name}'.*{name}\.npz.*set KAYN_DATA"):
        datasets.load(name)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(FETCHABLE)))
def test_sets_without_an_origin_ask_for_the_directory(name, cache):
    with pytest.raises(DatasetError, match=rf"cannot be downloaded\. Put {name}\.npz .* set KAYN_DATA"):
        datasets.load(name)


# -- lookup


def test_unknown_name_lists_the_known_ones(cache):
    with pytest.raises(DatasetError, match=r"Unknown data set 'iris'\. Known data sets: radon_homes, .*radon\."):
        datasets.load("iris")


def test_chosen_directory_is_read_and_nothing_is_downloaded(cache, tmp_path, monkeypatch):
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    requests = serve(monkeypatch, "election88", publish_election88(small("election88")))
    monkeypatch.setenv("KAYN_DATA", str(chosen))
    with pytest.raises(DatasetError, match=rf"{re.escape(str(chosen))}.*no election88\.npz"):
        datasets.load("election88")
    np.savez(chosen / "election88.npz", **small("election88"))
    assert_same(datasets.load("election88"), small("election88"))
    assert requests == []


def test_cache_is_in_the_home_directory_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.cache_directory() == tmp_path / ".cache" / "kayn"


@pytest.mark.parametrize("content", [b"", b"not a zip archive"])
def test_unreadable_file_is_named(content, cache):
    cache.mkdir()
    (cache / "covid.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"covid\.npz is not a readable \.npz file"):
        datasets.load("covid")


# -- the real files


def real(name):
    if not DATA:
        pytest.skip("KAYN_DATA is not set: real data sets are not tested")
    if datasets.locate(name) is None:
        pytest.skip(f"KAYN_DATA holds no {name}.npz")
    return datasets.load(name)


@pytest.mark.parametrize("name", FETCHABLE)
def test_real_arrays_have_the_stated_checksum(name):
    arrays = real(name)
    assert datasets.checksum(arrays) == DATASETS[name].source.checksum


@pytest.mark.parametrize("name", FETCHABLE)
def test_real_arrays_survive_the_published_form(name):
    arrays = real(name)
    assert_same(DATASETS[name].source.convert(PUBLISH[name](arrays)), arrays)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("bus_breakdown", "delay_train_0", (2, 3, 150)),
        ("occupancy", "birds_train_0", (6, 12, 200, 5)),
        ("covid", "obs_daily_all", (92, 137)),
        ("radon", "log_radon", (4, 300)),
    ],
)
def test_real_arrays_that_cannot_be_fetched_have_the_expected_shape(name, key, shape):
    assert real(name)[key].shape == shape
