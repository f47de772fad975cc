"""A model's arguments as people have them: columns and tables of pandas, polars and Arrow, arrays of xarray, masked
arrays. They become arrays in this one place, and what they were called is remembered.

Categories become their numbers, texts those of their sorted values, tables a `Table` of columns. Arrays of NumPy and
JAX stay as they are, and so does what cannot be converted: a model that uses it is refused by name
(`kayn.programs.data`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kayn.errors import DataError
from kayn.programs.data import is_column, listed
from kayn.support.prepared import Prepared
from kayn.support.tables import Table


@dataclass(frozen=True, eq=False)
class Labels:
    """What elements are called.

    Attributes:
        categories: of columns that hold their numbers, by argument: `school`, `table['school']`.
        dims: of arguments' dimensions, by name.
        given: those that the user gave, by plate.
    """

    categories: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict[str, np.ndarray] = field(default_factory=dict)
    given: dict[str, np.ndarray] = field(default_factory=dict)


def as_arguments(fn: Callable, args: tuple, kwargs: Mapping[str, Any], known: Labels | None = None) -> tuple:
    """A model's arguments with arrays in the place of columns and tables: (args, kwargs, labels).

    A model that brings its own is called with these where none are given.

    Args:
        known: categories that columns have had before; others get the numbers after theirs.

    Raises:
        DataError: categories are missing.
    """
    own: dict[str, np.ndarray] = {}
    if known is None and isinstance(fn, Prepared) and not args and not kwargs:
        args, own = fn.args, dict(fn.labels)
    converter = _Converter(known or Labels())
    converter.labels.given.update(own)
    names = _names(fn, len(args))
    new = tuple(converter.of(n, v) for n, v in zip(names, args, strict=True))
    return new, {n: converter.of(n, v) for n, v in kwargs.items()}, converter.labels


def _names(fn: Callable, count: int) -> list[str]:
    """What the first positional arguments of a program are called."""
    while hasattr(fn, "fn") and callable(fn.fn):  # NumPyro's handlers around it
        fn = fn.fn
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return [*names[:count], *(f"number {i + 1}" for i in range(len(names), count))]


class _Converter:
    def __init__(self, known: Labels):
        self.known, self.labels = known, Labels({}, dict(known.dims))

    def of(self, name: str, value: Any) -> Any:
        """A value of which nothing is a column or a table any more."""
        if isinstance(value, np.ma.MaskedArray):
            return value if np.ma.getmaskarray(value).any() else np.asarray(value.data)
        if type(value) in (list, tuple):
            return type(value)(self.of(f"{name}[{i}]", v) for i, v in enumerate(value))
        if type(value) is dict:
            return {k: self.of(f"{name}[{k!r}]", v) for k, v in value.items()}
        if not is_column(value) or isinstance(value, Table):
            return value
        xarray = sys.modules.get("xarray")
        if xarray is not None and isinstance(value, xarray.DataArray | xarray.Dataset):
            return self._of_xarray(name, value)
        return self._of_library(name, value)

    def _of_xarray(self, name: str, value: Any) -> Any:
        self.labels.dims.update({str(d): np.asarray(value.coords[d]) for d in value.dims if d in value.coords})
        if hasattr(value, "data_vars"):
            sizes = list(value.sizes.values())
            return Table({n: np.asarray(v) for n, v in value.data_vars.items()}, sizes[0] if len(sizes) == 1 else 0)
        return np.asarray(value)

    def _of_library(self, name: str, value: Any) -> Any:
        import narwhals as nw  # takes long to import

        if type(value).__module__.split(".")[0] == "pandas" and not hasattr(value, "iloc"):
            value = sys.modules["pandas"].Series(value)  # an index, or categories without one
        native = nw.from_native(value, eager_only=True, allow_series=True, pass_through=True)
        if isinstance(native, nw.Series):
            return self._of_series(name, native, nw)
        if isinstance(native, nw.DataFrame):
            return self._of_frame(name, native, nw)
        array = np.asarray(value)
        return array if array.dtype.kind in "biuf" else value

    def _of_frame(self, name: str, frame: Any, nw: Any) -> Table:
        columns, refused = {}, {}
        for column in frame.columns:
            where = f"{name}[{column!r}]"
            try:
                columns[column] = self._of_series(where, frame[column], nw)
            except DataError as error:  # which matters if the model uses it
                refused[column] = str(error)
        return Table(columns, len(frame), refused)

    def _of_series(self, name: str, series: Any, nw: Any) -> Any:
        dtype, missing = series.dtype, series.is_null().to_numpy()
        if dtype in (nw.Categorical, nw.Enum, nw.String):
            if missing.any():
                raise DataError(
                    f"argument {name!r} has {missing.sum()} missing categories of {len(missing)}, "
                    f"{listed(np.argwhere(missing))}. Drop these rows, or give them a category of their own"
                )
            values = np.asarray(series.to_list(), dtype=object)
            return self._numbers(name, values, _categories(series, nw))
        if dtype.is_decimal() or (missing.any() and dtype.is_integer()):
            series = series.cast(nw.Float64)
        array = series.to_numpy() if dtype.is_numeric() or (dtype == nw.Boolean and not missing.any()) else None
        return np.asarray(series.to_native()) if array is None else np.asarray(array)

    def _numbers(self, name: str, values: np.ndarray, categories: list[Any]) -> np.ndarray:
        """The number of each value's category: int32 [rows]."""
        before = self.known.categories.get(name)
        if before is not None:
            old = before.tolist()
            categories = [*old, *(c for c in categories if c not in set(old) and c in set(values.tolist()))]
        self.labels.categories[name] = np.asarray(categories)
        numbers = {c: i for i, c in enumerate(categories)}
        return np.array([numbers[v] for v in values.tolist()], np.int32)


def _categories(series: Any, nw: Any) -> list[Any]:
    """All categories in their order, where the column says which there are; else the sorted values."""
    if series.dtype == nw.Enum:
        return list(series.dtype.categories)
    if series.dtype == nw.Categorical and series.implementation.is_pandas():
        return series.to_native().cat.categories.tolist()
    return sorted(series.unique().to_list())
