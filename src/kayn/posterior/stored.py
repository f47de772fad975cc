"""Fits and posteriors as files: arrays and JSON, to the same bits, and never executed.

A file holds the arguments of the model, what was found, and the options with which the problem was built; not the model
itself, which is code. `kayn.load` builds the problem again from the model it is given, and refuses another one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpyro

from kayn import checkpoints
from kayn.errors import KaynError
from kayn.posterior.call import MISSING, Call, Origin
from kayn.programs.missing_outcomes import with_gaps
from kayn.programs.sites import inspect_sites
from kayn.programs.tables import Labels
from kayn.programs.trace import trace_program
from kayn.support.arrays import PyTree
from kayn.support.packing import pack, unpack
from kayn.support.validate import shown

FORM = 1
"""Of the files that are written."""
HEX = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds.

    Attributes:
        kind: "fit", "posterior" or "chains".
        call: the arguments, with the model that was given to read it.
        found: results by name.
    """

    path: str
    kind: str
    call: Call
    found: Mapping[str, Any]

    def like(self, name: str, form: PyTree) -> Any:
        """A result, if its arrays are of the form that this model gives.

        Raises:
            KaynError: they are not.
        """
        value = self.found[name]
        want, have = (jax.tree.leaves_with_path(tree) for tree in (form, value))
        if jax.tree.structure(form) != jax.tree.structure(value):
            raise self.refusal(f"{name} has other parts under this model")
        for (where, leaf), (_, own) in zip(want, have, strict=True):
            if (leaf.shape, leaf.dtype) != (own.shape, own.dtype):
                place = name + jax.tree_util.keystr(where)
                raise self.refusal(f"{place} is {shown(own)}, but {shown(leaf)} under this model")
        return value

    def refusal(self, why: str) -> KaynError:
        """What to raise where the file does not fit."""
        return KaynError(f"{self.path} does not hold a {self.kind} of this model: {why}")


NOTES = {"double": bool, "entry": str, "guide": bool, "model": dict}
PARTS = {"args": tuple, "kwargs": dict, "settings": dict, "found": dict, "labels": dict}
"""What a file has to hold, and of which type."""


def save(path: str | os.PathLike[str], kind: str, call: Call, params: Mapping, found: Mapping[str, Any]) -> None:
    """Write results of a model to a file.

    Args:
        params: values of the model's and guide's parameters.
        found: results by name.

    Raises:
        KaynError: the file cannot be written, or an argument is nothing that it can hold.
    """
    origin = call.origin
    if origin is None:
        raise KaynError(f"this {kind} does not know how it was made, so that it cannot be saved; use kayn.fit")
    arrays: dict[str, Any] = {}
    content = {"args": call.args, "kwargs": dict(call.kwargs), "labels": vars(call.labels)}
    content |= {"settings": origin.settings, "found": found}
    packed = {name: pack(name, value, arrays) for name, value in content.items()}
    notes = {
        "kayn": kind,
        "form": FORM,
        "double": jax.config.jax_enable_x64,
        "entry": origin.entry,
        "guide": origin.guide is not None,
        "model": described(call, params),
        **packed,
    }
    checkpoints.save(path, arrays, notes)


def read(path: str | os.PathLike[str], model: Callable, guide: Callable | None) -> Stored:
    """Read a file that `save` has written, if it is of this model.

    Raises:
        KaynError: it cannot be read, holds something else, or was written for another model.
    """
    arrays, notes = checkpoints.arrays_of(path)
    kind = notes.get("kayn") if isinstance(notes, dict) else None
    if kind not in ("fit", "posterior", "chains") or notes.get("form") != FORM:
        raise KaynError(f"{path} holds no fit and no posterior that this release of kayn can read")
    _refuse_others(path, notes, NOTES)
    if notes["double"] != jax.config.jax_enable_x64:
        has, now = ("float64", "float32") if notes["double"] else ("float32", "float64")
        raise KaynError(f"{path} was written with {has} numbers, but JAX is set to {now} (jax_enable_x64)")
    if notes["guide"] != (guide is not None):
        what = "with a guide; pass it, kayn.load(path, model, guide)" if notes["guide"] else "without a guide"
        raise KaynError(f"{path}: its {kind} was made {what}")
    try:
        held = {n: unpack(notes[n], arrays) for n in PARTS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KaynError(f"{path} is damaged: {error}") from error
    _refuse_others(path, held, PARTS)
    args, kwargs, settings, found, labels = (held[n] for n in PARTS)
    _refuse_others(path, found, {"params": dict})
    model = with_gaps(model, args, kwargs, found["params"], settings.get(MISSING, "error"))
    call = Call(model, args, kwargs, Origin(notes["entry"], guide, settings), Labels(**labels))
    stored = Stored(str(path), kind, call, found)
    _refuse_other(stored, notes["model"], found["params"])
    return stored


def _refuse_others(path: str | os.PathLike[str], held: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse a file in which a part is missing, or is something else than `save` writes."""
    for name, kind in kinds.items():
        if not isinstance(held.get(name), kind):
            raise KaynError(f"{path} is damaged: {name!r} is {shown(held.get(name))}, not a {kind.__name__}")


def described(call: Call, params: Mapping) -> dict[str, Any]:
    """A model under its arguments, as JSON: its sites, and digests of its program and of all its numbers."""
    sites = inspect_sites(call.model, call.args, dict(call.kwargs), params)
    program = trace_program(call.model, call.args, dict(call.kwargs), params, sites)
    text = HEX.sub("", str(program.jaxpr))
    return {
        "sites": {
            n: f"{'observed ' if s.observed else ''}{s.kind} {s.family} {list(s.shape)} {s.dtype}".replace("  ", " ")
            for n, s in sites.items()
            if not s.added
        },
        "releases": [jax.__version__, numpyro.__version__],
        "program": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        "numbers": checkpoints.fingerprint(program.consts),
    }


def _refuse_other(stored: Stored, was: Mapping[str, Any], params: Mapping) -> None:
    try:
        now = described(stored.call, params)
    except KaynError:
        raise
    except Exception as error:
        raise stored.refusal(f"called with the arguments in the file, it fails ({error})") from error
    _refuse_others(stored.path, was, {"sites": dict, "releases": list, "program": str, "numbers": str})
    for name in {**was["sites"], **now["sites"]}:
        old, new = (side["sites"].get(name, "nothing") for side in (was, now))
        if old != new:
            raise stored.refusal(f"site {name!r} was {old}, but is {new}")
    if was["numbers"] != now["numbers"]:
        raise stored.refusal("it has the same sites, but other numbers: the data that it refers to have changed")
    # other releases may write the same program in other words
    if was["releases"] == now["releases"] and was["program"] != now["program"]:
        raise stored.refusal("it has the same sites, but computes something else, such as another prior")
