"""Data sets of the examples and tests.

Two need no files: `eight_schools` (a published table) and `simulate_radon` (a seeded generator). The others are read by
`load` from ``<name>.npz``. Where that file is looked for:

1. in the directory that the environment variable ``KAYN_DATA`` names, when it is set (nothing is downloaded then);
2. otherwise in the user's cache, ``$XDG_CACHE_HOME/kayn`` or ``~/.cache/kayn``; sets with a stable public origin are
   downloaded there on first use, converted, and checked against a checksum of the converted arrays.

Licences differ and stay with the origin. MovieLens in particular may be used for research but **not redistributed**,
nor used commercially without permission from GroupLens, and its use must be acknowledged by citing Harper and Konstan
(2015), "The MovieLens Datasets: History and Context". kayn does not contain it; `load` fetches it from GroupLens for
you.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np

from kayn.errors import KaynError
from kayn.support.archives import Arrays, chimpanzees, election88, mnist_10k, movielens_100k, radon_homes
from kayn.support.memory import refuse_too_many
from kayn.support.validate import Count, Rule, checked

DATA_VARIABLE = "KAYN_DATA"
_TIMEOUT_SECONDS = 60.0
_POSTERIORDB = "https://raw.githubusercontent.com/stan-dev/posteriordb/master/posterior_database/data/data"


class DatasetError(KaynError):
    """A data set is unknown, was not found, could not be downloaded, or is not what it should be."""


Seed = Annotated[int, Rule("a whole number, 0 or more", lambda n: n >= 0)]


def eight_schools() -> Arrays:
    """Effects of coaching on test scores in eight schools (Rubin, 1981).

    Returns:
        ``y: [8]`` the estimated effects, ``sigma: [8]`` their standard errors.
    """
    return {
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32),
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32),
    }


@dataclass(frozen=True)
class SimulatedRadon:
    """A ragged two-level data set (N houses in G counties) and the numbers it was drawn from."""

    county: np.ndarray  # [N] int32, sorted, every county has at least one house
    floor: np.ndarray  # [N] float32, 1 when measured above the basement
    log_radon: np.ndarray  # [N] float32
    num_counties: int
    true_mu: float
    true_sd: float
    true_beta: float
    true_sigma: float
    true_alpha: np.ndarray  # [G] float32

    @property
    def county_sizes(self) -> np.ndarray:
        """Number of houses of each county: [G] int."""
        return np.bincount(self.county, minlength=self.num_counties)


@checked(DatasetError)
def simulate_radon(seed: Seed = 0, num_groups: Count = 85) -> SimulatedRadon:
    """Draw radon measurements of houses in counties of very different size (1 to 100 houses).

    ``alpha[g] ~ Normal(mu, sd)``, ``log_radon[n] ~ Normal(alpha[county[n]] + beta * floor[n], sigma)``. The numbers are
    near those of the Minnesota data of Gelman and Hill (2006).

    Args:
        seed: the same seed gives the same data.
        num_groups: number of counties.
    """
    refuse_too_many("num_groups", num_groups, 100, DatasetError)
    rng = np.random.default_rng(seed)
    mu, sd, beta, sigma = 1.3, 0.35, -0.65, 0.75
    sizes = np.clip(np.rint(np.exp(rng.normal(1.9, 1.2, num_groups))), 1, 100).astype(np.int64)
    county = np.repeat(np.arange(num_groups, dtype=np.int32), sizes)
    alpha = rng.normal(mu, sd, num_groups)
    floor = (rng.random(county.size) < 0.17).astype(np.float32)
    log_radon = alpha[county] + beta * floor + rng.normal(0.0, sigma, county.size)
    return SimulatedRadon(
        county=county,
        floor=floor,
        log_radon=log_radon.astype(np.float32),
        num_counties=num_groups,
        true_mu=mu,
        true_sd=sd,
        true_beta=beta,
        true_sigma=sigma,
        true_alpha=alpha.astype(np.float32),
    )


@dataclass(frozen=True)
class Source:
    """A public origin: where to fetch, how to convert, and how to know that the result is right."""

    url: str
    convert: Callable[[bytes], Arrays]
    checksum: str  # of the converted arrays, see `checksum`
    md5: str | None = None  # of the downloaded file, where the origin publishes one


@dataclass(frozen=True)
class Dataset:
    """One line about a data set, its licence or origin, and its source when it can be fetched."""

    summary: str
    origin: str
    source: Source | None = None


DATASETS: Mapping[str, Dataset] = {
    "radon_homes": Dataset(
        "12,573 houses in 386 US counties, house level, ragged",
        "Gelman and Hill (2006), as in posteriordb (radon_all)",
        Source(
            f"{_POSTERIORDB}/radon_all.json.zip",
            radon_homes,
            "0e0101113db3e30f008d21324acd142da1d9b54b1332b17b49bb4d0050689f45",
        ),
    ),
    "election88": Dataset(
        "11,566 answers to polls before the 1988 US presidential election; states in regions, crossed with age and "
        "education",
        "Gelman and Hill (2006), as in posteriordb (election88)",
        Source(
            f"{_POSTERIORDB}/election88.json.zip",
            election88,
            "9dff412fe85f76d9247408326d1957b10342fd6e106c73191da73bebe72ae002",
        ),
    ),
    "movielens_100k": Dataset(
        "100,000 ratings of 1,682 films by 943 users",
        "GroupLens, University of Minnesota. Research use only, no redistribution, no commercial use without "
        "permission; cite Harper and Konstan (2015)",
        Source(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            movielens_100k,
            "b59a1e222902261a98029f779c4bce7b738db1ac4c800a134b9d5b7e7479ca2d",
            md5="0e33842e24a9c977be4e0107933c0723",
        ),
    ),
    "chimpanzees": Dataset(
        "504 choices of 7 chimpanzees in 6 blocks",
        "Silk et al. (2005), as in the R package rethinking (McElreath)",
        Source(
            "https://raw.githubusercontent.com/rmcelreath/rethinking/master/data/chimpanzees.csv",
            chimpanzees,
            "04d4ad0d338140c4264d1cb99ca0274e8de8bc7503752fc18e45dc8104dd1f9b",
        ),
    ),
    "mnist_10k": Dataset(
        "10,000 images of handwritten digits, 28 x 28: the published test set",
        "LeCun, Cortes and Burges (MNIST), as distributed with Keras",
        Source(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
            mnist_10k,
            "e66e8e4ab7dd13db1f7cc16dfcacb6990594da143aad240917ebe812f0bf766d",
        ),
    ),
    "bus_breakdown": Dataset("delays of New York school buses", "NYC Open Data, Bus Breakdown and Delays, via alan"),
    "movielens": Dataset(
        "a published subset of MovieLens 100K whose labels are all zero and whose genres are scrambled, to reproduce "
        "published figures only",
        "GroupLens, via alan. Research use only, no redistribution",
    ),
    "occupancy": Dataset("sightings of North American breeding birds", "USGS Breeding Bird Survey 2022, via alan"),
    "covid": Dataset("COVID-19 cases and interventions in 92 regions, 2020", "Leech et al. (2022), via alan"),
    "radon": Dataset("radon in 4 states x 300 postal areas", "SRRS2 / EPA survey, via alan"),
}


@checked(DatasetError)
def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays that does not depend on integer width, byte order or file format.

    Every key, in sorted order, contributes its name, its shape and its values as 64-bit integers, 32-bit floats or
    UTF-8 text.

    Raises:
        DatasetError: an array holds something else.
    """
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.asarray(arrays[key])
        if array.dtype.kind in "biu":
            kind, payload = "int", array.astype("<i8").tobytes()
        elif array.dtype.kind == "f":
            kind, payload = "float", array.astype("<f4").tobytes()
        elif array.dtype.kind == "U":
            kind, payload = "text", "\n".join(array.ravel().tolist()).encode("utf-8")
        else:
            raise DatasetError(f"checksum: array {key!r} has dtype {array.dtype}; expected integers, floats or text.")
        digest.update(f"{key}|{kind}|{array.shape}|".encode())
        digest.update(payload)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Where downloaded data sets are kept: ``$XDG_CACHE_HOME/kayn`` or ``~/.cache/kayn``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kayn"


def _lookup(name: str) -> Dataset:
    try:
        return DATASETS[name]
    except KeyError:
        raise DatasetError(f"Unknown data set {name!r}. Known data sets: {', '.join(DATASETS)}.") from None


@checked(DatasetError)
def locate(name: str) -> Path | None:
    """Path of the data set's file, or None when it is not there. Nothing is downloaded."""
    _lookup(name)
    chosen = os.environ.get(DATA_VARIABLE)
    path = (Path(chosen) if chosen else cache_directory()) / f"{name}.npz"
    return path if path.is_file() else None


@checked(DatasetError)
def load(name: str) -> Arrays:
    """Arrays of a data set by key; see `DATASETS` for the names.

    Raises:
        DatasetError: there is no such set, it cannot be fetched, or its file cannot be read.

    Example:
        >>> data = load("radon_homes")  # doctest: +SKIP
        >>> data["county"].shape  # doctest: +SKIP
        (12573,)
    """
    path = locate(name) or fetch(name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path} is not a readable .npz file ({error}). Delete it and load {name!r} again."
        ) from error


@checked(DatasetError)
def fetch(name: str) -> Path:
    """Download a data set into the cache unless it is already there; returns the path of the ``.npz`` file.

    Raises:
        DatasetError: there is no such set, it has no origin to fetch it from, or what came is not what was published.
    """
    dataset = _lookup(name)
    found = locate(name)
    if found is not None:
        return found
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        raise DatasetError(
            f"{DATA_VARIABLE} is set to {chosen!r}, but there is no {name}.npz in that directory. "
            f"Put the file there, or unset {DATA_VARIABLE} to use the cache and downloads."
        )
    if dataset.source is None:
        raise DatasetError(
            f"Data set {name!r} ({dataset.origin}) cannot be downloaded. "
            f"Put {name}.npz into a directory and set {DATA_VARIABLE} to that directory."
        )
    arrays = _convert(name, dataset.source, _download(name, dataset.source))
    return _store(arrays, cache_directory() / f"{name}.npz")


def _read_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 (fixed https addresses)
        return bytes(response.read())


def _download(name: str, source: Source) -> bytes:
    try:
        content = _read_url(source.url)
    except OSError as error:  # URLError, HTTPError and time-outs are all OSError
        raise DatasetError(
            f"Could not download data set {name!r} from {source.url} ({error}). Without a network, put {name}.npz "
            f"into a directory and set {DATA_VARIABLE} to that directory."
        ) from error
    if source.md5 is not None:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != source.md5:
            raise DatasetError(f"{source.url}: MD5 of the file is {found}, expected {source.md5}. Try again later.")
    return content


def _convert(name: str, source: Source, content: bytes) -> Arrays:
    try:
        arrays = source.convert(content)
    except (KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{source.url} does not have the expected form ({type(error).__name__}: {error})."
        ) from error
    found = checksum(arrays)
    if found != source.checksum:
        raise DatasetError(
            f"{source.url}: the converted arrays of {name!r} have checksum {found}, expected {source.checksum}. "
            f"The file at the origin has changed."
        )
    return arrays


def _store(arrays: Arrays, path: Path) -> Path:
    """Write atomically: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            np.savez_compressed(handle, **cast("dict[str, Any]", arrays))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
