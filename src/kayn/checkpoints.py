"""Checkpoints: a pytree of arrays as one file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import KaynError

NOTES = "notes"


def save(path: str | os.PathLike[str], tree: Any, notes: Any = None) -> None:
    """Write the leaves of a pytree of arrays, and what JSON can hold, to a `.npz` file; an interrupted call leaves the file that was there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    named = {
        jax.tree_util.keystr(where): np.asarray(jnp.asarray(_plain(leaf)))
        for where, leaf in jax.tree.leaves_with_path(tree)
    }
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **cast("dict[str, Any]", {NOTES: np.asarray(json.dumps(notes)), **named}))
    part.replace(target)


def load(path: str | os.PathLike[str], like: Any) -> tuple[Any, Any]:
    """Read what `save` has written: the tree, whose structure, shapes and types are those of `like`, and the notes.

    Raises:
        KaynError: the file holds a tree of another form.
    """
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    notes = json.loads(str(stored.pop(NOTES)))
    places, form = jax.tree.flatten_with_path(like)
    names = [jax.tree_util.keystr(where) for where, _ in places]
    odd = sorted(set(names) ^ set(stored))
    if odd:
        where = "the file" if odd[0] in stored else "this run"
        raise KaynError(
            f"checkpoint {path}: {odd[0]} is only in {where}; it belongs to another model, guide or optimiser. Give another path, or remove the file"
        )
    leaves = []
    for name, (_, leaf) in zip(names, places, strict=True):
        want, found = jnp.asarray(_plain(leaf)), stored[name]
        if found.shape != want.shape or found.dtype != want.dtype:
            raise KaynError(
                f"checkpoint {path}: {name} has shape {found.shape} and type {found.dtype}, but this run has {want.shape} and {want.dtype}. Give "
                "another path, or remove the file"
            )
        leaves.append(
            jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else jnp.asarray(found)
        )
    return jax.tree.unflatten(form, leaves), notes


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
