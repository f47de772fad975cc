"""Tables of any library as a pandas frame, which `formulae` reads; rows with gaps are told of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kayn.errors import DataError, DataWarning, warn
from kayn.programs.data import listed
from kayn.support.validate import shown

if TYPE_CHECKING:
    import pandas as pd


def as_frame(data: Any) -> pd.DataFrame:
    """A table of pandas, polars or Arrow, or a mapping of columns, as a pandas frame with rows by number.

    Raises:
        DataError: it is none, or has no rows.
    """
    import narwhals as nw  # takes long to import
    import pandas as pd

    try:
        if isinstance(data, Mapping):
            frame = pd.DataFrame({str(n): np.asarray(v) if not hasattr(v, "dtype") else v for n, v in data.items()})
        elif isinstance(data, pd.DataFrame):
            frame = data
        else:
            frame = nw.from_native(data, eager_only=True).to_pandas()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data is {shown(data)}, not a table (of pandas, polars, Arrow) or a mapping of columns: "
            f"{first_line(error)}"
        ) from error
    if not len(frame):
        raise DataError("data has no rows")
    return frame.reset_index(drop=True).infer_objects()


def read_frame(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of a CSV, Parquet or Feather file.

    Raises:
        DataError: it is none of these, is damaged, or cannot be found.
    """
    import pandas as pd

    endings = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".feather": pd.read_feather, ".arrow": pd.read_feather}
    reader = endings.get(Path(path).suffix.lower())
    if reader is None:
        raise DataError(f"{str(path)!r} is no table that can be read; its name must end in {', '.join(endings)}")
    try:
        return as_frame(reader(path))
    except ImportError as error:
        raise DataError(f"{str(path)!r}: Parquet and Feather files need pyarrow: pip install pyarrow") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or first_line(error)}") from error
    except DataError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # what readers of damaged files raise
        raise DataError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refuse_unknown(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse names that are no columns, or several.

    Raises:
        DataError: a name is none.
    """
    names = set(names)
    twice = sorted(names & set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise DataError(f"data has several columns that are called {twice[0]!r}; rename or drop all but one")
    unknown = sorted(names - set(frame.columns))
    if unknown:
        known = ", ".join(map(repr, frame.columns[:20])) + (", ..." if len(frame.columns) > 20 else "")
        raise DataError(f"data has no column {unknown[0]!r}; it has {known}")


COARSE = 1e-3
"""Standard deviations of a column that its numbers may be rounded by."""


def refuse_unfit(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse columns that are no numbers, truth values or texts, and numbers whose digits JAX would not keep.

    Raises:
        DataError: a column has dates, complex numbers, or values of other kinds, or varies too little for its size.
    """
    for name in names:
        column = frame[name]
        kind = getattr(column.dtype, "kind", "O")
        if kind in "mM":
            raise DataError(f"column {name!r} has dates or times; make it a number, such as days since the first one")
        if kind == "c":
            raise DataError(f"column {name!r} has complex numbers; take their real part, or another real number")
        if kind == "O" and column.dtype == object:
            _refuse_mixtures(name, column)
        if kind in "iuf":
            _refuse_coarse(name, column.dropna().to_numpy(float))


def _refuse_mixtures(name: str, column: pd.Series) -> None:
    """Refuse objects that are not all texts."""
    found = column.dropna()
    other = [i for i, v in found.items() if not isinstance(v, str)]
    if other:
        held = sorted({type(v).__name__ for v in found})
        raise DataError(
            f"column {name!r} has values of type {', '.join(held)}, e.g. {shown(found[other[0]])} in row {other[0]}; "
            "make them numbers (float), or texts (str), all alike"
        )


def _refuse_coarse(name: str, values: np.ndarray) -> None:
    """Refuse numbers whose differences are lost where JAX rounds them."""
    import jax

    if jax.config.jax_enable_x64 or not len(values):
        return
    with np.errstate(over="ignore"):
        lost = np.abs(values - values.astype(np.float32))
    if not np.max(lost) <= COARSE * np.std(values):
        raise DataError(
            f"column {name!r} lies at {np.mean(values):.6g} and varies by {np.std(values):.3g}, which float32 does not "
            "tell apart; subtract what all have in common, or set jax_enable_x64"
        )


def refuse_changed(known: pd.DataFrame, frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse new rows with something else than numbers where the first table had numbers.

    Raises:
        DataError: a column has.
    """
    for name in sorted(names):
        if known[name].dtype.kind in "iuf" and frame[name].dtype.kind not in "iufb":
            value = frame[name].iloc[0]
            raise DataError(f"column {name!r} had numbers, but has {shown(value)} now; give numbers there too")


def complete(frame: pd.DataFrame, names: Iterable[str], refuse: bool = False) -> pd.DataFrame:
    """The rows that have a value in all of some columns; a warning tells which are left out.

    Args:
        refuse: whether gaps are refused instead.

    Raises:
        DataError: there are none, a column has an infinite number, or gaps are refused.
    """
    names = [n for n in frame.columns if n in set(names)]
    for name in names:
        if frame[name].dtype.kind == "f" and (infinite := np.isinf(frame[name].to_numpy())).any():
            raise DataError(f"column {name!r} has infinite numbers {listed(np.argwhere(infinite))}")
    missing = frame[names].isna()
    gaps = missing.any(axis=1).to_numpy()
    if not gaps.any():
        return frame
    if refuse:
        rows = "; ".join(f"{n!r} {listed(np.argwhere(own.to_numpy()))}" for n, own in missing.items() if own.any())
        raise DataError(f"values are missing of column {rows}; fill them, or leave these rows out: missing='drop'")
    told = ", ".join(f"{n!r} in {count}" for n, count in missing.sum().items() if count)
    if gaps.all():
        raise DataError(f"no row has a value in every column of the formula (missing: {told})")
    warn(
        f"{gaps.sum()} of {len(frame)} rows are left out, {listed(np.argwhere(gaps))}: values are missing ({told})",
        DataWarning,
    )
    return frame[~gaps].reset_index(drop=True)
