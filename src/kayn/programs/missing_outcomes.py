"""Missing outcomes: NaN among the data of an observed site, and what is hidden in masked arrays.

An outcome that no other site reads says nothing where it is missing: its rows are left out of its likelihood, which is
what summing over it would do, and it can be drawn afterwards. One that others read is a latent where it is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.extend.core import Var
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.errors import DataError, DataWarning, warn
from kayn.programs.data import as_data, explained, listed
from kayn.programs.given import Given
from kayn.programs.sites import placeholder
from kayn.support.arrays import Array, PyTree
from kayn.support.numpyro_internals import is_in_scan, is_told_afterwards

UNOBSERVED, OBSERVED = "_unobserved", "_observed"
"""Endings of the sites that stand for an imputed one, as NumPyro's `obs_mask` has them."""


class Gaps(Messenger):
    """A program in which some observed sites may have NaN among their data.

    Args:
        data: of these sites, with NaN: [*batch, *event].
        latents: those of these sites that are latents where they are missing.
    """

    def __init__(self, fn: Callable, data: Mapping[str, np.ndarray], latents: Collection[str]):
        super().__init__(fn)
        self.data, self.latents = dict(data), frozenset(latents)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the program."""
        return inspect.signature(self.fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Leave missing rows out of an observed site, or draw them."""
        if msg["type"] != "sample" or not msg["is_observed"] or msg["name"] not in self.data:
            return
        if is_told_afterwards(msg) or not jnp.issubdtype(jnp.result_type(msg["value"]), jnp.inexact):
            return
        name, fn, value = msg["name"], msg["fn"], jnp.asarray(msg["value"])
        there = ~jnp.isnan(value)
        seen = there.all(_events(value, fn.event_dim))
        value = _without_gaps(fn, value)
        if name not in self.latents:
            msg["fn"], msg["value"] = fn.mask(seen), value
            return
        drawn = numpyro.sample(name + UNOBSERVED, fn, infer=dict(msg["infer"]))
        told = numpyro.sample(name + OBSERVED, fn.mask(seen), obs=value, infer=dict(msg["infer"]))
        rows = seen.reshape(seen.shape + (1,) * fn.event_dim)
        msg["type"], msg["value"] = "deterministic", jnp.where(rows, told, drawn)
        for key in set(msg) - {"type", "name", "value", "cond_indep_stack"}:
            del msg[key]


def _without_gaps(fn: Any, value: Array) -> Array:
    """Data with possible ones in the gaps; whole numbers, which floats stood for, as such."""
    value = jnp.where(jnp.isnan(value), fn.support.feasible_like(value), value)
    return value.astype(jnp.int32) if getattr(fn.support, "is_discrete", False) else value


def filled(value: Any) -> Any:
    """An argument with NaN in the place of what masked arrays hide."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        return np.where(np.ma.getmaskarray(value), np.nan, value.data)
    if type(value) in (list, tuple):
        return type(value)(map(filled, value))
    return {k: filled(v) for k, v in value.items()} if type(value) is dict else value


def with_gaps(fn: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree], how: str) -> Callable:
    """A program that takes missing outcomes as `how` says: the same program where none are missing.

    Args:
        how: "drop" leaves them out, "impute" draws them as well, "error" leaves the program as it is.

    Raises:
        DataError: outcomes that others read are to be dropped, are missing in part of an event, or in a loop.
    """
    if how == "error":
        return fn
    data, events = _missing(fn, args, kwargs, params)
    if not data:
        return fn
    read = _read_elsewhere(fn, args, kwargs, params, data)
    for name, values in data.items():
        _refuse(name, np.isnan(values), events[name], name in read, how)
    return Gaps(fn, data, read)


def _events(value: Array, event_dim: int) -> tuple[int, ...]:
    """The dimensions of an event."""
    return tuple(range(value.ndim - event_dim, value.ndim))


def _trace(fn: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]) -> dict[str, Any]:
    program = handlers.substitute(Given(fn, params=params), substitute_fn=placeholder)
    return handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(*args, **kwargs)


def _missing(
    fn: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The data of those sites that have NaN among them, [*batch, *event], and the dimensions of events.

    Raises:
        DataError: they are those of a site in a loop.
    """
    events: dict[str, int] = {}
    loops: set[str] = set()

    def look() -> dict[str, Array]:
        data: dict[str, Array] = {}

        def note(msg: dict[str, Any]) -> Array:
            data[msg["name"]] = jnp.asarray(msg["value"])
            events[msg["name"]] = msg["fn"].event_dim
            if is_in_scan(msg):
                loops.add(msg["name"])
            return _without_gaps(msg["fn"], data[msg["name"]])

        _trace(_Data(fn, note), args, kwargs, params)
        return data

    try:
        found = {n: np.asarray(v) for n, v in jax.jit(look)().items()}
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        if (told := explained(error, fn, args, kwargs)) is error:
            raise
        raise told from error
    missing = {n: v for n, v in found.items() if np.isnan(v).any()}
    if inside := next((n for n in missing if n in loops), ""):
        where = listed(np.argwhere(np.isnan(missing[inside])))
        raise DataError(
            f"observed site {inside!r} has NaN {where} and stands in a loop, where missing= does not "
            "reach; write numpyro.handlers.mask(mask=...) around it in the model"
        )
    return missing, events


class _Data(Messenger):
    """A program whose data, as far as they are floats, are shown to a function, which gives others in their place."""

    def __init__(self, fn: Callable, change: Callable[[dict[str, Any]], Array]):
        super().__init__(fn)
        self.change = change

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and msg["value"] is not None:
            msg["value"] = as_data(msg["name"], msg["value"])
            if jnp.issubdtype(jnp.result_type(msg["value"]), jnp.inexact):
                msg["value"] = self.change(msg)


def _read_elsewhere(
    fn: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree], data: Mapping[str, np.ndarray]
) -> set[str]:
    """Those of some observed sites whose values other sites, or deterministic values, are computed from."""

    def rest(data: dict[str, Array]) -> list[Any]:
        program = _Data(fn, lambda msg: _without_gaps(msg["fn"], data.get(msg["name"], msg["value"])))
        trace = _trace(program, args, kwargs, params)
        made = [s["fn"] for s in trace.values() if s["type"] == "sample"]
        made += [s["value"] for n, s in trace.items() if s["type"] in ("sample", "deterministic") and n not in data]
        return [x for x in jax.tree.leaves(made) if isinstance(x, jax.Array)]

    jaxpr = jax.make_jaxpr(rest)(dict(data)).jaxpr
    found = set()
    for name, start in zip(sorted(data), jaxpr.invars, strict=True):
        reached = {start}
        for eqn in jaxpr.eqns:
            if any(v in reached for v in eqn.invars if isinstance(v, Var)):
                reached |= {*eqn.outvars}
        if any(v in reached for v in jaxpr.outvars if isinstance(v, Var)):
            found.add(name)
    return found


def _refuse(name: str, gaps: np.ndarray, event_dim: int, read: bool, how: str) -> None:
    if how == "drop" and read:
        raise DataError(
            f"observed site {name!r} has {gaps.sum()} missing values, {listed(np.argwhere(gaps))}, and the model "
            "computes other sites from them, so that they cannot be left out; draw them, missing='impute', or drop "
            "these rows of all arguments"
        )
    whole, events = gaps.all(_events(gaps, event_dim)), gaps.any(_events(gaps, event_dim))
    partly = np.argwhere(events & ~whole)
    if len(partly) and how == "impute":
        raise DataError(
            f"observed site {name!r} has rows that are missing in part, {listed(partly)}, but their distribution is "
            "one of whole rows; pass missing='drop' to leave these rows out, or write the model with a site for each "
            "part"
        )
    if len(partly):
        warn(
            f"observed site {name!r}: {len(partly)} rows are missing in part, {listed(partly)}, and left out whole, as "
            "their distribution is one of whole rows",
            DataWarning,
        )
