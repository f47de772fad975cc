"""What is missing from the data that a model was given: all of it, numbers in a covariate, groups of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from numpyro import handlers

from kayn.errors import DataError, DataWarning, warn
from kayn.graph.expressions import Wrapped
from kayn.programs.data import arguments, listed
from kayn.programs.given import Given
from kayn.programs.outputs import Part
from kayn.programs.seeding import seeded
from kayn.programs.sites import placeholder
from kayn.programs.trace import Program
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.names import whole
from kayn.xla.compilation import compiled_now, is_traced

TRIES = 3
"""Draws from the prior at which a density has to be no number before a covariate is blamed."""


def warn_if_nothing_observed(program: Program, fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Warn where a model has no data, so that its posterior is its prior: no observed site, none with a row,
    or all of them masked."""
    if any(is_observed(program, n) for n, s in program.sites.items() if s.kind == "sample" and s.observed):
        return
    empty = [n for n, value in arguments(fn, args, kwargs) if value is None]
    hint = (
        f"argument {', '.join(map(repr, empty))} is None" if empty else "obs= is given nowhere, or all of it is masked"
    )
    warn(
        f"the model has no observed site under these arguments, so its posterior is its prior ({hint}). Pass the "
        "data, e.g. args=(x, y), if that is not meant",
        DataWarning,
    )


def refuse_missing(
    program: Program, fn: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]
) -> None:
    """Refuse arrays with NaN or infinite values, where they make a density no number.

    Values that a mask hides, or that no density reads, may be anything. Each suspect is replaced by zeros in its
    missing places: if that mends a density that was broken at every one of a few draws from the prior, it is named.

    Raises:
        DataError: there is such an array.
    """
    suspects = [i for i, c in enumerate(program.consts) if is_broken(c)]
    if not suspects or is_traced((program.consts, params)):
        return
    broken_with = _look(program, fn, args, kwargs, params, suspects)
    if broken_with is None:
        return
    broken = broken_with(())
    for i in suspects if any(where.any() for where in broken.values()) else ():
        mended = broken_with((i,))
        site = next((n for n, where in broken.items() if (where & ~mended[n]).any()), None)
        if site is not None:
            raise DataError(_complaint(np.asarray(program.consts[i]), whole(site), fn, args, kwargs))


def refuse_missing_groups(wrapped: Sequence[Wrapped], fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse negative indices that a model was given: they are how tables write a missing group,
    and would be read from the end.

    Raises:
        DataError: an argument of the model has some. Those that the model makes itself, or has from elsewhere,
            get a warning.
    """
    for index in wrapped:
        rows = np.argwhere(index.values < 0)
        name = argument_of(index.values, fn, args, kwargs)
        who = f"argument {name!r}" if name else "an index array that the model uses"
        text = (
            f"{who} reads latent {index.latent!r} at index {int(index.values[tuple(rows[0])])} along plate "
            f"{index.plate!r}, in {len(rows)} of {index.values.size} rows, {listed(rows)}. Tables write -1 for a "
            "missing group, but indexing counts from the end. Drop these rows or give them a group; if the end is "
            f"meant, pass jnp.where(i < 0, i + {index.size}, i)"
        )
        if name:
            raise DataError(text)
        warn(text, DataWarning)


def is_observed(program: Program, name: str) -> bool:
    """Whether data of an observed site count: no mask that is known hides all of them."""
    if Part.MASK.of(name) not in program.outputs:
        return True
    run, used = program.sliced([Part.MASK.of(name)])
    if any(i >= len(program.consts) for i in used) or is_traced([program.consts[i] for i in used]):
        return True  # not known here
    with jax.ensure_compile_time_eval():
        mask = run(*(program.consts[i] for i in used))[0]
        return is_traced(mask) or bool(np.asarray(mask).any())


def is_broken(const: Array) -> bool:
    """Whether it is an array of which a number is known to be NaN or infinite."""
    if (
        isinstance(const, jax.core.Tracer)
        or not isinstance(const, jax.Array | np.ndarray | float)
        or not jnp.issubdtype(jnp.result_type(const), jnp.floating)
    ):
        return False
    return not np.isfinite(np.asarray(const)).all()


def _mended(array: Array) -> Array:
    return jnp.where(jnp.isfinite(array), array, 0)


def _look(
    program: Program,
    fn: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, PyTree],
    suspects: Sequence[int],
) -> Callable[[Sequence[int]], dict[str, np.ndarray]] | None:
    """What tells, once some suspects are mended, where densities are NaN or infinite at every one of a few prior draws.

    It is compiled once: distributions do not look at their parameters within a program. None if arguments are traced.
    """
    names = [n.site for n in program.outputs if n.part is Part.DENSITY and set(suspects) & set(program.sliced([n])[1])]
    subsample = {n: np.arange(program.sites[n].shape[0], dtype=np.int32) for n in program.subsamples}

    def one(consts: Sequence[Array], key: KeyArray) -> dict[str, Array]:
        model = handlers.substitute(Given(fn, params=params), substitute_fn=placeholder)
        trace = handlers.trace(seeded(model, key)).get_trace(*args, **kwargs)
        # a latent whose prior is broken is drawn as NaN; any value will do
        values = {n: _mended(trace[n]["value"]).astype(program.sites[n].dtype) for n in program.latents}
        leaves = program.leaves(program.with_aliases(values), params, subsample)
        outputs = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*leaves)
        found = dict(zip(program.outputs, outputs, strict=True))
        return {n: ~jnp.isfinite(found[Part.DENSITY.of(n)]) for n in names}

    def look(consts: Sequence[Array], which: Array) -> dict[str, Array]:
        keys = jax.random.split(as_key(0), TRIES)
        own = [jnp.where(which[i], _mended(c), c) if i in suspects else c for i, c in enumerate(consts)]
        broken = jax.lax.map(lambda key: one(own, key), keys)
        return {n: jnp.all(where, 0) for n, where in broken.items()}

    consts, places = list(program.consts), np.arange(len(program.consts))
    compiled = compiled_now(look, consts, np.isin(places, ()))
    if compiled is None:
        return None
    return lambda mended: {n: np.asarray(w) for n, w in compiled(consts, np.isin(places, mended)).items()}


def _complaint(const: np.ndarray, site: str, fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> str:
    rows = np.argwhere(~np.isfinite(const))
    name = argument_of(const, fn, args, kwargs)
    who = f"argument {name!r} of the model" if name else f"an array of shape {const.shape} that the model uses"
    return (
        f"{who} has {len(rows)} NaN or infinite values of {const.size}, {listed(rows)}, which make the density of "
        f"site {site!r} no number. Drop these rows, fill the gaps or make them latents, or mask the rows with "
        "numpyro.handlers.mask"
    )


def argument_of(array: np.ndarray, fn: Callable, args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """The argument that an array is, up to its precision."""
    for name, value in arguments(fn, args, kwargs):
        if isinstance(value, jax.Array | np.ndarray) and not is_traced(value) and np.shape(value) == array.shape:
            with np.errstate(all="ignore"):
                same = np.asarray(value).astype(array.dtype)
            if np.array_equal(same, array, equal_nan=array.dtype.kind == "f"):
                return name
    return None
