"""Which innovations a model adds up, and what it adds them up to, read in their running sum.

`kayn.programs.running` puts the running sum r in the place of innovations z. Here the traced program is changed: each
value that is linear in z, and whose entries read many elements of z but one of r each, is written in r.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph.coefficients import LONGEST, recursions_of, vectors
from kayn.graph.entries import Entries, entries_of, probes
from kayn.graph.linear import Following
from kayn.graph.loop_states import computed_of, loop_of, run_with_states, states_of_loop
from kayn.graph.products import with_sums_of_logs
from kayn.graph.recursions import is_recursion, with_recursions
from kayn.graph.totals import run_flat
from kayn.programs.calls import called
from kayn.programs.drawn import Drawn
from kayn.programs.outputs import Part
from kayn.programs.running import Computed, Coordinates
from kayn.programs.scans import Alias
from kayn.programs.slices import equation_as_function
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.support.names import in_model

ADDING = frozenset(("cumsum", "dot_general", "add", "add_any", "concatenate", "rev", "scan", "transpose"))
"""Whose results may be running sums: those that add, and what brings these into the order of the innovations."""
MIXING = frozenset(("conv_general_dilated", "cumsum", "dot_general", "reduce_sum", "scan"))
"""Linear maps of one operand whose entries may read several."""
LEAST_SHIFTED = 2 * (LONGEST + 1)
"""Steps below which elements that are read together stay together."""


def added_up(
    drawn: Drawn, names: Mapping[str, Collection[int]], movable: Collection[str] = ()
) -> dict[str, Coordinates]:
    """Those of some latents that are added up such that their running sum is a chain, with what that is.

    Args:
        drawn: the model as it is run.
        names: latents of independent elements, and which of their dimensions may be steps, from the last.
        movable: latents that may be drawn before all others, if their laws depend on none.
    """
    jaxpr = drawn.closed.jaxpr
    latents = dict(zip(drawn.latents, jaxpr.outvars, strict=False))
    able = [n for n in names if _may_add_up(jaxpr, latents[n]) or _is_shifted(jaxpr, latents[n])]
    if not able or any(isinstance(v, Literal) for v in latents.values()):
        return {}
    flat = _flat(jaxpr, [drawn.latents.index(n) for n in able])
    known = [*flat.consts, *drawn.closed.consts]
    places = dict(zip(drawn.latents, flat.jaxpr.outvars, strict=False))
    opened = _opened(flat)
    laws = {n: [flat.jaxpr.outvars[i] for i in drawn.laws[n]] for n in movable if n not in able}
    free = {n for n, law in laws.items() if _is_free(opened, law, places.values())}

    def earlier(name: str) -> dict[Any, str]:
        """Variables of latents, those that are drawn before one, or may be, by name."""
        before = {*drawn.latents[: drawn.latents.index(name)], *free}
        return {v: n if n in before else "" for n, v in places.items()}

    found = {n: _coordinates(opened, known, places[n], earlier(n), names[n]) for n in able}
    chains = {n: c for n, c in found.items() if c is not None}
    # steps of chains that are read together are weighed together, all that each reads
    return chains if len(chains) < 2 else {n: c for n, c in chains.items() if c.order == 1}


def _is_free(jaxpr: Jaxpr, variables: Sequence[Any], latents: Collection[Any]) -> bool:
    """Whether variables are made of no latents or other draws."""
    wanted = {v for v in variables if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            if any(e.primitive.name.startswith("random_") for e in _within(eqn)):
                return False
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return not wanted.intersection(latents)


def _flat(jaxpr: Jaxpr, starts: Sequence[int]) -> ClosedJaxpr:
    """A program without calls, with the recursions of loops by themselves that are given some of its results; its
    inputs are the constants and inputs of another."""
    avals = [v.aval for v in (*jaxpr.constvars, *jaxpr.invars)]
    flat = with_sums_of_logs(jax.make_jaxpr(lambda *x: run_flat(jaxpr, x))(*avals))
    if not any(e.primitive.name == "scan" for e in flat.jaxpr.eqns):
        return flat
    vectors = [flat.jaxpr.outvars[i] for i in starts]
    apart = jax.make_jaxpr(lambda *x: with_recursions(flat.jaxpr, [*flat.consts, *x], vectors))(*avals)
    return jax.make_jaxpr(lambda *x: run_flat(apart.jaxpr, [*apart.consts, *x]))(*avals)


def _opened(closed: ClosedJaxpr) -> Jaxpr:
    """A program whose constants are inputs."""
    jaxpr = closed.jaxpr
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    return Jaxpr([], inputs, jaxpr.outvars, jaxpr.eqns, jaxpr.effects, jaxpr.debug_info)


def _may_add_up(jaxpr: Jaxpr, start: Any) -> bool:
    """Whether an operation that may add a vector up reads what is computed of it."""
    if isinstance(start, Literal):
        return False
    shape, reached = start.aval.shape, {start}
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            if any(_adds_up(e, shape) for e in _within(eqn)):
                return True
            reached.update(eqn.outvars)
    return False


def _within(eqn: JaxprEqn) -> list[JaxprEqn]:
    call = called(eqn)
    return [eqn] if call is None else [e for inner in call[0].eqns for e in _within(inner)]


def _is_shifted(jaxpr: Jaxpr, start: Any) -> bool:
    """Whether parts of a vector are read that may be those at other steps."""
    if isinstance(start, Literal):
        return False
    reached, slices = {start}, 0
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            names = [e.primitive.name for e in _within(eqn)]
            slices += names.count("slice")
            if slices > 1 or "conv_general_dilated" in names:
                return True
            reached.update(eqn.outvars)
    return False


def _adds_up(eqn: JaxprEqn, shape: tuple[int, ...]) -> bool:
    if eqn.primitive.name == "dot_general":
        return any(v.aval.shape[-2:] == (steps, steps) for v in eqn.invars for steps in shape)
    return eqn.primitive.name in ("cumprod", "cumsum", "pad") or (
        eqn.primitive.name == "scan" and eqn.params["length"] in shape
    )


def _coordinates(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str], axes: Collection[int]
) -> Coordinates | None:
    """The running sum of which all that is made of a vector reads a few steps an entry; None where there is none.

    Args:
        earlier: latents by variable; those behind the vector are called by an empty name.
        axes: dimensions that may be steps.
    """
    for found in _running(jaxpr, known, start, earlier):
        for span in range(found.span, LONGEST + 1) if found.axis in axes else ():
            coordinates = replace(found, span=span)
            change = Change(jaxpr, known, start, coordinates, [*earlier])
            for eqn in jaxpr.eqns:
                change.read(eqn)
            change.used(jaxpr.outvars)
            if change.of_sums and not change.left:
                return coordinates
    states = states_of_loop(jaxpr, known, start, earlier, LONGEST)
    return states if states is not None and states.axis in axes else None


def _running(jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str]) -> Iterator[Coordinates]:
    """The running sums of a vector that a program makes, and the vector as a chain of independent steps."""
    shape, seen = start.aval.shape, set()
    differences: list[tuple[np.ndarray, ...]] = []  # are tried when there is no sum
    following = Following(jaxpr, known, start, vectors(shape), [*earlier])
    for eqn in jaxpr.eqns:
        if not following.reads(eqn):
            continue
        if following.follow(eqn):
            numbers = following.found[eqn.outvars[-1]].numbers
            if eqn.primitive.name in ADDING:
                for found in recursions_of(numbers, shape):
                    what = str(found)
                    if what not in seen:
                        seen.add(what)
                        yield found
            elif eqn.primitive.name == "sub":
                differences.append(numbers)
        elif is_recursion(eqn):
            decays = following.decays_of(eqn)
            computed = _computed(jaxpr, following.values, decays, earlier)
            if computed is not None and len(decays) <= LONGEST:
                yield Coordinates((None,) * len(decays), computed=computed, axis=-len(shape), span=len(decays))
    for numbers in differences:
        yield from recursions_of(numbers, shape)
    if _is_shifted(jaxpr, start):
        yield from (Coordinates((), axis=a) for a in range(-len(shape), 0) if shape[a] >= LEAST_SHIFTED)


def _computed(
    jaxpr: Jaxpr, values: Mapping[Any, Any], variables: Sequence[Any], earlier: Mapping[Any, str]
) -> Computed | None:
    """Decays as a function of latents: single numbers where they are the same at all steps."""
    found = computed_of(jaxpr, values, variables, earlier)
    if found is None:
        return None

    def run(*given: Array) -> tuple[Array, ...]:
        return tuple(x.reshape(() if x.size == 1 else x.shape) for x in found.run(*given))

    return Computed(found.latents, run)


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
    for name, site in program.sites.items():
        if site.running is not None and Part.VALUE.of(in_model(name)) in program.outputs:
            program = _in_sums(program, name, site.running)
    return program


def _in_sums(program: Program, name: str, coordinates: Coordinates) -> Program:
    position = program.outputs.index(Part.VALUE.of(in_model(name)))
    flat = _flat(program.jaxpr, [position])
    start = flat.jaxpr.outvars[position]
    known = [*flat.consts, *program.consts, *(None for _ in program.jaxpr.invars)]
    first = len(program.consts)
    earlier = [Alias(name, lag, False).name for lag in range(1, coordinates.order + 1)]
    places = [len(flat.consts) + first + program.inputs.index(n) for n in (name, *earlier)]
    opened = _opened(flat)
    changed = _changed(opened, known, start, coordinates, places)

    def run(*inputs: Array) -> list[Array]:
        return changed([*flat.consts, *program.consts, *inputs])

    closed = jax.make_jaxpr(run)(*(v.aval for v in program.jaxpr.invars))
    return replace(program, jaxpr=closed.jaxpr, consts=tuple(closed.consts))


def _changed(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, coordinates: Coordinates, places: Sequence[int]
) -> Callable[[Sequence[Array]], list[Array]]:
    """A program that reads the sums among its inputs, of which these are the places, with those of earlier steps."""
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
