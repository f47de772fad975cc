"""Discrete values that a guide never draws although they carry weight in the model: they would be missing from the evidence, as those
outside of a guide's support are (`kayn.reach`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import GuideError
from kayn.graph.slices import slice_outputs
from kayn.graph.supports import BOX
from kayn.graph.trace import MASK, Program
from kayn.reach import DRAWS

MOST = 32
"""Values up to which all of a latent's are tried."""
NOTHING = math.log(2e-7)
"""Log probabilities below stand for zero, which NumPyro raises to the least that float32 tells from it below one."""
LEAST = math.log(1e-3)
"""How much less than the best draws of the guide a value may weigh so that it is not missed."""


def refuse_values_never_drawn(
    guide: Program, model: Program, known: tuple[Sequence[Any], Sequence[Any]], draw: Callable[[int], Mapping[str, Any]]
) -> None:
    """Look for values with probability zero in the guide that weigh as much in the model as what it draws, unless they depend on traced values.

    Args:
        known: constants and inputs of guide and model, None in the places of latents.
        draw: values of all guide sites in so many runs: [runs, *shape].

    Raises:
        GuideError: there is one.
    """
    drawn: dict[str, Any] = {}
    for name in guide.latents:
        values = _values(guide, model, name)
        if values and (density := _function(guide, [name], known[0])) is not None:
            with jax.ensure_compile_time_eval():
                drawn = drawn or dict(draw(DRAWS))
                _refuse(name, values, density, _function(model, _factors(model), known[1]), drawn)


def _values(guide: Program, model: Program, name: str) -> range | None:
    """All values of a latent whose probabilities can be compared one by one; those of masked ones may be absent."""
    mine, yours = guide.sites[name], model.sites.get(name)
    if yours is None or mine.kind != "sample" or mine.delta or not mine.discrete or yours.steps is not None:
        return None
    box = yours.support
    if MASK + name in model.outputs or box is None or box.kind != BOX or not box.whole:
        return None
    if box.lower is None or box.upper is None or not math.isfinite(box.upper) or box.upper - box.lower >= MOST:
        return None
    return range(int(box.lower), int(box.upper) + 1)


def _factors(model: Program) -> list[str]:
    return [n for n in model.outputs if n in model.sites and model.sites[n].kind == "sample"]


def _function(
    program: Program, names: Sequence[str], known: Sequence[Any]
) -> Callable[[Mapping[str, Any]], Any] | None:
    """The sum of some outputs, which are log densities, or one of them as it is; None where they depend on values that are not known."""
    run, used = slice_outputs(program.jaxpr, [program.outputs.index(n) for n in names])
    inputs = dict(enumerate(program.inputs, len(program.consts)))
    if any(known[i] is None or isinstance(known[i], jax.core.Tracer) for i in used if i not in inputs):
        return None

    def evaluate(values: Mapping[str, Any]) -> Any:
        absent = {
            n: jnp.zeros(program.sites[n].shape, program.sites[n].dtype) for n in program.latents if n not in values
        }
        given = program.with_aliases({**absent, **values})
        out = run(*(given[inputs[i]] if i in inputs else known[i] for i in used))
        return out[0] if len(out) == 1 else sum(jnp.sum(v) for v in out)

    return evaluate


def _refuse(
    name: str,
    values: range,
    density: Callable[[Mapping[str, Any]], Any],
    joint: Callable[[Mapping[str, Any]], Any] | None,
    drawn: Mapping[str, Any],
) -> None:
    for value in values:
        log_q = np.asarray(jax.vmap(density)({**drawn, name: jnp.full_like(drawn[name], value)}))
        never = np.argwhere(log_q < NOTHING)
        if joint is None or not len(never):
            continue
        run, *element = map(int, never[0])
        one = {n: v[run] for n, v in drawn.items()}
        there = float(joint({**one, name: one[name].at[tuple(element)].set(value)}))
        if there > float(jnp.max(jax.vmap(joint)(drawn))) + LEAST:
            raise GuideError(
                f"guide site {name!r} has probability zero at {value}, which the model gives weight. What the guide never draws would be "
                "missing from the evidence; keep probabilities above zero, e.g. mix in a little of a uniform law, or use guide=None"
            )
