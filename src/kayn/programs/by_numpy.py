"""Operations on known numbers, done by NumPy where it gives what XLA gives, bit by bit.

Index vectors, masks and shapes of data are looked at before anything is compiled. One operation on its own is a program
of its own for XLA, which takes tens of milliseconds to write for every shape; NumPy takes microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Rule = Callable[[Mapping[str, Any], Sequence[np.ndarray]], np.ndarray | None]


def by_numpy(primitive: Any, params: Mapping[str, Any], operands: Sequence[Any]) -> np.ndarray | None:
    """The result of one of JAX's primitives; None where NumPy might give another.

    Args:
        primitive: its name.
        operands: known numbers; types are those that JAX makes of them.
    """
    rule = RULES.get(primitive)
    if rule is None or params.get("sharding") is not None:
        return None
    arrays = [_array(x) for x in operands]
    if any(a is None for a in arrays):
        return None
    with np.errstate(all="ignore"):
        found = rule(params, arrays)  # type: ignore[arg-type]
    return None if found is None else np.asarray(found)


def _array(value: Any) -> np.ndarray | None:
    if getattr(getattr(value, "dtype", None), "kind", "b") not in "biuf":
        return None  # keys, and types that NumPy does not have
    array = np.asarray(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _is_whole(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu"


def _is_normal(array: np.ndarray) -> bool:
    """Whether no entry is so small that XLA takes it for zero."""
    if _is_whole(array):
        return True
    size = np.abs(array)
    return not ((size < np.finfo(array.dtype).tiny) & (size > 0)).any()


def _is_exact(array: np.ndarray) -> bool:
    """Whether no entry is NaN either."""
    return _is_normal(array) and not np.isnan(array).any()


def _moved(move: Callable[[Mapping[str, Any], np.ndarray], np.ndarray]) -> Rule:
    return lambda params, operands: move(params, operands[0])


def _reshape(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
    known = len(operands) == 1 and params.get("dimensions") is None
    return operands[0].reshape(params["new_sizes"]) if known else None


def _broadcast_in_dim(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
    if len(operands) > 1:
        return None
    shape = [1] * len(params["shape"])
    for dim, size in zip(params["broadcast_dimensions"], operands[0].shape, strict=True):
        shape[dim] = size
    return np.broadcast_to(operands[0].reshape(shape), params["shape"])


def _iota(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray:
    shape, dim = params["shape"], params["dimension"]
    row = np.arange(shape[dim], dtype=params["dtype"])
    return np.broadcast_to(row.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape)


def _slice(params: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    starts, stops = params["start_indices"], params["limit_indices"]
    return array[tuple(map(slice, starts, stops, params["strides"] or (1,) * len(starts)))]


def _select_n(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
    which, *cases = operands
    return np.where(which, cases[1], cases[0]) if which.dtype == bool and len(cases) == 2 else None


def _convert(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
    (array,), new = operands, np.dtype(params["new_dtype"])
    if new.kind not in "biuf" or not _is_exact(array):
        return None
    if new.kind in "iu" and array.dtype.kind == "f":
        ends = np.iinfo(new)
        if not ((array > ends.min) & (array < ends.max)).all():
            return None  # what is out of range has no value to agree on
    found = array.astype(new)
    return found if _is_exact(found) else None


def _exactly(function: Callable[..., np.ndarray]) -> Rule:
    """Of operations that are rounded correctly, or not at all."""

    def rule(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
        if not all(map(_is_exact, operands)):
            return None
        found = function(*operands)
        return found if _is_exact(np.asarray(found)) else None

    return rule


def _compared(function: Callable[..., np.ndarray]) -> Rule:
    return lambda params, operands: function(*operands) if all(map(_is_normal, operands)) else None


def _of_whole(function: Callable[..., np.ndarray]) -> Rule:
    return lambda params, operands: function(*operands) if all(map(_is_whole, operands)) else None


def _rem(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
    whole = all(map(_is_whole, operands)) and (operands[1] > 0).all()
    return np.fmod(*operands) if whole else None


def _reduced(function: Any) -> Rule:
    def rule(params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> np.ndarray | None:
        (array,) = operands
        axes = tuple(params["axes"])
        if not _is_whole(array) or not array.size or params.get("out_sharding") is not None:
            return None
        return function(array, axis=axes)

    return rule


def _sum(array: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    return array.sum(axis, dtype=array.dtype)


RULES: Mapping[Any, Rule] = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "squeeze": _moved(lambda params, x: np.squeeze(x, tuple(params["dimensions"]))),
    "transpose": _moved(lambda params, x: np.transpose(x, params["permutation"])),
    "slice": _moved(_slice),
    "rev": _moved(lambda params, x: np.flip(x, tuple(params["dimensions"]))),
    "copy": _moved(lambda params, x: x),
    "copy_p": _moved(lambda params, x: x),
    "stop_gradient": _moved(lambda params, x: x),
    "concatenate": lambda params, operands: np.concatenate(operands, params["dimension"]),
    "select_n": _select_n,
    "convert_element_type": _convert,
    "iota": _iota,
    **{
        name: _compared(function)
        for name, function in {
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "is_finite": np.isfinite,
        }.items()
    },
    **{
        name: _exactly(function)
        for name, function in {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "neg": np.negative,
            "abs": np.abs,
            "floor": np.floor,
            "ceil": np.ceil,
        }.items()
    },
    **{
        name: _of_whole(function)
        for name, function in {
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
            "not": np.invert,
            "max": np.maximum,
            "min": np.minimum,
        }.items()
    },
    "rem": _rem,
    **{
        f"reduce_{name}": _reduced(function)
        for name, function in {"sum": _sum, "max": np.amax, "min": np.amin, "and": np.all, "or": np.any}.items()
    },
}
"""Primitives by name. Those that are rounded otherwise elsewhere are not among them (quotients, roots, logarithms)."""
