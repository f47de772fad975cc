"""Programs without calls, in which what may be a recursion of innovations stands by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph.products import with_sums_of_logs
from kayn.graph.recursions import with_recursions
from kayn.graph.split_loops import with_split_loops
from kayn.graph.totals import run_flat
from kayn.programs.calls import called
from kayn.programs.interpret import Value, interpreted
from kayn.support.arrays import Array


def flattened(jaxpr: Jaxpr, starts: Sequence[int], added: Sequence[int] = ()) -> ClosedJaxpr:
    """A program without calls, with the recursions of loops by themselves that are given some of its results; its
    inputs are the constants and inputs of another.

    Args:
        starts: places of these results.
        added: those of them whose sums are written as loops, the state of which is the sum.
    """
    avals = [v.aval for v in (*jaxpr.constvars, *jaxpr.invars)]
    flat = with_sums_of_logs(jax.make_jaxpr(lambda *x: run_flat(jaxpr, x))(*avals))
    loops = [e for e in flat.jaxpr.eqns if e.primitive.name == "scan"]
    if any(e.params["num_carry"] > 1 for e in loops):
        flat = _changed(flat, with_split_loops, starts)
    if loops:
        apart = _changed(flat, with_recursions, starts)
        flat = jax.make_jaxpr(lambda *x: run_flat(apart.jaxpr, [*apart.consts, *x]))(*avals)
    return _changed(flat, _with_loops, added) if added else flat


def _changed(closed: ClosedJaxpr, change: Callable[..., list[Array]], starts: Sequence[int]) -> ClosedJaxpr:
    """A program, run in another way behind some of its results, of which these are the places."""
    vectors = [closed.jaxpr.outvars[i] for i in starts]
    return jax.make_jaxpr(lambda *x: change(closed.jaxpr, [*closed.consts, *x], vectors))(*closed.in_avals)


def opened(closed: ClosedJaxpr) -> Jaxpr:
    """A program whose constants are inputs."""
    jaxpr = closed.jaxpr
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    return Jaxpr([], inputs, jaxpr.outvars, jaxpr.eqns, jaxpr.effects, jaxpr.debug_info)


def within(eqn: JaxprEqn) -> list[JaxprEqn]:
    """An equation, or those of the program that it calls."""
    call = called(eqn)
    return [eqn] if call is None else [e for inner in call[0].eqns for e in within(inner)]


def is_free(jaxpr: Jaxpr, variables: Sequence[Any], latents: Collection[Any]) -> bool:
    """Whether variables are made of no latents or other draws."""
    wanted = {v for v in variables if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            if any(e.primitive.name.startswith("random_") for e in within(eqn)):
                return False
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return not wanted.intersection(latents)


def sums_of(jaxpr: Jaxpr, start: Any) -> set[Any]:
    """The operands of sums over earlier entries that a variable is in."""
    reached, found = {start}, set()
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
            if is_sum(eqn):
                found.add(eqn.invars[0])
    return found


def is_sum(eqn: JaxprEqn) -> bool:
    """Whether an equation adds up entries from the first on."""
    return eqn.primitive.name == "cumsum" and not eqn.params["reverse"]


def _with_loops(jaxpr: Jaxpr, inputs: Sequence[Array], starts: Collection[Any]) -> list[Array]:
    """Run a program with the sums of some of its variables as loops."""
    operands = {v for start in starts for v in sums_of(jaxpr, start)}

    def as_loop(eqn: JaxprEqn, value: Value) -> list[Array] | None:
        mine = is_sum(eqn) and eqn.invars[0] in operands
        return [_loop(value(eqn.invars[0]), eqn.params["axis"])] if mine else None

    return interpreted(jaxpr, inputs, as_loop)


def _loop(added: Array, axis: int) -> Array:
    def step(state: Array, now: Array) -> tuple[Array, Array]:
        new = state + now
        return new, new

    along = jnp.moveaxis(added, axis, 0)
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(along[0]), along)[1], 0, axis)
