"""Programs in which innovations are read in their running sum.

`kayn.programs.running` puts the running sum r in the place of innovations z. Here the traced program is changed: each
value that is linear in z, and whose entries read many elements of z but one of r each, is written in r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph.coefficients import LONGEST
from kayn.graph.entries import Entries, entries_of, probes
from kayn.graph.flattened import flattened, opened
from kayn.graph.linear import Following
from kayn.graph.linear_states import linear_states, run_with
from kayn.graph.loop_states import loop_of, run_with_states
from kayn.programs.outputs import Part
from kayn.programs.running import Coordinates
from kayn.programs.scans import Alias
from kayn.programs.slices import equation_as_function, without_dead
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.support.names import in_model

MIXING = frozenset(("conv_general_dilated", "cumsum", "dot_general", "reduce_sum", "scan"))
"""Linear maps of one operand whose entries may read several."""


def _innovations(coordinates: Coordinates, sums: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        r = jnp.asarray(sums)
        return np.asarray(coordinates.innovations(r, coordinates.earlier(r)))


class Change:
    """Which values of a program without calls are to be written in running sums.

    Attributes:
        of_sums: these, with what they read.
        of_vector: values to be written in the vector itself, as they read one element of it, which the program makes of
            sums.
        left: whether a value reads many elements of either.
    """

    def __init__(
        self, jaxpr: Jaxpr, known: Sequence[Any], start: Any, coordinates: Coordinates, opaque: Sequence[Any] = ()
    ):
        self.shape, self.width = start.aval.shape, coordinates.order + 1
        of_vector, states = probes(self.shape), probes(self.shape, coordinates.axis, self.width)
        if coordinates.computed is None:
            numbers, states = [_innovations(coordinates, p) for p in states], []
        else:  # whose innovations are not known
            numbers = [np.full(self.shape, np.nan)] * len(states)
        self.following = Following(jaxpr, known, start, [*numbers, *of_vector], opaque, states)
        self.axis, self.count = coordinates.axis, len(numbers)
        self.of_sums: dict[Any, Entries] = {}
        self.of_vector: dict[Any, Entries] = {}
        self.left = False
        self._seen: set[Any] = set()
        self._mixed: set[Any] = set()

    def read(self, eqn: JaxprEqn) -> list[Any]:
        """Follow an equation, and give those of its operands that are to be written in sums before."""
        mine = self.following.reads(eqn)
        if not mine:
            return []
        if self.following.follow(eqn):
            mixes = len(mine) > 1 or eqn.primitive.name in MIXING
            if mixes or any(eqn.invars[i] in self._mixed for i in mine):
                self._mixed.update(eqn.outvars)
            return []
        return self.used([eqn.invars[i] for i in mine])

    def used(self, variables: Sequence[Any]) -> list[Any]:
        """Those of some variables that are to be written in sums, as they are used for more than linear maps."""
        new = [v for v in variables if self.following.of(v) is not None and v not in self._seen]
        self._seen.update(new)
        return [v for v in new if self._is_written(v)]

    def _is_written(self, variable: Any) -> bool:
        numbers = self.following.found[variable].numbers
        own = entries_of(numbers[self.count :], self.shape)
        if own is not None:
            if variable not in self._mixed:
                return False
            self.of_vector[variable] = own
            return True
        entries = entries_of(numbers[: self.count], self.shape, self.axis, self.width)
        if entries is None:
            self.left = True
            return False
        self.of_sums[variable] = entries
        return True

    def entries(self, variable: Any, start: Array, sums: Sequence[Array]) -> Array:
        """What is written for a variable, given the vector and its sums, with those of earlier steps."""
        if variable in self.of_vector:
            return self.of_vector[variable].read([start], self.axis)
        return self.of_sums[variable].read(sums, self.axis)


def with_running_sums(program: Program) -> Program:
    """A traced model in which sums of innovations are read as the latents that they are."""
    found = {n: s.running for n, s in program.sites.items() if s.running is not None}
    # states of sums first: what else is in these is no sum in them any more
    for name in sorted(found, key=lambda n: not _is_of_sum(found[n])):
        if Part.VALUE.of(in_model(name)) in program.outputs:
            program = _in_sums(program, name, found[name])
    return program


def _is_of_sum(coordinates: Coordinates) -> bool:
    return coordinates.stepping is not None and coordinates.stepping.of_sum


def _in_sums(program: Program, name: str, coordinates: Coordinates) -> Program:
    position = program.outputs.index(Part.VALUE.of(in_model(name)))
    flat = flattened(program.jaxpr, [position], [position] if _is_of_sum(coordinates) else [])
    start = flat.jaxpr.outvars[position]
    known = [*flat.consts, *program.consts, *(None for _ in program.jaxpr.invars)]
    first = len(program.consts)
    earlier = [Alias(name, lag, False).name for lag in range(1, coordinates.order + 1)]
    places = [len(flat.consts) + first + program.inputs.index(n) for n in (name, *earlier)]
    changed = _changed(opened(flat), known, start, coordinates, places)

    def run(*inputs: Array) -> list[Array]:
        return changed([*flat.consts, *program.consts, *inputs])

    closed = jax.make_jaxpr(run)(*(v.aval for v in program.jaxpr.invars))
    return replace(program, jaxpr=without_dead(closed.jaxpr), consts=tuple(closed.consts))


def _changed(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, coordinates: Coordinates, places: Sequence[int]
) -> Callable[[Sequence[Array]], list[Array]]:
    """A program that reads the sums among its inputs, of which these are the places, with those of earlier steps."""
    if coordinates.computed is not None and coordinates.computed.found_in is not None:
        free = {v: str(i) for i, (v, x) in enumerate(zip(jaxpr.invars, known, strict=True)) if x is None}
        states = linear_states(jaxpr, known, start, free, (coordinates.axis,))
        if states is not None:
            return lambda given: run_with(jaxpr, given, states, given[places[0]])
    stepping = coordinates.stepping
    loop = None if stepping is None else loop_of(jaxpr, known, start, LONGEST)
    if stepping is not None and loop is not None:
        return lambda given: run_with_states(jaxpr, given, loop, stepping, given[places[0]])
    change = Change(jaxpr, known, start, coordinates)
    return lambda given: _run_changed(jaxpr, given, change, start, [given[i] for i in places])


def _run_changed(
    jaxpr: Jaxpr, given: Sequence[Array], change: Change, start: Any, sums: Sequence[Array]
) -> list[Array]:
    """Run a program with some of its values written in sums, which are given, with those of earlier steps."""
    env: dict[Any, Array] = dict(zip(jaxpr.invars, given, strict=True))
    offsets: dict[Any, Array] = {start: jnp.zeros(start.aval.shape, start.aval.dtype)}

    def value(v: Any) -> Array:
        return v.val if isinstance(v, Literal) else env[v]

    def write(variables: Sequence[Any]) -> None:
        for v in variables:
            factors = change.following.found[v].factors.items()
            parts = (f.spread(value(f.variable), v.aval.ndim) ** n for f, n in factors)
            c = reduce(jnp.multiply, parts, jnp.ones((), v.aval.dtype))
            env[v] = c * change.entries(v, env[start], sums).astype(v.aval.dtype) + offsets[v]

    for eqn in jaxpr.eqns:
        write(change.read(eqn))
        run = equation_as_function(eqn, jaxpr)
        env.update(zip(eqn.outvars, run(*map(value, eqn.invars)), strict=True))
        out = eqn.outvars[-1]
        if change.following.of(out) is not None and out is not start:
            operands = [offsets[v] if change.following.of(v) is not None else value(v) for v in eqn.invars]
            offsets[out] = run(*operands)[-1]
    write(change.used(jaxpr.outvars))
    return [value(v) for v in jaxpr.outvars]
