"""Data as they come: arrays, columns of tables, lists, masked arrays, texts and dates; what JAX computes with,
and what is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import DataError, KaynError
from kayn.support.arrays import Array
from kayn.support.validate import shown

WIDE = {np.dtype(np.longdouble), np.dtype(np.clongdouble)} - {np.dtype(np.float64), np.dtype(np.complex128)}
"""Types of numbers that JAX does not know."""


def as_data(site: str, value: Any) -> Array:
    """What a site was given as `obs=`, as an array of numbers; columns of a table become arrays.

    Raises:
        DataError: it is none.
    """
    why = why_unusable(value)
    if not why and jnp.iscomplexobj(value):
        why = "complex; pass real numbers, e.g. its real and imaginary part as two sites"
    if why and not (is_column(value) and why_unusable(np.asarray(value)) is None):
        raise DataError(f"observed site {site!r} is {why}")
    if is_column(value):
        return np.asarray(value)
    return np.asarray(value.data) if isinstance(value, np.ma.MaskedArray) else value


def is_column(value: Any) -> bool:
    """Whether it is an array's worth of values in a container of another library, e.g. a pandas Series."""
    return hasattr(value, "__array__") and not isinstance(value, np.ndarray | np.generic | jax.Array)


def why_unusable(value: Any) -> str | None:
    """What a value is and what to pass instead, if JAX does not compute with it as it is;
    None for arrays and numbers."""
    kind = type(value).__name__
    if value is None or isinstance(value, jax.Array | bool | int | float | complex):
        return None
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.argwhere(np.ma.getmaskarray(value))
        if not len(hidden):
            return None
        where = tuple(int(i) for i in hidden[0])
        return (
            f"a masked array with {len(hidden)} hidden values, the first at index {where}; if these are "
            "outcomes, pass missing='drop' or 'impute' to kayn.fit; in a model, pass jnp.asarray(y.filled(0.0)), and "
            "numpyro.handlers.mask(mask=~y.mask) leaves them out"
        )
    if isinstance(value, list | tuple):
        return f"a {kind}; pass an array, e.g. jnp.asarray(y)"
    if is_column(value):
        inner = why_unusable(np.asarray(value))
        return (
            f"a {kind} of values that are no numbers. {_codes(value)}"
            if inner
            else f"of type {kind}; pass x.to_numpy()"
        )
    if not isinstance(value, np.ndarray | np.generic):
        return f"{shown(value)}; pass an array of numbers"
    numbers = jnp.issubdtype(value.dtype, np.number) and value.dtype.kind != "m" and value.dtype not in WIDE
    if numbers or value.dtype == bool:
        return None
    names = {"O": "objects", "U": "texts", "S": "bytes", "M": "dates", "m": "time spans"}
    return f"an array of {names.get(value.dtype.kind, str(value.dtype))}, not of numbers. {_codes(value)}"


def _codes(value: Any) -> str:
    kind = np.asarray(value).dtype.kind
    if kind in "Mm":
        return "Pass numbers, e.g. (x - x.min()) / np.timedelta64(1, 'D')"
    return "Pass numbers: x.astype(float), or for categories the codes of np.unique(x, return_inverse=True)"


def arguments(fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values that a program is called with, each under the name that a message can use: `x`, `table['age']`."""
    while hasattr(fn, "fn") and callable(fn.fn):  # NumPyro's handlers around it
        fn = fn.fn
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
        bound.apply_defaults()
        named = dict(bound.arguments.items())
    except (TypeError, ValueError):
        named = {f"number {i + 1}": v for i, v in enumerate(args)} | dict(kwargs)
    for name, value in named.items():
        if isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
            yield name, value
            continue
        for where, leaf in jax.tree.leaves_with_path(value, is_leaf=lambda x: x is None):
            yield name + jax.tree_util.keystr(where), leaf


def explained(error: Exception, fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Exception:
    """A program's error, as a DataError where it was called with what JAX does not compute with."""
    if isinstance(error, KaynError):
        return error
    found = [f"argument {n!r} is {why}" for n, v in arguments(fn, args, kwargs) if (why := _suspect(v))]
    if not found and "ndex" in str(error):
        kinds = {"floats": np.inexact, "truth values": np.bool_}
        found = [
            f"argument {n!r} is an array of {kind}; if it is meant as an index, pass whole numbers, e.g. "
            "codes.astype(int) without missing ones"
            for n, v in arguments(fn, args, kwargs)
            for kind, dtype in kinds.items()
            if jnp.ndim(v) and jnp.issubdtype(v.dtype, dtype)
        ]
    if not found and any(word in str(error) for word in ("broadcast", "shape")):
        found = _lengths(fn, args, kwargs)
    if not found and isinstance(error, TypeError):
        found = _packed(args, kwargs)
    if not found:
        return error
    return DataError(
        f"the model fails ({type(error).__name__}: {str(error).splitlines()[0][:120]}). {'; '.join(found)}"
    )


def _packed(args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """What there is to say where all arguments of a model were given as one."""
    packed = [f"{n}=" for n in ("args", "kwargs") if n in kwargs]
    if not packed and len(args) == 1 and type(args[0]) is tuple:
        packed = ["a tuple as its only argument"]
    return [f"It was given {p}; pass its arguments as it takes them itself: *args, **kwargs" for p in packed[:1]]


def _lengths(fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """What there is to say of arguments with different numbers of rows."""
    rows: dict[int, list[str]] = {}
    for name, value in arguments(fn, args, kwargs):
        if isinstance(value, jax.Array | np.ndarray) and value.ndim:
            rows.setdefault(value.shape[0], []).append(repr(name))
    if len(rows) < 2:
        return []
    return ["Arguments have different numbers of rows: " + ", ".join(f"{n} ({', '.join(w)})" for n, w in rows.items())]


def _suspect(value: Any) -> str | None:
    if isinstance(value, np.ma.MaskedArray):
        return why_unusable(value) or "a masked array; pass x.data, as nothing is hidden in it"
    arrays = isinstance(value, list | tuple | np.ndarray) or is_column(value)
    return why_unusable(value) if arrays else None


def refuse_shape(
    site: str, shape: tuple[int, ...], expected: tuple[int, ...], events: int, plates: Collection[int]
) -> None:
    """Refuse data that NumPyro would broadcast in silence, so that every datum would be compared with every row.

    Data count once for every element of a declared plate, and a single value may stand for all elements of a
    distribution. Nothing else says that a datum is to be counted more than once: a column [N, 1] of data beside rows
    [N], or rows [N] of data beside a column of means, are slips.

    Args:
        shape: of the data.
        expected: of the distribution: batch and event.
        events: the last dimensions of both, those of one value of the innermost distribution.
        plates: dimensions of declared plates, counted from the end of `expected`.

    Raises:
        DataError: data without rows, or such that would be counted along a dimension that is no declared plate.
    """
    if 0 in shape:
        raise DataError(
            f"observed site {site!r} has shape {shape}, so it holds no data; pass some rows, or leave the site out"
        )
    try:
        np.broadcast_shapes(shape, expected)
    except ValueError:
        raise DataError(
            f"observed site {site!r} has shape {shape}, but its distribution has shape {expected}; pass as many rows "
            "of data as of covariates"
        ) from None
    rank = max(len(shape), len(expected))
    own, other = ((1,) * (rank - len(s)) + tuple(s) for s in (shape, expected))
    free = range(-rank, -events)
    single = all(own[d] == 1 for d in free)
    if len(shape) > len(expected) and any(own[d] == 1 < other[d] for d in free):
        raise DataError(
            f"observed site {site!r} has shape {shape}, but its distribution has shape {expected}, so every datum "
            f"would be compared with every row; pass data of shape {expected}, e.g. y.reshape({expected}) or one "
            "column of a table"
        )
    if not single and any(own[d] == 1 < other[d] and d not in plates for d in free):
        raise DataError(
            f"observed site {site!r} has shape {shape}, but its distribution has shape {expected}, so every datum "
            "would be compared with every row. If a covariate is a column [N, 1] beside data [N], pass it as x[:, "
            "0]; if every datum is to count once for each element of a dimension, declare that dimension by "
            "numpyro.plate"
        )


def listed(rows: np.ndarray, most: int = 5) -> str:
    """The first of some rows, [count, dimensions], in words."""
    shown = [int(r[0]) if len(r) == 1 else tuple(map(int, r)) for r in rows[:most]]
    return f"at {', '.join(map(str, shown))}" + (" and more" if len(rows) > most else "")
