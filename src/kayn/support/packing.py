"""Values as JSON and arrays, and back to the bit: what a file can hold without ever executing anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import KaynError
from kayn.support.tables import Table
from kayn.support.validate import shown

PLAIN = (bool, int, float, str, type(None))


def pack(name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as what JSON holds; its arrays are put into `arrays`, under the place they stand at.

    Args:
        name: what the value is called in messages.

    Raises:
        KaynError: a part of it is neither a number, a text, None, an array, nor a list, tuple or dictionary of such.
    """
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(f"{name}[{i}]", v, arrays) for i, v in enumerate(value)]}
    if isinstance(value, Table):
        columns = [[k, pack(f"{name}[{k!r}]", v, arrays)] for k, v in value.items()]
        return {"table": columns, "rows": value.rows, "refused": value.refused}
    if isinstance(value, Mapping):
        odd = [k for k in value if type(k) not in PLAIN]
        if not odd:
            return {"dict": [[k, pack(f"{name}[{k!r}]", v, arrays)] for k, v in value.items()]}
    if isinstance(value, jax.core.Tracer):
        raise KaynError(f"{name} is {shown(value)}; save outside of jax.jit and other transformations")
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        arrays[name] = np.asarray(jax.random.key_data(value))
        return {"key": name, "of": str(jax.random.key_impl(value))}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind == "U":
            return {"texts": array.ravel().tolist(), "of": list(array.shape)}
        if array.dtype.kind not in "OSMm":
            arrays[name] = array
            return {"array": name, "of": "jax" if isinstance(value, jax.Array) else type(value).__name__}
    raise KaynError(
        f"{name} is {shown(value)}, which a file cannot hold: it holds numbers, texts, arrays, and lists, tuples and "
        "dictionaries of them. If it is an argument of the model, bind it before the fit, e.g. "
        "functools.partial(model, net), and load with the same partial"
    )


def unpack(packed: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `pack` was given.

    Raises:
        ValueError: nothing that `pack` gives.
        KeyError: an array is missing.
    """
    if type(packed) in PLAIN:
        return packed
    match packed:
        case {"list": items}:
            return [unpack(v, arrays) for v in items]
        case {"tuple": items}:
            return tuple(unpack(v, arrays) for v in items)
        case {"dict": items}:
            return {k: unpack(v, arrays) for k, v in items}
        case {"table": items, "rows": rows, "refused": refused}:
            return Table({k: unpack(v, arrays) for k, v in items}, rows, refused)
        case {"key": name, "of": impl}:
            return jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=impl)
        case {"array": name, "of": "jax"}:
            return jax.device_put(arrays[name])
        case {"array": name, "of": "ndarray"}:
            return arrays[name]
        case {"array": name}:
            return arrays[name][()]
        case {"texts": texts, "of": shape}:
            return np.array(texts, dtype=str).reshape(shape)
    raise ValueError(f"{str(packed)[:60]} is no value of a file of kayn's")
