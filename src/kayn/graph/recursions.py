"""Loops whose state is a linear recursion in what they are given: the recursion by itself, all else step by step.

`s_t = a_t s_{t-1} + g_t x_t + b_t` with a, g and b that depend on neither s nor x, as an autoregression has it whose
innovations x are drawn beforehand. All are numbers, or arrays of one shape, each entry of which is a recursion by
itself, as series of a panel are. Apart from the states nothing in such a loop depends on an earlier step.
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
from kayn.programs.primitives import ELEMENTWISE, IDENTITY
from kayn.programs.slices import equation_as_function, slice_outputs
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced

STATE = "state"
Term = tuple[Callable[..., list[Array]], tuple[int, ...]]


def is_recursion(eqn: JaxprEqn) -> bool:
    """Whether an equation is such a recursion by itself: of an initial state, decays and what is added."""
    if eqn.primitive.name != "scan" or eqn.params["num_consts"] or eqn.params["num_carry"] != 1:
        return False
    return [e.primitive.name for e in eqn.params["jaxpr"].jaxpr.eqns] == ["mul", "add"] and len(eqn.invars) == 3


def states_of(start: Array, decay: Array, added: Array) -> Array:
    """`s_t = a_t s_{t-1} + u_t`: [T, *S]."""

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        state = now[0] * state + now[1]
        return state, state

    # without weak types, of which the loop would have conversions
    start, decay = (jax.lax.convert_element_type(x, added.dtype) for x in (start, decay))
    return jax.lax.scan(step, start, (decay, added))[1]


def with_recursions(jaxpr: Jaxpr, inputs: Sequence[Array], starts: Collection[Any]) -> list[Array]:
    """Run a program without calls, with the recursions of loops by themselves that are given some of its variables."""
    env: dict[Any, Array] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
    reached = set(starts)
    for eqn in jaxpr.eqns:
        values = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        mine = [i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in reached]
        loop = _Loop.of(eqn, mine) if mine and eqn.primitive.name == "scan" else None
        out = equation_as_function(eqn, jaxpr)(*values) if loop is None else loop.run([*map(jnp.asarray, values)])
        env.update(zip(eqn.outvars, out, strict=True))
        if mine:
            reached.update(eqn.outvars)
    return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]


@dataclass(frozen=True, eq=False)
class _Loop:
    """A loop with one state that is a linear recursion; its other carries depend on neither state nor givens.

    Attributes:
        state: which carry it is.
        given: which operands it is a recursion in.
        terms: the decay, the slopes in what is given, and what the state becomes where state and givens are zero: each
            a function of some of the body's operands, and which these are.
    """

    eqn: JaxprEqn
    state: int
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
        if eqn.params["reverse"] or min(mine) < consts + carried or is_recursion(eqn):
            return None
        tainted: set[int] = set()
        while True:
            marked = [Sources((STATE,)) if i - consts in tainted or i in mine else Sources() for i in _places(body)]
            new = {j for j, found in enumerate(reach(body.jaxpr, marked)[:carried]) if found}
            if new == tainted:
                break
            tainted = new
        if len(tainted) != 1:
            return None
        (state,) = tainted
        variables = [body.jaxpr.invars[i] for i in (consts + state, *mine)]
        shape = variables[0].aval.shape
        if any(v.aval.shape != shape or not jnp.issubdtype(v.aval.dtype, jnp.floating) for v in variables):
            return None
        if shape and not _by_entry(body, state, (consts + state, *mine)):
            return None
        terms = _terms(body, state, (consts + state, *mine))
        if any({consts + state, *mine} & set(used) for _, used in terms):
            return None
        return _Loop(eqn, state, tuple(mine), terms)

    def run(self, values: Sequence[Array]) -> list[Array]:
        """The loop's results."""
        free = self._free(values)
        decay, *slopes, rest = (self._term(i, values, free) for i in range(len(self.terms)))
        added = sum((g * values[i] for g, i in zip(slopes, self.given, strict=True)), rest)
        start = values[self.consts + self.state]
        if self._only_adds():
            states = start + jnp.cumsum(added, 0)
        else:
            states = states_of(start, jnp.broadcast_to(decay, added.shape), added)
        before = jnp.concatenate([start[None], states[:-1]])
        last, stacked = self._others(values, free, before, states)
        return [*(states[-1] if j == self.state else last[j] for j in range(self.carried)), *stacked]

    def _only_adds(self) -> bool:
        """Whether all decays are the number one."""
        run, used = self.terms[0]
        if used:
            return False
        with jax.ensure_compile_time_eval():
            decay = run()[0]
            return not is_traced(decay) and bool(np.all(np.asarray(decay) == 1))

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
        found += [(x, None) if j == self.state else (x, 0) for j, x in enumerate(free)]
        zeros = {i: (jnp.zeros_like(values[i]), 0) for i in self.given}
        return found + [zeros.get(i, (values[i], 0)) for i in range(end, len(values))]

    def _free(self, values: Sequence[Array]) -> list[Array]:
        """The carries as they enter every step, [T, ...]; zero for the state."""
        init = list(values[self.consts : self.consts + self.carried])
        init[self.state] = jnp.zeros_like(init[self.state])
        others = [j for j in range(self.carried) if j != self.state]
        if not others:
            return init
        run = jaxpr_as_fun(self.eqn.params["jaxpr"])
        rows = [jnp.zeros_like(x) if i in self.given else x for i, x in enumerate(values)][self.consts + self.carried :]

        def step(carry: list[Array], now: list[Array]) -> tuple[list[Array], list[Array]]:
            entering = dict(zip(others, carry, strict=True)) | {self.state: init[self.state]}
            out = run(*values[: self.consts], *(entering[j] for j in range(self.carried)), *now)
            return [out[j] for j in others], carry

        _, stacked = jax.lax.scan(step, [init[j] for j in others], rows, length=self.eqn.params["length"])
        found = dict(zip(others, stacked, strict=True)) | {self.state: init[self.state]}
        return [found[j] for j in range(self.carried)]

    def _others(
        self, values: Sequence[Array], free: Sequence[Array], before: Array, states: Array
    ) -> tuple[list[Array], list[Array]]:
        """The last of all carries, and what every step puts out, given the states that enter and leave it."""
        run = _given_state(self.eqn.params["jaxpr"], self.state)
        inputs = [x for x, _ in self._inputs(values, free)]
        axes = [axis for _, axis in self._inputs(values, free)]
        place = self.consts + self.state
        inputs[place], axes[place] = before, 0
        for i in self.given:
            inputs[i] = values[i]
        out = jax.vmap(run, [0, *axes], axis_size=self.eqn.params["length"])(states, *inputs)
        return [x[-1] for x in out[: self.carried]], out[self.carried :]


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

    def run(value: Array, *inputs: Array) -> list[Array]:
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*body.consts, *inputs), strict=True))
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            env.update(zip(eqn.outvars, equation_as_function(eqn, jaxpr)(*values), strict=True))
            if new in env:
                env[new] = value
        return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]

    return run
