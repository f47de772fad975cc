"""Checkpoints: a pytree of arrays as one file, written whole or not at all, read bit by bit or refused by name.

The file is NumPy's `.npz`: one array for every leaf, under its place in the tree, and a text of JSON. NumPy cannot read
what it writes of types that are not its own, such as bfloat16, so arrays of these are kept as bytes and their types
beside them. Nothing in the file is ever executed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import KaynError
from kayn.support.arrays import PyTree

NOTES, TYPES = "notes", "types"
"""Members of the file that are no leaves; leaves are called by their place, which starts with a bracket or a dot."""
UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)
"""What NumPy and zipfile raise where a file is damaged, cut short or of another kind."""
REMEDY = "Give another path, or remove the file"


def save(path: str | os.PathLike[str], tree: PyTree, notes: Any = None) -> None:
    """Write the leaves of a pytree of arrays, and what JSON can hold, to a `.npz` file.

    Readers and other writers of the same path meet one whole file or the other;
    an interrupted call leaves the file that was there.

    Raises:
        KaynError: the file cannot be written, a leaf is no array of numbers, or the notes are nothing for JSON.
    """
    # through links, so that the file they point to is replaced and not the link
    target = Path(os.path.realpath(path))
    named = {jax.tree_util.keystr(where): leaf for where, leaf in jax.tree.leaves_with_path(tree)}
    arrays = {name: _array(path, name, leaf) for name, leaf in named.items()}
    types = {name: _type(leaf, arrays[name]) for name, leaf in named.items()}
    try:
        texts = {NOTES: np.asarray(json.dumps(notes)), TYPES: np.asarray(json.dumps(types))}
    except (TypeError, ValueError) as error:
        raise KaynError(
            f"checkpoint {path}: the notes are nothing that JSON holds ({error}); return numbers and texts"
        ) from error
    content = {name: x if x.dtype.isbuiltin == 1 else _bytes(x) for name, x in arrays.items()}
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no file")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as file:
            np.savez(file, **cast("dict[str, Any]", {**texts, **content}))
    except OSError as error:
        raise KaynError(
            f"checkpoint {path} cannot be written: {_said(error)}. Give the path of a file in a directory that can "
            "be written to"
        ) from error


def load(path: str | os.PathLike[str], like: PyTree) -> tuple[PyTree, Any]:
    """Read what `save` has written: the tree, whose structure, shapes and types are those of `like`, and the notes.

    Raises:
        KaynError: the file cannot be read, is damaged or no checkpoint, or holds a tree of another form.
    """
    stored, types, notes = _read(path)
    places, form = jax.tree.flatten_with_path(like)
    names = [jax.tree_util.keystr(where) for where, _ in places]
    odd = sorted(set(names) ^ set(stored))
    if odd:
        where = "the file" if odd[0] in stored else "this run"
        raise KaynError(
            f"checkpoint {path}: {odd[0]} is only in {where}; it belongs to another model, guide or optimiser. {REMEDY}"
        )
    leaves = [
        _restored(path, name, stored[name], types.get(name), leaf)
        for name, (_, leaf) in zip(names, places, strict=True)
    ]
    return jax.tree.unflatten(form, leaves), notes


def arrays_of(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Any]:
    """Read what `save` has written of a dictionary of NumPy arrays, whatever their names and shapes, and the notes.

    Raises:
        KaynError: the file cannot be read, is damaged or no checkpoint.
    """
    stored, types, notes = _read(path)
    try:
        # names are keys of a dictionary, as JAX writes them
        return {ast.literal_eval(name[1:-1]): _viewed(x, types[name]) for name, x in stored.items()}, notes
    except (ValueError, TypeError, KeyError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str], Any]:
    """Arrays and their types by place, and the notes."""
    try:
        stored = _members(path)
        notes = json.loads(str(stored.pop(NOTES)))
        types = json.loads(str(stored.pop(TYPES))) if TYPES in stored else {}
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return stored, types, notes


def _unreadable(path: Any, error: Exception) -> KaynError:
    return KaynError(
        f"checkpoint {path} cannot be read: {_said(error)}. It is damaged, was cut short, or is no checkpoint of "
        f"kayn's. {REMEDY}"
    )


def fingerprint(tree: PyTree) -> str:
    """A text that two pytrees of arrays share if they are equal to the bit, and else do not."""
    leaves, form = jax.tree.flatten(tree)
    # addresses of objects within the form differ between runs
    digest = hashlib.blake2b(re.sub(r"0x[0-9a-f]+", "", str(form)).encode(), digest_size=16)
    for leaf in leaves:
        try:
            array = np.ascontiguousarray(_plain(leaf))
            plain = array.dtype.kind != "O"
        except (TypeError, ValueError):
            plain = False
        # things that are no arrays have no content to compare, only a kind
        digest.update(f"{array.dtype} {array.shape}".encode() if plain else type(leaf).__name__.encode())
        if plain:
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def _replacing(target: Path) -> Iterator[Any]:
    """A file to write to, which takes the target's place, on the disk, once it is whole."""
    # a name of its own for every writer, however long the target's is
    part = target.with_name(f".kayn-{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    # that the name points to the new file is kept by the directory; not every system can be told to write that down
    with suppress(OSError):
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _members(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz file" if os.fstat(file.fileno()).st_size else "it is empty")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _array(path: Any, name: str, leaf: Any) -> np.ndarray:
    try:
        array = np.asarray(_plain(leaf))
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError) as error:
        raise KaynError(f"checkpoint {path}: {name} is {type(leaf).__name__}, which is no array with values") from error
    if array.dtype.kind in "OSUMm":
        raise KaynError(f"checkpoint {path}: {name} is {type(leaf).__name__}; a checkpoint holds arrays of numbers")
    return array


def _type(leaf: Any, array: np.ndarray) -> str:
    return str(leaf.dtype) if _is_key(leaf) else array.dtype.name


def _bytes(array: np.ndarray) -> np.ndarray:
    """[*shape, bytes of one element]."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.reshape(*array.shape, array.dtype.itemsize)


def _viewed(found: np.ndarray, kind: str) -> np.ndarray:
    """An array of a type, if need be from its bytes [*shape, bytes of one element]."""
    dtype = jnp.dtype(kind)
    if dtype.isbuiltin == 1:
        return found
    return np.ascontiguousarray(found).reshape(-1).view(dtype).reshape(found.shape[:-1])


def _restored(path: Any, name: str, found: np.ndarray, kind: str | None, leaf: Any) -> Any:
    """A leaf from its array in the file, of the type that it has in this run.

    Args:
        kind: the type it had; None in files of earlier releases, which kept keys' numbers,
            rounded float64 and left the types of bytes out.
    """
    want = np.asarray(_plain(leaf))
    type_ = _type(leaf, want)
    if kind is None:
        if found.dtype.kind == "V" and found.dtype.itemsize == want.dtype.itemsize:
            found = found.view(want.dtype)
        kind = type_ if found.dtype in (want.dtype, jax.dtypes.canonicalize_dtype(want.dtype)) else str(found.dtype)
    elif want.dtype.isbuiltin != 1 and kind == type_:
        found = _viewed(found, kind)
    if found.shape != want.shape or kind != type_:
        raise KaynError(
            f"checkpoint {path}: {name} has shape {found.shape} and type {kind}, but this run has {want.shape} and "
            f"{type_}. {REMEDY}"
        )
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, bool | int | float | complex):
        return found.item()
    return found.astype(want.dtype) if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(found)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).strip("'\"") or type(error).__name__
