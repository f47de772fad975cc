"""Which innovations a model adds up, and what it adds them up to, read in their running sum.

`kayn.programs.running` puts the running sum r in the place of innovations z. Here the traced program is changed: each
value that is linear in z, and whose entries read many elements of z but one of r each, is written in r.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph.linear import Following, Linear
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

CLOSE = 1e-4
"""Relative error of numbers up to which they count as equal."""
ADDING = frozenset(("cumsum", "dot_general", "add", "add_any", "concatenate", "scan", "transpose"))
"""Whose results may be running sums: those that add, and what brings these into the order of the innovations."""


@dataclass(frozen=True, eq=False)
class Entries:
    """A value each entry of which reads one element of a vector at most.

    Attributes:
        index, weight: which element, all counted in one row, and how often: in the value's shape.
    """

    index: np.ndarray
    weight: np.ndarray


def _probes(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Whole numbers, so that sums of them are exact: two, and the first times one more than each index."""
    rng = np.random.default_rng(0)
    first, other = (rng.integers(1, 5, shape) * rng.choice([-1.0, 1.0], shape) for _ in range(2))
    return [first, other, *(first * (1.0 + index) for index in np.indices(shape))]


def _entries(numbers: Sequence[np.ndarray], shape: tuple[int, ...]) -> Entries | None:
    """What a linear map reads, of whose results for `_probes` these are the numbers; None where an entry reads more."""
    first, _, *by_index = (n.astype(float) for n in numbers)
    some = np.abs(first) > CLOSE * np.max(np.abs(first), initial=1e-30)
    if np.isnan(first).any():
        return None
    places = [np.where(some, np.round(n / np.where(some, first, 1.0)) - 1, 0).astype(int) for n in by_index]
    if any(np.any((place < 0) | (place >= size)) for place, size in zip(places, shape, strict=True)):
        return None
    index, probes = np.ravel_multi_index(places, shape), [p.ravel() for p in _probes(shape)]
    weight = np.where(some, first / probes[0][index], 0.0)
    scale = CLOSE * np.max(np.abs(weight), initial=1e-30)
    fits = [np.abs(weight * p[index] - n) <= scale * np.abs(p[index]) for p, n in zip(probes, numbers, strict=True)]
    return Entries(index, weight) if all(map(np.all, fits)) else None


def added_up(drawn: Drawn, names: Collection[str]) -> dict[str, Coordinates]:
    """Those of some latents that are added up such that their running sum is a chain, with what that is.

    Args:
        drawn: the model as it is run.
        names: latents of independent elements.
    """
    jaxpr = drawn.closed.jaxpr
    latents = dict(zip(drawn.latents, jaxpr.outvars, strict=False))
    able = [n for n in names if _may_add_up(jaxpr, latents[n])]
    if not able or any(isinstance(v, Literal) for v in latents.values()):
        return {}
    flat = _flat(jaxpr, [drawn.latents.index(n) for n in able])
    known = [*flat.consts, *drawn.closed.consts]
    places = dict(zip(drawn.latents, flat.jaxpr.outvars, strict=False))

    def earlier(name: str) -> dict[Any, str]:
        """Variables of latents, those that are drawn before one by name."""
        before = drawn.latents[: drawn.latents.index(name)]
        return {v: n if n in before else "" for n, v in places.items()}

    found = {n: _coordinates(_opened(flat), known, places[n], earlier(n)) for n in able}
    return {n: c for n, c in found.items() if c is not None}


def _flat(jaxpr: Jaxpr, starts: Sequence[int]) -> ClosedJaxpr:
    """A program without calls, with the recursions of loops by themselves that are given some of its results; its
    inputs are the constants and inputs of another."""
    avals = [v.aval for v in (*jaxpr.constvars, *jaxpr.invars)]
    flat = jax.make_jaxpr(lambda *x: run_flat(jaxpr, x))(*avals)
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


def _adds_up(eqn: JaxprEqn, shape: tuple[int, ...]) -> bool:
    if eqn.primitive.name == "dot_general":
        return any(v.aval.shape[-2:] == (steps, steps) for v in eqn.invars for steps in shape)
    return eqn.primitive.name in ("cumsum", "pad") or (eqn.primitive.name == "scan" and eqn.params["length"] in shape)


def _coordinates(jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str]) -> Coordinates | None:
    """The running sum in which all that is made of a vector reads one element an entry; None where there is none.

    Args:
        earlier: latents by variable; those behind the vector are called by an empty name.
    """
    shape = start.aval.shape
    ones = [np.where(place == 0, 1.0, 0.0) for place in np.indices(shape)]
    following = Following(jaxpr, known, start, [*ones, *_probes(shape)[:2]], [*earlier])
    found = None
    for eqn in jaxpr.eqns:
        if not following.reads(eqn):
            continue
        if following.follow(eqn):
            adds = eqn.primitive.name in ADDING
            value = following.found[eqn.outvars[-1]]
            along = (_recursion(value, shape, axis) for axis in range(len(shape)) if adds)
            found = next((c for c in along if c is not None), None)
        elif is_recursion(eqn) and following.known(decay := following.decay_of(eqn)) is None:
            computed = _computed(jaxpr, following.values, decay, earlier)
            found = None if computed is None else Coordinates(computed=computed, axis=-len(shape))
        if found is not None:
            break
    if found is None:
        return None
    change = Change(jaxpr, known, start, found, [*earlier])
    for eqn in jaxpr.eqns:
        change.read(eqn)
    change.used(jaxpr.outvars)
    return found if change.written and not change.left else None


def _computed(jaxpr: Jaxpr, values: Mapping[Any, Any], variable: Any, earlier: Mapping[Any, str]) -> Computed | None:
    """A variable as a function of latents; None where it is none of earlier ones."""
    wanted, needed = {variable}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted and v not in earlier and v not in values for v in eqn.outvars):
            needed.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    made = {v for e in needed for v in e.outvars}
    latents = [v for v in wanted if v in earlier]
    if any(not earlier[v] for v in latents) or any(v not in made | {*latents, *values} for v in wanted):
        return None

    def run(*given: Array) -> Array:
        env = {**values, **dict(zip(latents, given, strict=True))}
        for eqn in reversed(needed):
            operands = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            env.update(zip(eqn.outvars, equation_as_function(eqn, jaxpr)(*operands), strict=True))
        return jnp.asarray(env[variable]).reshape(() if variable.aval.size == 1 else variable.aval.shape)

    return Computed(tuple(earlier[v] for v in latents), run)


def _recursion(value: Linear, shape: tuple[int, ...], axis: int) -> Coordinates | None:
    """The recursion `r_t = d_t r_{t-1} + w_t z_t` along an axis whose r a value is, but for a factor; None where it is
    none.

    Args:
        value: as it follows from what is one at the first step along each axis and zero then, and from two probes.
    """
    if value.numbers[0].size != math.prod(shape):
        return None
    *ones, first, other = (np.moveaxis(n.reshape(shape).astype(float), axis, 0) for n in value.numbers)
    once, probes = ones[axis], [np.moveaxis(p, axis, 0) for p in _probes(shape)[:2]]
    with np.errstate(all="ignore"):
        decay = np.concatenate([0 * once[:1], np.where(once[:-1] == 0, 0.0, once[1:] / once[:-1])])
        before = [np.concatenate([0 * n[:1], n[:-1]]) for n in (first, other)]
        weight = (first - decay * before[0]) / probes[0]
        size = np.abs(other) + np.abs(decay * before[1]) + np.abs(weight)
        fits = np.abs(other - decay * before[1] - weight * probes[1]) <= CLOSE * size
    if not decay.any() or not np.all(fits) or not np.all(np.abs(weight) > CLOSE * np.max(np.abs(weight))):
        return None
    weight, dtype = weight / weight.ravel()[-1], value.numbers[0].dtype
    decays, weights = (np.moveaxis(x, 0, axis).astype(dtype) for x in (decay, weight))
    return Coordinates(_brief(decay[1:], decays), _brief(weight, weights), axis=axis - len(shape))


def _brief(numbers: np.ndarray, whole: np.ndarray) -> Any:
    """One number for all elements where it is the same, None where it is one."""
    if np.allclose(numbers, 1.0, atol=1e-5):
        return None
    one = numbers.ravel()[0]
    return one.astype(whole.dtype) if np.allclose(numbers, one, rtol=1e-5) else whole


def _innovations(coordinates: Coordinates, sums: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        r = jnp.asarray(sums)
        return np.asarray(coordinates.innovations(r, coordinates.earlier(r)))


class Change:
    """Which values of a program without calls are to be written in running sums.

    Attributes:
        written: these, with what they read.
        left: whether a value reads many elements of either.
    """

    def __init__(
        self, jaxpr: Jaxpr, known: Sequence[Any], start: Any, coordinates: Coordinates, opaque: Sequence[Any] = ()
    ):
        self.shape = start.aval.shape
        probes = _probes(self.shape)
        if coordinates.computed is None:
            of_sums, states = [_innovations(coordinates, p) for p in probes], []
        else:  # whose innovations are not known
            of_sums, states = [np.full(self.shape, np.nan)] * len(probes), probes
        self.following = Following(jaxpr, known, start, [*of_sums, *probes], opaque, states)
        self.axis = coordinates.axis
        self.written: dict[Any, Entries] = {}
        self.left = False
        self._seen: set[Any] = set()

    def read(self, eqn: JaxprEqn) -> list[Any]:
        """Follow an equation, and give those of its operands that are to be written in sums before."""
        mine = self.following.reads(eqn)
        if not mine or self.following.follow(eqn):
            return []
        return self.used([eqn.invars[i] for i in mine])

    def used(self, variables: Sequence[Any]) -> list[Any]:
        """Those of some variables that are to be written in sums, as they are used for more than linear maps."""
        new = [v for v in variables if self.following.of(v) is not None and v not in self._seen]
        self._seen.update(new)
        return [v for v in new if self._is_written(v)]

    def _is_written(self, variable: Any) -> bool:
        numbers = self.following.found[variable].numbers
        half = len(numbers) // 2
        if _entries(numbers[half:], self.shape) is not None:
            return False
        entries = _entries(numbers[:half], self.shape)
        if entries is None:
            self.left = True
            return False
        self.written[variable] = entries
        return True


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
    places = [first + program.inputs.index(n) for n in (name, Alias(name, 1, False).name)]
    opened = _opened(flat)
    change = Change(opened, known, start, coordinates)

    def run(*inputs: Array) -> list[Array]:
        given = [*flat.consts, *program.consts, *inputs]
        r, before = (given[len(flat.consts) + i] for i in places)
        return _run_changed(opened, given, change, start, r, before)

    closed = jax.make_jaxpr(run)(*(v.aval for v in program.jaxpr.invars))
    return replace(program, jaxpr=closed.jaxpr, consts=tuple(closed.consts))


def _run_changed(
    jaxpr: Jaxpr, given: Sequence[Array], change: Change, start: Any, r: Array, before: Array
) -> list[Array]:
    """Run a program with some of its values written in sums."""
    env: dict[Any, Array] = dict(zip(jaxpr.invars, given, strict=True))
    offsets: dict[Any, Array] = {start: jnp.zeros(start.aval.shape, start.aval.dtype)}

    def value(v: Any) -> Array:
        return v.val if isinstance(v, Literal) else env[v]

    def write(variables: Sequence[Any]) -> None:
        for v in variables:
            factors = change.following.found[v].factors.items()
            parts = (f.spread(value(f.variable), v.aval.ndim) ** n for f, n in factors)
            c = reduce(jnp.multiply, parts, jnp.ones((), v.aval.dtype))
            env[v] = c * _read(change.written[v], r, before, change.axis).astype(v.aval.dtype) + offsets[v]

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


def _read(entries: Entries, r: Array, before: Array, axis: int) -> Array:
    """The elements of the sums that the entries of a value read, times their weights."""
    shape, stride = entries.index.shape, math.prod(r.shape[r.ndim + axis + 1 :])
    some, row = entries.weight.ravel() != 0, entries.index.ravel()
    fits = [len(row) == r.size and np.all((row == np.arange(r.size) - lag * stride)[some]) for lag in (0, 1)]
    read = r.reshape(shape) if fits[0] else before.reshape(shape) if fits[1] else r.ravel()[entries.index]
    weight = (
        np.round(entries.weight) if np.allclose(entries.weight, np.round(entries.weight), atol=1e-5) else entries.weight
    )
    return read if np.all(weight == 1) else read * weight.astype(r.dtype)
