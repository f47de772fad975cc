"""Indices of plates that a handler of the user's has set, as `numpyro.handlers.substitute(model, {"rows": [0, 3]})`
does.

They hold for model and guide together, whichever of the two has them: in draws, dreams,
states of modules and whatever the model is run on again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpyro import handlers

from kayn.errors import GuideError
from kayn.factors.elementwise import of_one_particle
from kayn.programs.given import FIXED, Given
from kayn.programs.outputs import Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import Program
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.xla.compilation import is_traced


def fixed_names(program: Program) -> list[str]:
    """Plates of a program whose indices are set in the program itself."""
    return [n for n in program.sites if Part.ROWS.of(n) in program.outputs]


def fixed_rows(model: tuple[Program, Sequence[Array]], guide: tuple[Program, Sequence[Array]]) -> dict[str, Array]:
    """The indices by plate, int32 [M].

    Args:
        model, guide: each with the constants and inputs of its jaxpr,
            of which those of latents and subsamples are not read.

    Raises:
        GuideError: both have them, and they are known to differ.
    """
    found: list[dict[str, Array]] = []
    for program, inputs in (guide, model):
        names = fixed_names(program)
        run = of_one_particle(program, [Part.ROWS.of(n) for n in names], {}, inputs) if names else None
        found.append(dict(zip(names, run({}), strict=True)) if run else {})
    return _agreed(*found)


def fixed_rows_of(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, PyTree],
    key: KeyArray,
) -> dict[str, Array]:
    """As `fixed_rows`, of programs that have not been traced."""

    def of(fn: Callable) -> dict[str, Array]:
        if not any(s.fixed for s in inspect_sites(fn, args, kwargs, params).values()):
            return {}
        trace = handlers.trace(handlers.seed(Given(fn, params=params), key)).get_trace(*args, **kwargs)
        return {n: s[FIXED] for n, s in trace.items() if FIXED in s}

    return _agreed(of(guide), of(model))


def _agreed(guide: Mapping[str, Array], model: Mapping[str, Array]) -> dict[str, Array]:
    for plate in guide.keys() & model.keys():
        own, other = guide[plate], model[plate]
        if own.shape != other.shape or (not is_traced((own, other)) and (np.asarray(own) != np.asarray(other)).any()):
            raise GuideError(
                f"handlers give plate {plate!r} other indices in the guide than in the model, so that a row would "
                "meet the latent of another; give both the same, or one of them alone"
            )
    return jax.lax.stop_gradient({**guide, **model})
