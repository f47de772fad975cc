"""Loops whose state is a recursion in what they are given: the recursion by itself, all else step by step.

`s_t = a_t s_{t-1} + g_t x_t + b_t` with a, g and b that depend on neither s nor x, as an autoregression has it whose
innovations x are drawn beforehand. All are numbers, or arrays of one shape, each entry of which is a recursion by
itself, as series of a panel are. A loop may carry earlier states on, s_{t-2} and so on, and may run backwards. Apart
from the states nothing in it depends on an earlier step. Where such a state is no linear function of earlier ones, or
its elements depend on each other, it may be linear at least in the one thing that a step is given: it is a loop by
itself then, of states alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from kayn.graph.flow import Sources, reach
from kayn.graph.totals import run_flat
from kayn.programs.interpret import Value, interpreted, interpreted_behind
from kayn.programs.primitives import ELEMENTWISE, IDENTITY
from kayn.programs.running import states_of
from kayn.programs.slices import equation_as_function, slice_outputs
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced

LINEAR = IDENTITY | {"add", "broadcast_in_dim", "convert_element_type", "neg", "reshape", "squeeze", "sub"}
STATE = "state"
Term = tuple[Callable[..., list[Array]], tuple[int, ...]]


def is_recursion(eqn: JaxprEqn) -> bool:
    """Whether an equation is such a recursion by itself: of initial states, decays and what is added."""
    if eqn.primitive.name != "scan" or eqn.params["num_consts"] or eqn.params["reverse"]:
        return False
    order, names = eqn.params["num_carry"], [e.primitive.name for e in eqn.params["jaxpr"].jaxpr.eqns]
    body, inputs = eqn.params["jaxpr"].jaxpr, len(eqn.invars)
    if not order or names != ["mul"] * order + ["add"] * order or inputs != 2 * order + 1:
        return False
    return [*body.outvars[1:order]] == [*body.invars[: order - 1]] and body.outvars[-1] is body.outvars[0]


def is_of_states(eqn: JaxprEqn) -> bool:
    """Whether an equation is a loop that carries its state, and that one step earlier, and so on, and gives it back."""
    if eqn.primitive.name != "scan" or eqn.params["reverse"] or not eqn.params["num_carry"]:
        return False
    order, body, first = eqn.params["num_carry"], eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"]
    handed = [*body.outvars[1:order]] == [*body.invars[first : first + order - 1]]
    return handed and len(body.outvars) == order + 1 and body.outvars[-1] is body.outvars[0]


def decays_of(eqn: JaxprEqn) -> list[Any]:
    """The decays of each lag of a recursion; what is added is behind them."""
    order = eqn.params["num_carry"]
    return eqn.invars[order : 2 * order]


def with_recursions(jaxpr: Jaxpr, inputs: Sequence[Array], starts: Collection[Any]) -> list[Array]:
    """Run a program without calls, with the recursions of loops by themselves that are given some of its variables."""

    def by_itself(eqn: JaxprEqn, mine: Sequence[int], value: Value) -> list[Array] | None:
        loop = _Loop.of(eqn, mine) if eqn.primitive.name == "scan" else None
        return None if loop is None else loop.run([jnp.asarray(value(v)) for v in eqn.invars])

    return interpreted_behind(jaxpr, inputs, starts, by_itself)


@dataclass(frozen=True, eq=False)
class _Loop:
    """A loop with one state that is a recursion; its other carries depend on neither state nor givens.

    Attributes:
        states: which carry the state is, and those that are it one step earlier, two, and so on.
        given: which operands it is a recursion in.
        terms: the decays, the slopes in what is given, and what the state becomes where states and givens are zero:
            each a function of some of the body's operands, and which these are. Where it is not linear only the slope,
            if that does not depend on the state.
    """

    eqn: JaxprEqn
    states: tuple[int, ...]
    given: tuple[int, ...]
    terms: tuple[Term, ...]

    @property
    def consts(self) -> int:
        return int(self.eqn.params["num_consts"])

    @property
    def carried(self) -> int:
        return int(self.eqn.params["num_carry"])

    @staticmethod
    def of(eqn: JaxprEqn, mine: Sequence[int]) -> _Loop | None:
        """None for other loops."""
        consts, carried, body = eqn.params["num_consts"], eqn.params["num_carry"], eqn.params["jaxpr"]
        if min(mine) < consts + carried or is_recursion(eqn):
            return None
        tainted: set[int] = set()
        while True:
            marked = [Sources((STATE,)) if i - consts in tainted or i in mine else Sources() for i in _places(body)]
            new = {j for j, found in enumerate(reach(body.jaxpr, marked)[:carried]) if found}
            if new == tainted:
                break
            tainted = new
        states = _carried_on(body.jaxpr, consts, tainted)
        if not states:
            return None
        followed = (*(consts + j for j in states), *mine)
        variables = [body.jaxpr.invars[i] for i in followed]
        shape = variables[0].aval.shape
        if any(v.aval.shape != shape or not jnp.issubdtype(v.aval.dtype, jnp.floating) for v in variables):
            return None
        terms = _terms(body, states[0], followed) if not shape or _by_entry(body, states[0], followed) else ()
        if not terms or any({*followed} & set(used) for _, used in terms):
            slope = slope_of(body, states[0], mine)
            if slope is None:
                return None
            terms = () if {*followed} & set(slope[1]) else (slope,)
            if is_of_states(eqn) and (not terms or _is_one(slope)):
                return None  # it stands by itself
        return _Loop(eqn, states, tuple(mine), terms)

    def run(self, values: Sequence[Array]) -> list[Array]:
        """The loop's results."""
        turned, first = bool(self.eqn.params["reverse"]), self.consts + self.carried
        if turned:
            values = [*values[:first], *(jnp.flip(x, 0) for x in values[first:])]
        free = self._free(values)
        starts = [values[self.consts + j] for j in self.states]
        states = (self._linear if len(self.terms) > 1 else self._stepped)(values, free, starts)
        leaving = [states]
        for start in starts:
            leaving.append(jnp.concatenate([start[None], leaving[-1][:-1]]))
        last, stacked = self._others(values, free, leaving[1:], states)
        ends = dict(zip(self.states, leaving, strict=False))
        stacked = [jnp.flip(x, 0) for x in stacked] if turned else stacked
        return [*(ends[j][-1] if j in ends else last[j] for j in range(self.carried)), *stacked]

    def _linear(self, values: Sequence[Array], free: Sequence[Array], starts: Sequence[Array]) -> Array:
        order = len(self.states)
        terms = [self._term(i, values, free) for i in range(len(self.terms))]
        added = sum((g * values[i] for g, i in zip(terms[order:-1], self.given, strict=True)), terms[-1])
        if self._only_adds():
            return starts[0] + jnp.cumsum(added, 0)
        return states_of(starts, [jnp.broadcast_to(decay, added.shape) for decay in terms[:order]], added)

    def _stepped(self, values: Sequence[Array], free: Sequence[Array], starts: Sequence[Array]) -> Array:
        """The states, of what is given times its slope where that is none of earlier states."""
        body, state, first = self.eqn.params["jaxpr"], self.states[0], self.consts + self.carried
        run, place = jaxpr_as_fun(body), self.given[0]
        others = [j for j in range(self.carried) if j not in self.states]
        added = self._term(0, values, free) * values[place] if self.terms else None
        along = [None if added is not None and i == place else x for i, x in enumerate(values[first:], first)]

        def step(states: tuple[Array, ...], now: tuple) -> tuple[tuple[Array, ...], Array]:
            rows, carried, more = now
            entering = dict(zip(self.states, states, strict=True)) | dict(zip(others, carried, strict=True))
            given = [*values[: self.consts], *(entering[j] for j in range(self.carried)), *rows]
            new = run(*given)[state] if more is None else without(body, place, state)(given) + more
            return (new, *states[:-1]), new

        return jax.lax.scan(step, tuple(starts), (along, [free[j] for j in others], added))[1]

    def _only_adds(self) -> bool:
        """Whether the one decay is the number one at all steps."""
        return len(self.states) == 1 and _is_one(self.terms[0])

    def _term(self, number: int, values: Sequence[Array], free: Sequence[Array]) -> Array:
        """A term at every step, [T, *S], or one for all, [*S], where it is the same."""
        run, used = self.terms[number]
        known = [self._inputs(values, free)[i] for i in used]
        if all(axis is None for _, axis in known):
            return run(*(x for x, _ in known))[0]
        return jax.vmap(lambda *x: run(*x)[0], [axis for _, axis in known])(*(x for x, _ in known))

    def _inputs(self, values: Sequence[Array], free: Sequence[Array]) -> list[tuple[Array, int | None]]:
        """What enters the body at every step, with the dimension of steps; zeros for what is followed."""
        end = self.consts + self.carried
        found: list[tuple[Array, int | None]] = [(x, None) for x in values[: self.consts]]
        found += [(x, None) if j in self.states else (x, 0) for j, x in enumerate(free)]
        zeros = {i: (jnp.zeros_like(values[i]), 0) for i in self.given}
        return found + [zeros.get(i, (values[i], 0)) for i in range(end, len(values))]

    def _free(self, values: Sequence[Array]) -> list[Array]:
        """The carries as they enter every step, [T, ...]; zero for the states."""
        init = [
            jnp.zeros_like(x) if j in self.states else x
            for j, x in enumerate(values[self.consts : self.consts + self.carried])
        ]
        others = [j for j in range(self.carried) if j not in self.states]
        if not others:
            return init
        run = jaxpr_as_fun(self.eqn.params["jaxpr"])
        rows = [jnp.zeros_like(x) if i in self.given else x for i, x in enumerate(values)][self.consts + self.carried :]

        def step(carry: list[Array], now: list[Array]) -> tuple[list[Array], list[Array]]:
            entering = dict(enumerate(init)) | dict(zip(others, carry, strict=True))
            out = run(*values[: self.consts], *(entering[j] for j in range(self.carried)), *now)
            return [out[j] for j in others], carry

        _, stacked = jax.lax.scan(step, [init[j] for j in others], rows, length=self.eqn.params["length"])
        found = dict(enumerate(init)) | dict(zip(others, stacked, strict=True))
        return [found[j] for j in range(self.carried)]

    def _others(
        self, values: Sequence[Array], free: Sequence[Array], before: Sequence[Array], states: Array
    ) -> tuple[list[Array], list[Array]]:
        """The last of all carries, and what every step puts out, given the states that enter and leave it."""
        run = _given_state(self.eqn.params["jaxpr"], self.states[0])
        inputs = [x for x, _ in self._inputs(values, free)]
        axes = [axis for _, axis in self._inputs(values, free)]
        for j, earlier in zip(self.states, before, strict=True):
            inputs[self.consts + j], axes[self.consts + j] = earlier, 0
        for i in self.given:
            inputs[i] = values[i]
        out = jax.vmap(run, [0, *axes], axis_size=self.eqn.params["length"])(states, *inputs)
        return [x[-1] for x in out[: self.carried]], out[self.carried :]


def _carried_on(jaxpr: Jaxpr, consts: int, tainted: Collection[int]) -> tuple[int, ...]:
    """Of some carries the state, and those that are handed on from it, and from each other; none for other carries."""
    handed = {i: j for i in tainted for j in tainted if jaxpr.outvars[j] is jaxpr.invars[consts + i]}
    heads = [j for j in tainted if len(tainted) == 1 or j not in handed.values()]
    states = heads if len(heads) == 1 else []
    while states and len(states) < len(tainted) and states[-1] in handed:
        states.append(handed[states[-1]])
    return tuple(states) if len(states) == len(tainted) else ()


def _places(body: ClosedJaxpr) -> range:
    return range(len(body.jaxpr.invars))


def _by_entry(body: ClosedJaxpr, state: int, followed: Sequence[int]) -> bool:
    """Whether every entry of a body's state depends on the same entry of some of its operands alone."""
    flat = jax.make_jaxpr(lambda *x: run_flat(body.jaxpr, [*body.consts, *x]))(*(v.aval for v in body.jaxpr.invars))
    apart: set[Any] = {flat.jaxpr.invars[i] for i in followed}
    mixed: set[Any] = set()
    shape = flat.jaxpr.invars[followed[0]].aval.shape
    for eqn in flat.jaxpr.eqns:
        own = [v for v in eqn.invars if not isinstance(v, Literal) and v in apart | mixed]
        if own:
            moves = mixed.intersection(own) or eqn.primitive.name not in ELEMENTWISE | IDENTITY
            (mixed if moves or eqn.outvars[0].aval.shape != shape else apart).update(eqn.outvars)
    return flat.jaxpr.outvars[state] not in mixed


def slope_of(body: ClosedJaxpr, state: int, mine: Sequence[int]) -> Term | None:
    """The derivative of a body's state by the one thing that a step is given, in which it is linear, entry by entry,
    whatever the rest is; None where it is not."""
    if len(mine) > 1 or not _by_entry(body, state, mine):
        return None
    slope = _terms(body, state, mine)[0]
    return None if {*mine} & set(slope[1]) else slope


def without(body: ClosedJaxpr, place: int, result: int) -> Callable[[Sequence[Any]], Array]:
    """A body's result where one of its operands, which need not be given, is zero: what that multiplies is left out."""
    flat = jax.make_jaxpr(lambda *x: run_flat(body.jaxpr, [*body.consts, *x]))(*(v.aval for v in body.jaxpr.invars))

    absent = flat.jaxpr.invars[place]

    def run(given: Sequence[Any]) -> Array:
        zeros = {absent}

        def left_out(eqn: JaxprEqn, value: Value) -> list[Array] | None:
            name, out = eqn.primitive.name, eqn.outvars[0]
            none = [not isinstance(v, Literal) and v in zeros for v in eqn.invars]
            if any(none) and (name == "mul" or (name in LINEAR and all(none))):
                zeros.add(out)
                return [jnp.zeros(out.aval.shape, out.aval.dtype)]
            if (none == [True, False] and name == "add") or (none == [False, True] and name in ("add", "sub")):
                return [jnp.broadcast_to(value(eqn.invars[none.index(False)]), out.aval.shape)]
            return None

        inputs = [*flat.consts, *given]
        inputs[len(flat.consts) + place] = jnp.zeros(absent.aval.shape, absent.aval.dtype)
        return interpreted(flat.jaxpr, inputs, left_out)[result]

    return run


def _is_one(term: Term) -> bool:
    """Whether a term is the number one, whatever the operands are."""
    run, used = term
    if used:
        return False
    with jax.ensure_compile_time_eval():
        number = run()[0]
        return not is_traced(number) and bool(np.all(np.asarray(number) == 1))


def _terms(body: ClosedJaxpr, state: int, followed: Sequence[int]) -> tuple[Term, ...]:
    """The derivatives of a body's state by some of its operands, and what it is where these are zero."""
    run = jaxpr_as_fun(body)

    def all_terms(*inputs: Array) -> list[Array]:
        def of(some: Mapping[int, Array]) -> Array:
            return run(*(some.get(i, x) for i, x in enumerate(inputs)))[state]

        slopes = [jax.jvp(lambda x, i=i: of({i: x}), (inputs[i],), (jnp.ones_like(inputs[i]),))[1] for i in followed]
        return [*slopes, of({i: jnp.zeros_like(inputs[i]) for i in followed})]

    avals = [v.aval for v in body.jaxpr.invars]
    terms = jax.make_jaxpr(all_terms)(*avals)
    flat = jax.make_jaxpr(lambda *x: run_flat(terms.jaxpr, [*terms.consts, *x]))(*avals)

    def term(number: int) -> Term:
        compute, used = slice_outputs(flat.jaxpr, [number])
        count = len(flat.consts)
        known = [flat.consts[i] for i in used if i < count]
        return (lambda *x: compute(*known, *x)), tuple(i - count for i in used if i >= count)

    return tuple(map(term, range(len(followed) + 1)))


def _given_state(body: ClosedJaxpr, state: int) -> Callable[..., list[Array]]:
    """A body as a function of the state that it puts out, and of its operands."""
    jaxpr, new = body.jaxpr, body.jaxpr.outvars[state]
    if isinstance(new, Literal) or not any(new is v for e in jaxpr.eqns for v in e.outvars):
        return lambda _, *inputs: jaxpr_as_fun(body)(*inputs)

    def run(given: Array, *inputs: Array) -> list[Array]:
        def with_state(eqn: JaxprEqn, value: Value) -> list[Array] | None:
            if not any(new is v for v in eqn.outvars):
                return None
            found = equation_as_function(eqn, jaxpr)(*map(value, eqn.invars))
            return [given if v is new else x for v, x in zip(eqn.outvars, found, strict=True)]

        return interpreted(jaxpr, [*body.consts, *inputs], with_state)

    return run
