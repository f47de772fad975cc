"""Which line of the user's model makes it impossible to tell the elements of a latent apart."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Lost:
    """What mixes elements of a latent first: the line of the model, empty where it is none of the user's, and the
    primitive."""

    line: str
    primitive: str = ""

    @property
    def advice(self) -> str:
        """A form that would keep the elements apart; empty where none is known."""
        return ADVICE.get(self.primitive, "")


RUNNING = (
    "a running sum reads every element before: draw the states themselves, as a chain with "
    "numpyro.contrib.control_flow.scan or dist.GaussianRandomWalk"
)
LOOP = (
    "an entry reads several steps of it: where a state follows from the one or two before it, draw the states in the "
    "loop itself, with numpyro.contrib.control_flow.scan"
)
TOTAL = (
    "a sum or mean over the plate reads all of it: where rows each read one element, look that up, z[group]; instead "
    "of subtracting a mean, give the mean a latent of its own"
)
ADVICE = {
    **dict.fromkeys(("cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin"), RUNNING),
    **dict.fromkeys(("scan", "triangular_solve"), LOOP),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "dot_general"), TOTAL),
    **dict.fromkeys(
        ("gather", "dynamic_slice", "scatter", "scatter-add"),
        "an index that depends on latents, or that is traced by jax.jit, may name any element: pass it as data",
    ),
    "while": "a loop that goes on until all elements are done: map one element's loop by jax.vmap",
    **dict.fromkeys(
        ("sort", "argmax", "argmin", "top_k"), "an order of elements depends on all of them: order them in the prior"
    ),
}
"""Forms to write instead, by primitive."""


def note_lost(
    lost: dict[tuple[str, str], Lost], eqn: JaxprEqn, inputs: Iterable[Mapping], outputs: Iterable[Any]
) -> None:
    """Keep the line of an equation that is the first to mix elements of a latent which came to it apart.

    Args:
        lost: by latent and plate, which are added to.
        inputs: annotations of its operands.
        outputs: annotations of its results, or expressions.
    """
    before = list(inputs)
    for out in outputs:
        for key, value in out.items() if isinstance(out, Mapping) else ():
            if value is MIXED and key not in lost and not any(a.get(key) is MIXED for a in before):
                lost[key] = Lost(line_of(eqn), eqn.primitive.name)


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
