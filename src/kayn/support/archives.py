"""Public archives of data sets, read as arrays."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import numpy as np

Arrays = dict[str, np.ndarray]
"""Named arrays of one data set."""


def _members(archive: bytes) -> dict[str, bytes]:
    """Files of a zip archive by base name."""
    with zipfile.ZipFile(io.BytesIO(archive)) as handle:
        return {name.rsplit("/", 1)[-1]: handle.read(name) for name in handle.namelist() if not name.endswith("/")}


def _posteriordb(archive: bytes, json_name: str) -> dict[str, np.ndarray]:
    content = json.loads(_members(archive)[json_name])
    return {key: np.asarray(value) for key, value in content.items()}


def radon_homes(archive: bytes) -> Arrays:
    """Homes of the radon survey: county, floor and log radon, by home."""
    raw = _posteriordb(archive, "radon_all.json")
    return {
        "county": (raw["county_idx"] - 1).astype(np.int16),
        "floor": raw["floor_measure"].astype(np.uint8),
        "log_radon": raw["log_radon"].astype(np.float32),
        "log_uppm": raw["log_uppm"].astype(np.float32),
    }


def election88(archive: bytes) -> Arrays:
    """Polls of the 1988 election, by respondent."""
    raw = _posteriordb(archive, "election88.json")
    groups = {key: (raw[key] - 1).astype(np.uint8) for key in ("age", "age_edu", "edu", "region_full", "state")}
    indicators = {key: raw[key].astype(np.uint8) for key in ("black", "female", "y")}
    return {**groups, **indicators, "v_prev_full": raw["v_prev_full"].astype(np.float32)}


def chimpanzees(table: bytes) -> Arrays:
    """Trials of the chimpanzee experiment, by trial."""
    rows = list(csv.DictReader(io.StringIO(table.decode("utf-8")), delimiter=";"))
    columns = (
        "actor",
        "recipient",
        "condition",
        "block",
        "trial",
        "prosoc_left",
        "chose_prosoc",
        "pulled_left",
    )
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise KeyError(", ".join(missing))
    arrays: Arrays = {}
    for column in columns:
        values = [-1 if row[column] == "NA" else int(row[column]) for row in rows]
        arrays[f"table_{column}"] = np.array(values, np.int8 if column == "recipient" else np.uint8)
    for column in ("condition", "prosoc_left", "pulled_left"):
        # The layout of alan (Heap et al.): a plain reshape of the table, whose order is actor, condition, block.
        cube = arrays[f"table_{column}"].reshape(7, 6, 12)
        arrays[f"{column}_train"], arrays[f"{column}_test"] = cube[..., :10], cube[..., 10:]
    return arrays


def _fields(content: bytes, separator: str) -> list[list[str]]:
    return [line.split(separator) for line in content.decode("latin-1").splitlines() if line.strip()]


def movielens_100k(archive: bytes) -> Arrays:
    """Ratings of 100,000 pairs of user and film, with what is known of both."""
    files = _members(archive)
    ratings = np.array(_fields(files["u.data"], "\t"), np.int64)
    held_out = {(int(user), int(item)) for user, item, *_ in _fields(files["ua.test"], "\t")}
    films, people = _fields(files["u.item"], "|"), _fields(files["u.user"], "|")
    occupations = [name for (name,) in _fields(files["u.occupation"], "|")]
    genres = [name for name, _ in _fields(files["u.genre"], "|")]
    release_years = [int(film[2].rsplit("-", 1)[-1]) if film[2] else 0 for film in films]
    return {
        "user": (ratings[:, 0] - 1).astype(np.int16),
        "item": (ratings[:, 1] - 1).astype(np.int16),
        "rating": ratings[:, 2].astype(np.uint8),
        "timestamp": ratings[:, 3].astype(np.int32),
        "test": np.array([(int(user), int(item)) in held_out for user, item in ratings[:, :2]], np.uint8),
        "genres": np.array([film[5:] for film in films]).astype(np.uint8),
        "release_year": np.array(release_years, np.int16),
        "age": np.array([person[1] for person in people]).astype(np.uint8),
        "female": np.array([person[2] == "F" for person in people], np.uint8),
        "occupation": np.array([occupations.index(person[3]) for person in people], np.uint8),
        "occupation_names": np.array(occupations),
        "genre_names": np.array(genres),
    }


def mnist_10k(archive: bytes) -> Arrays:
    """The 10,000 test digits."""
    with np.load(io.BytesIO(archive), allow_pickle=False) as file:
        return {"images": file["x_test"].astype(np.uint8), "labels": file["y_test"].astype(np.uint8)}
