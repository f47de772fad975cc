"""Data that are known, refused by name where no likelihood can have them: NaN, infinite, or outside of its support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kayn.errors import DataError
from kayn.graph.expressions import Node, Nodes
from kayn.programs.outputs import OutputName, Part
from kayn.programs.trace import Program


def check_data(program: Program, found: Mapping[OutputName, Any], nodes: Nodes) -> None:
    """Refuse data that are known, not masked, and NaN, infinite or outside their likelihood's support."""

    def known(name: OutputName) -> np.ndarray | None:
        node = found.get(name)
        return nodes.concrete(node) if isinstance(node, Node) else None

    for name in program.sites:
        value, inside = known(Part.DATA.of(name)), known(Part.INSIDE.of(name))
        if value is None or (Part.MASK.of(name) in found and known(Part.MASK.of(name)) is None):
            continue
        finite = np.isfinite(value) if np.issubdtype(value.dtype, np.inexact) else np.ones(value.shape, bool)
        bad = _unmasked(~finite, known(Part.MASK.of(name)))
        if bad.any():
            raise DataError(
                f"observed site {name!r} has {int(bad.sum())} NaN or infinite values of {bad.size}, the first at "
                f"index {_first(bad)}. Drop these rows, or pass missing='drop' to kayn.fit to leave them out, or "
                "missing='impute' to draw them; in a model, numpyro.handlers.mask(mask=jnp.isfinite(y)) leaves them out"
            )
        density = known(Part.DENSITY.of(name))
        if density is not None and np.issubdtype(density.dtype, np.inexact) and np.isposinf(density).any():
            bad = np.isposinf(density)
            raise DataError(
                f"observed site {name!r} has {int(bad.sum())} values of {bad.size} at which its log density is +inf, "
                f"the first at index {_first(bad)}: a {program.sites[name].family} has a pole there, or its "
                "parameters leave the range of floats. Move these data into the inside of the support, or choose a "
                "likelihood without a pole"
            )
        if inside is None:
            continue
        bad = _unmasked(~inside & finite, known(Part.MASK.of(name)))
        if bad.any():
            raise DataError(
                f"observed site {name!r} has {int(bad.sum())} values of {bad.size} outside the support of its "
                f"{program.sites[name].family} likelihood, the first at index {_first(bad)}: "
                f"{np.broadcast_to(value, bad.shape)[_first(bad)]}. Correct or drop these rows, or choose a "
                "likelihood that allows them"
            )


def _unmasked(bad: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return bad if mask is None else bad & mask.reshape(mask.shape + (1,) * (bad.ndim - mask.ndim)).astype(bool)


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])
