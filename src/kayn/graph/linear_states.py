"""States that a program makes of innovations in whatever way: linear in them, each of the one before and of its own.

`s_t = m_t + a_t s_{t-1} + w_t z_t`, where m, a and w are made of other latents. How the program comes to them does not
matter: a first step apart from the loop over the others, steps written out one after the other, an associative scan,
scales that differ from step to step. That the derivative of s by z does not depend on z is read off the program; a and
w follow from derivatives along every other innovation, and have to give back that along all of them.

What stands in the place of z is `r_t = a_t r_{t-1} + (w_t / w_T) z_t`, so that `s = m + w_T r`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

from kayn.graph.entries import CLOSE, whole_numbers
from kayn.graph.linear import values_of
from kayn.graph.loop_states import START, computed_of, reads_single_steps
from kayn.programs.interpret import Value, interpreted
from kayn.programs.primitives import ELEMENTWISE, IDENTITY
from kayn.programs.running import Computed, Coordinates
from kayn.programs.slices import equation_as_function, equations_of
from kayn.programs.squeeze import run_squeezed
from kayn.programs.stepping import FAR
from kayn.support.arrays import Array

MOST_AHEAD = 2
"""Entries that states may have before the first that innovations are in."""
LONG = 200
"""Operations from which on a program that runs a few times is not worth compiling, as one of steps written out."""
LONGEST = 256
"""Operations that states may take: what is computed of them is compiled several times."""
INSIDE = 0.3, 0.7
"""Where latents lie at which derivatives are looked at."""


@dataclass(frozen=True, eq=False)
class States:
    """A variable of a program that is such states.

    Attributes:
        axis: the dimension of steps, from the last.
        ahead: entries along it that no innovation is in.
        given: variables that it is made of, apart from innovations.
        run: values of these, and innovations, to its value.
    """

    variable: Any
    axis: int
    ahead: int
    given: tuple[Any, ...]
    run: Callable[..., Array]

    def parts(self, values: Sequence[Array], shape: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
        """m; a and the w's ratios to the last, in the shape of the innovations; the last w, by which r is multiplied.

        Args:
            values: of what they are made of.
            shape: of the innovations.
        """

        def of(z: Array) -> Array:
            return self.run(*values, z)

        zeros = jnp.zeros(shape, self.variable.aval.dtype)
        start, along = jax.linearize(of, zeros)
        even, odd = (self._moved(along(jnp.asarray(p, zeros.dtype))) for p in _every_other(shape, self.axis))
        decays, weights = _coefficients(even, odd, jnp)
        last = weights[-1:]
        ratios = weights / last
        # for some values of latents there may be no states: a root of what is negative, a step of size zero
        none = ~jnp.isfinite(decays) | ~jnp.isfinite(ratios) | (ratios == 0)
        decays, ratios = jnp.where(none, 0.0, decays), jnp.where(none, FAR, ratios)
        decays, ratios, last = (jnp.moveaxis(x, 0, self.axis) for x in (decays, ratios, last))
        return start, decays, ratios, last

    def _moved(self, x: Array) -> Array:
        return jnp.moveaxis(x, self.axis, 0)[self.ahead :]

    def written(self, values: Sequence[Array], r: Array) -> Array:
        """The states, given what they are made of, and r."""
        start, _, _, last = self.parts(values, r.shape)
        ahead, behind = jnp.split(jnp.moveaxis(start, self.axis, 0), [self.ahead])
        own = behind + jnp.moveaxis(last * r, self.axis, 0)
        return jnp.moveaxis(jnp.concatenate([ahead, own]) if self.ahead else own, 0, self.axis)


def _every_other(shape: tuple[int, ...], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Ones at even steps, and ones at the others."""
    even = 1.0 - np.arange(shape[axis]).reshape((-1, *(1,) * (-axis - 1))) % 2
    return np.broadcast_to(even, shape), np.broadcast_to(1 - even, shape)


def _coefficients(even: Any, odd: Any, xp: Any) -> tuple[Any, Any]:
    """a and w of every step, of the derivatives along even steps and along odd ones: steps first.

    Where a step has no innovation of its own, its derivative is a times that before.
    """
    step = np.arange(len(even)).reshape((-1, *(1,) * (even.ndim - 1)))
    own, other = xp.where(step % 2 == 0, even, odd), xp.where(step % 2 == 0, odd, even)
    nothing = xp.zeros_like(own[:1])
    own_before, other_before = (xp.concatenate([nothing, x[:-1]]) for x in (other, own))
    # before the first step there is none
    decays = xp.where(step == 0, 0.0, other / xp.where(step == 0, 1.0, other_before))
    return decays, own - decays * own_before


def states_of(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str], axes: Collection[int]
) -> Coordinates | None:
    """The states that a program makes of a vector, as coordinates of it; None where there are none, or something reads
    several steps of them.

    Args:
        known: values of the program's constants and inputs, None where unknown.
        earlier: latents by variable; those behind the vector are called by an empty name.
        axes: dimensions of the vector that may be steps.
    """
    found = linear_states(jaxpr, known, start, earlier, axes)
    given = None if found is None else computed_of(jaxpr, values_of(jaxpr, known), found.given, earlier)
    if found is None or given is None:
        return None
    shape, avals = start.aval.shape, {n: v.aval for v, n in earlier.items()}

    def parts(*latents: Array) -> tuple[Array, ...]:
        return found.parts(given.run(*latents), shape)[1:3]

    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        at = [_inside(avals[n], rng) for n in given.latents]
        own = _deciding(_compiled(parts, jaxpr), at)
    mine = tuple(n for n, decides in zip(given.latents, own, strict=True) if decides)

    def run(*latents: Array) -> tuple[Array, ...]:
        # the operations are of the types that they were found with
        by_name = {n: jnp.asarray(x, avals[n].dtype) for n, x in zip(mine, latents, strict=True)}
        return parts(*(by_name.get(n, x) for n, x in zip(given.latents, at, strict=True)))

    return Coordinates((None,), axis=found.axis, computed=Computed(mine, run, shape))


def _compiled(run: Callable[..., Any], jaxpr: Jaxpr) -> Callable[..., Any]:
    """A part of a program as one that is compiled, where that takes less time than one operation after the other."""
    return jax.jit(run) if len(jaxpr.eqns) < LONG else run


def _inside(aval: Any, rng: np.random.Generator) -> Array:
    return jnp.asarray(rng.uniform(*INSIDE, aval.shape), aval.dtype)


def _deciding(run: Callable[..., Sequence[Array]], at: Sequence[Array]) -> list[bool]:
    """Which of a function's arguments its results change with: a scale that all innovations have is in none of their
    ratios."""
    results = run(*at)

    def changes(place: int) -> bool:
        others = (run(*at[:place], at[place] * factor, *at[place + 1 :]) for factor in (0.5, 1.3))
        return not all(np.allclose(x, y, rtol=CLOSE) for other in others for x, y in zip(results, other, strict=True))

    return [changes(i) for i in range(len(at))]


def linear_states(
    jaxpr: Jaxpr, known: Sequence[Any], start: Any, earlier: Mapping[Any, str], axes: Collection[int]
) -> States | None:
    """The first variable of a program without calls that is such states of a vector; see `states_of` for arguments."""
    shape, values = start.aval.shape, values_of(jaxpr, known)
    candidates = _candidates(jaxpr, values, start, earlier)
    found = computed_of(jaxpr, values, candidates, {**earlier, start: START}) if candidates else None
    if found is None:
        return None
    avals = {n: v.aval for v, n in earlier.items()}
    others = [n for n in found.latents if n != START]
    if not all(jnp.issubdtype(avals[n].dtype, jnp.floating) for n in others):
        return None

    def along(latents: Sequence[Array], tangents: Array) -> list[Array]:
        by_name = dict(zip(others, latents, strict=True))

        def of(z: Array) -> tuple[Array, ...]:
            return found.run(*(z if n == START else by_name[n] for n in found.latents))

        return jax.vmap(lambda t: jax.jvp(of, (jnp.ones(shape, start.aval.dtype),), (t,))[1])(tangents)

    rng, run = np.random.default_rng(0), _compiled(along, jaxpr)
    for axis in sorted(axes, reverse=True):
        probes = np.stack([*_every_other(shape, axis), whole_numbers(shape, 1)[0]]).astype(start.aval.dtype)
        with jax.ensure_compile_time_eval():
            at = [[_inside(avals[n], rng) for n in others] for _ in "ab"]
            made = [run(latents, jnp.asarray(probes)) for latents in at]
        for variable, *numbers in zip(candidates, *made, strict=True):
            states = _states(jaxpr, start, variable, axis)
            if states is None or not all(_follow(np.asarray(x, float), probes[2], axis, states.ahead) for x in numbers):
                continue
            if _is_linear(states, start) and _is_read_by_steps(jaxpr, known, start, states, [*earlier]):
                return states
    return None


def _candidates(jaxpr: Jaxpr, values: Mapping[Any, Any], start: Any, earlier: Mapping[Any, str]) -> list[Any]:
    """Variables as large as a vector, or a little larger, that are made of it, and of earlier latents alone, and not
    entry by entry."""
    shape, able = start.aval.shape, {*values, *(v for v, n in earlier.items() if n), start}
    reached, mixed, found = {start}, set[Any](), []
    for eqn in jaxpr.eqns:
        own = [v for v in eqn.invars if not isinstance(v, Literal)]
        if eqn.outvars[0] in able or not able.issuperset(own) or eqn.effects:
            continue
        able.update(v for v in eqn.outvars if v not in earlier)
        if reached.intersection(own):
            reached.update(eqn.outvars)
            if mixed.intersection(own) or eqn.primitive.name not in ELEMENTWISE | IDENTITY:
                mixed.update(eqn.outvars)
            found += [v for v in eqn.outvars if v in mixed and _is_float(v) and _fits(v, shape)]
    return found


def _is_float(variable: Any) -> bool:
    return bool(jnp.issubdtype(variable.aval.dtype, jnp.floating))


def _fits(variable: Any, shape: tuple[int, ...]) -> bool:
    own = variable.aval.shape
    return len(own) == len(shape) and all(0 <= n - m <= MOST_AHEAD for n, m in zip(own, shape, strict=True))


def _states(jaxpr: Jaxpr, start: Any, variable: Any, axis: int) -> States | None:
    """A variable as a function of a vector and of what is made without it; None where its other sizes differ, or where
    that takes too long."""
    shape, own = start.aval.shape, variable.aval.shape
    if any(n != m for d, (n, m) in enumerate(zip(own, shape, strict=True)) if d - len(shape) != axis):
        return None
    reached, behind = {start}, []
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
            behind.append(eqn)
    eqns, used = equations_of(behind, [variable])
    if len(eqns) > LONGEST:
        return None
    given = tuple(v for v in used if v not in reached)

    def run(*values: Array) -> Array:
        return run_squeezed(eqns, dict(zip((*given, start), values, strict=True)), [variable], jaxpr.debug_info)[0]

    return States(variable, axis, own[axis] - shape[axis], given, run)


def _follow(numbers: np.ndarray, dense: np.ndarray, axis: int, ahead: int) -> bool:
    """Whether derivatives along even steps, odd ones and a vector are those of states made of earlier ones."""
    moved = np.moveaxis(numbers, axis, 1)
    if np.any(moved[:, :ahead]) or not np.all(np.isfinite(moved)):
        return False
    even, odd, along = moved[:, ahead:]
    with np.errstate(all="ignore"):
        decays, weights = _coefficients(even, odd, np)
    if not np.all(np.isfinite(decays)) or not np.all(weights) or not np.any(np.abs(decays) > CLOSE):
        return False
    state, expected = np.zeros_like(along[0]), []
    for a, w, z in zip(decays, weights, np.moveaxis(dense, axis, 0), strict=True):
        state = a * state + w * z
        expected.append(state)
    return bool(np.allclose(along, expected, rtol=CLOSE, atol=CLOSE * np.abs(along).max()))


def _is_linear(states: States, start: Any) -> bool:
    """Whether the derivative by the vector does not depend on it, whatever the rest is."""

    def tangent(z: Array, t: Array, *values: Array) -> Array:
        return jax.jvp(lambda z: states.run(*values, z), (z,), (t,))[1]

    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (start, start, *states.given)]
    closed = jax.make_jaxpr(tangent)(*avals)
    return not partial_eval.dce_jaxpr(closed.jaxpr, [True])[1][0]


def _is_read_by_steps(jaxpr: Jaxpr, known: Sequence[Any], start: Any, states: States, opaque: Sequence[Any]) -> bool:
    """Whether what is left of a program reads a single step of innovations and of their states, an entry."""
    both = (start, states.variable)
    left = jaxpr.replace(eqns=equations_of(jaxpr.eqns, jaxpr.outvars, (states.variable,))[0])
    return all(reads_single_steps(left, known, v, states.axis, [*opaque, *both]) for v in both)


def run_with(jaxpr: Jaxpr, given: Sequence[Array], states: States, r: Array) -> list[Array]:
    """Run a program, whose constants are inputs, and of whose states r is given."""

    def with_states(eqn: JaxprEqn, value: Value) -> list[Array] | None:
        if states.variable not in eqn.outvars:
            return None
        found = equation_as_function(eqn, jaxpr)(*map(value, eqn.invars))
        written = states.written([value(v) for v in states.given], r)
        return [written if v is states.variable else x for v, x in zip(eqn.outvars, found, strict=True)]

    return interpreted(jaxpr, given, with_states)
