"""What the reads of a factor demand: an index over a plate that all its latents share, element by element."""

from __future__ import annotations

from functools import partial

from kayn.axes.state import State
from kayn.graph.types import MIXED, Link, Output
from kayn.support.names import whole


def unlike_reads(state: State, output: Output) -> State | None:
    """An axis gives up a plate of which the factor mixes elements, or that it reads unlike the same plate of another.

    Of two that are read unlike, the one that loses fewer combinations.
    """
    links: dict[str, tuple[str, str | Link]] = {}
    for read in output.reads:
        axis = state.as_read(read.latent)
        for plate in axis.scope:
            how = read.of(plate)
            if how == MIXED:
                return state.dropped(state.real(axis), (plate,), _mixture(state, output, read.latent, plate))
            first, known = links.setdefault(plate, (read.latent, how))
            if known != how:
                rivals = [state.real(state.as_read(first)), state.real(axis)]
                least = min(rivals, key=partial(state.loss, plates=(plate,)))
                reason = f"{whole(output.name)} reads {first} and {read.latent} through different indices into {plate}"
                return state.dropped(least, (plate,), reason)
    return None


def _mixture(state: State, output: Output, latent: str, plate: str) -> str:
    """Which factor mixes elements of a latent, and where in the model it does."""
    lost = state.case.structure.nodes.lost
    lines = {p: where.line for (name, p), where in lost.items() if name == latent and where.line}
    line = lines.get(plate) or next(iter(lines.values()), "")
    what = f"{whole(output.name)} reads several elements of {latent} at once"
    return f"{what}, by {line}" if line else what
