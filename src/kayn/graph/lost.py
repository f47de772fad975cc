"""Which line of the user's model makes it impossible to tell the elements of a latent apart."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpyro
from jax.extend.core import JaxprEqn

from kayn.graph.types import MIXED

OWN = str(Path(__file__).parents[1])
LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (jax, jaxlib, numpyro))
LONGEST_LINE = 80


def note_lost(
    lost: dict[tuple[str, str], str], eqn: JaxprEqn, inputs: Iterable[Mapping], outputs: Iterable[Any]
) -> None:
    """Keep the line of an equation that is the first to mix elements of a latent which came to it apart.

    Args:
        lost: lines by latent and plate, which are added to.
        inputs: annotations of its operands.
        outputs: annotations of its results, or expressions.
    """
    before = list(inputs)
    for out in outputs:
        for key, value in out.items() if isinstance(out, Mapping) else ():
            if value is MIXED and key not in lost and not any(a.get(key) is MIXED for a in before):
                lost[key] = line_of(eqn)


def line_of(eqn: JaxprEqn) -> str:
    """The line of the model that an equation comes from, as text; empty where it is no line of the user's."""
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        if frame.file_name.startswith(OWN):
            break  # what is further out has called kayn
        if not frame.file_name.startswith((*LIBRARIES, "<frozen")):
            code = linecache.getline(frame.file_name, frame.line_num).strip()
            shown = f": {code[:LONGEST_LINE]}" if code else ""
            return f"{Path(frame.file_name).name} line {frame.line_num}{shown}"
    return ""
