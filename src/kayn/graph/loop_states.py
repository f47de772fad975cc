"""Which innovations a loop turns into its state, one step after another, and programs in which that state is read.

`kayn.programs.stepping` says what the state is. It is put in the place of the innovations where each value that is made
of it, and of them, reads a single step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxpr_as_fun

from kayn.graph.entries import entries_of, probes, whole_numbers
from kayn.graph.linear import Following, Linear, values_of
from kayn.graph.recursions import is_of_states, is_recursion, slope_of
from kayn.graph.totals import run_flat
from kayn.programs.interpret import Value, interpreted
from kayn.programs.running import Computed, Coordinates
from kayn.programs.slices import equations_of, slice_outputs
from kayn.programs.squeeze import run_squeezed
from kayn.programs.stepping import Stepping
from kayn.support.arrays import Array

ALONG = frozenset(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "scan", "sort", "while"))
"""What reads many steps whatever it is of them."""
START = "innovations"
"""What the vector is called beside the latents."""


def computed_of(
    jaxpr: Jaxpr, values: Mapping[Any, Any], variables: Sequence[Any], earlier: Mapping[Any, str]
) -> Computed | None:
    """Variables as a function of latents; None where one is none of earlier ones."""
    needed, wanted = equations_of(jaxpr.eqns, variables, {*earlier, *values})
    made = {v for e in needed for v in e.outvars}
    latents = [v for v in wanted if v in earlier]
    if any(not earlier[v] for v in latents) or any(v not in made | {*latents, *values} for v in wanted):
        return None

    def run(*given: Array) -> tuple[Array, ...]:
        known = {v: values[v] for v in wanted if v in values} | dict(zip(latents, given, strict=True))
        return tuple(map(jnp.asarray, run_squeezed(needed, known, variables, jaxpr.debug_info)))

    return Computed(tuple(earlier[v] for v in latents), run)


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop of states alone.

    Attributes:
        place: which of its operands the innovations are in.
        given: that operand, for two vectors of innovations.
        slope: what these are multiplied by in it, but for factors: [T, *S].
        axis: the dimension of innovations that steps are, from the last.
    """

    eqn: JaxprEqn
    place: int
    given: Linear
    slope: np.ndarray
    axis: int

    @property
    def fixed(self) -> int:
        """How many of its operands are the same at all steps."""
        return int(self.eqn.params["num_consts"])

    @property
    def order(self) -> int:
        """How many steps before its own a state is made of."""
        return int(self.eqn.params["num_carry"])

    def is_linear(self) -> bool:
        """Whether the state is linear in earlier ones and in what a step is given, together."""
        body = self.eqn.params["jaxpr"]
        own = (*range(self.fixed, self.fixed + self.order), self.place)
        run = jaxpr_as_fun(body)

        def tangent(inputs: Sequence[Array], tangents: Sequence[Array]) -> Array:
            def of(*some: Array) -> Array:
                given = dict(enumerate(inputs)) | dict(zip(own, some, strict=True))
                return run(*(given[i] for i in range(len(inputs))))[0]

            return jax.jvp(of, [inputs[i] for i in own], tangents)[1]

        avals = [v.aval for v in body.jaxpr.invars]
        found = jax.make_jaxpr(tangent)(avals, [avals[i] for i in own])
        flat = jax.make_jaxpr(lambda *x: run_flat(found.jaxpr, [*found.consts, *x]))(*found.in_avals)
        used = {i - len(flat.consts) for i in slice_outputs(flat.jaxpr, [0])[1]}
        return not used & set(own)


def loop_of(jaxpr: Jaxpr, known: Sequence[Any], start: Any, longest: int, opaque: Sequence[Any] = ()) -> Loop | None:
    """The first loop whose states are made of a vector step by step; see `Following` for arguments."""
    following = Following(jaxpr, known, start, whole_numbers(start.aval.shape, 2), opaque)
    for eqn in jaxpr.eqns:
        mine = following.reads(eqn)
        if not mine or following.follow(eqn) or not is_of_states(eqn) or is_recursion(eqn):
            continue
        first = eqn.params["num_consts"] + eqn.params["num_carry"]
        if len(mine) > 1 or mine[0] < first or eqn.params["num_carry"] > longest:
            continue
        if slope_of(eqn.params["jaxpr"], 0, mine) is None:
            continue
        given, shape = following.found[eqn.invars[mine[0]]], eqn.outvars[-1].aval.shape
        # what a loop makes of one innovation several times, as for each of many rows, is no state of its own
        for axis in range(-len(shape), 0) if len(shape) == start.aval.ndim else ():
            vectors = [np.moveaxis(v, axis, 0) for v in following.vector]
            if {shape} == {x.shape for x in (*vectors, *given.numbers)}:
                slopes = [made / v for made, v in zip(given.numbers, vectors, strict=True)]
                if all(np.all(s) and np.allclose(s, slopes[0], rtol=1e-4) for s in slopes):
                    return Loop(eqn, mine[0], given, slopes[0], axis)
    return None


def states_of_loop(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str], longest: int
) -> Coordinates | None:
    """The states that a loop makes of a vector, as coordinates of it; None where there are none, or something reads
    several steps of them.

    Args:
        earlier: latents by variable; those behind the vector are called by an empty name.
        longest: steps before its own that a state may be made of.
    """
    loop = loop_of(jaxpr, known, start, longest, [*earlier])
    if loop is None:
        return None
    states = loop.eqn.outvars[-1]
    both = ((start, loop.axis), (states, -states.aval.ndim))
    if not all(reads_single_steps(jaxpr, known, v, axis, [*earlier], loop.eqn) for v, axis in both):
        return None
    values = values_of(jaxpr, known)
    found = (_stepping(jaxpr, values, start, earlier, loop, scaled) for scaled in (True, False))
    stepping = next((x for x in found if x is not None), None)
    if stepping is None:
        return None
    return Coordinates((None,) * loop.order, axis=loop.axis, span=loop.order, stepping=stepping)


def _stepping(
    jaxpr: Jaxpr, values: Mapping[Any, Any], start: Any, earlier: Mapping[Any, str], loop: Loop, scaled: bool
) -> Stepping | None:
    """The step of a loop.

    Args:
        scaled: whether factors that all innovations have stay outside of it.
    """
    if scaled and (any(f.dims for f in loop.given.factors) or not loop.is_linear()):
        return None
    invars = [*loop.eqn.invars]
    if scaled:
        invars[loop.place] = start
    given = computed_of(jaxpr, values, invars, {**earlier, start: START})
    if given is None or (scaled and not _is_multiple(jaxpr, values, earlier, start, loop)):
        return None
    names = tuple(n for n in given.latents if n != START)

    def operands(*made_of: Array) -> Sequence[Array]:
        by_name = dict(zip((*names, START), made_of, strict=True))
        found = list(given.run(*(by_name[n] for n in given.latents)))
        if scaled:
            found[loop.place] = found[loop.place] * loop.slope.astype(start.aval.dtype)
        return found

    body, shape, along = loop.eqn.params["jaxpr"], start.aval.shape, len(invars) - loop.fixed - loop.order
    found = Stepping(names, operands, body, loop.fixed, loop.order, loop.place, loop.axis, shape, False, scaled)
    avals, rng = {n: v.aval for v, n in earlier.items()}, np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        parts = found.parts([jnp.asarray(rng.uniform(0.3, 0.7, avals[n].shape), avals[n].dtype) for n in names])
        if scaled and np.any(found.sums(parts, jnp.zeros(shape))):
            return None
        alike = all(bool(jnp.allclose(x, x[:1], rtol=1e-4)) for x in (parts[loop.place], parts[-1]))
    return replace(found, alike=alike and along == 1)


def _is_multiple(jaxpr: Jaxpr, values: Mapping[Any, Any], earlier: Mapping[Any, str], start: Any, loop: Loop) -> bool:
    """Whether what a loop is given is a multiple of the innovations, to which nothing is added."""
    given = computed_of(jaxpr, values, [loop.eqn.invars[loop.place]], {**earlier, start: START})
    if given is None:
        return False
    avals, rng = {n: v.aval for v, n in earlier.items()}, np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        zeros = jnp.zeros(start.aval.shape, start.aval.dtype)
        some = [zeros if n == START else jnp.asarray(rng.uniform(0.3, 0.7, avals[n].shape)) for n in given.latents]
        return not np.any(given.run(*some)[0])


def reads_single_steps(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, axis: int, opaque: Sequence[Any], loop: JaxprEqn | None = None
) -> bool:
    """Whether values that are linear in a vector read one step of it each, but for what a loop makes of it."""
    steps = start.aval.shape[axis]
    inner = [1 if d == start.aval.ndim + axis else n for d, n in enumerate(start.aval.shape)]
    scale = whole_numbers(tuple(inner), 1)[0]
    vectors = [p.reshape(-1, *(1,) * (-axis - 1)) * scale for p in probes((steps,))]
    following = Following(jaxpr, known, start, vectors, opaque)

    def single(variables: Sequence[Any]) -> bool:
        found = [following.of(v) for v in variables]
        return all(entries_of(f.numbers, (steps,)) is not None for f in found if f is not None)

    for eqn in jaxpr.eqns:
        if eqn is loop or not following.reads(eqn) or following.follow(eqn):
            continue
        if eqn.primitive.name in ALONG or not single(eqn.invars):
            return False
    return single(jaxpr.outvars)


def run_with_states(jaxpr: Jaxpr, given: Sequence[Array], loop: Loop, stepping: Stepping, sums: Array) -> list[Array]:
    """Run a program, whose constants are inputs, and whose loop's states are given, but for factors."""

    def with_states(eqn: JaxprEqn, value: Value) -> list[Array] | None:
        if eqn is not loop.eqn:
            return None
        factors = loop.given.factors.items() if stepping.scaled else ()
        own = jnp.moveaxis(sums, loop.axis, 0)
        states = reduce(jnp.multiply, (f.spread(value(f.variable), own.ndim) ** n for f, n in factors), own)
        # the carries that are left are read from the states, see `kayn.graph.recursions`
        return [*(jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[:-1]), states]

    return interpreted(jaxpr, given, with_states)
