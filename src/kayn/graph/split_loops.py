"""Loops over several states that do not all depend on each other, as a loop each: that of the slope of a series before
that of its level.

A loop that another's state is made of runs first; that one is given its states, those that enter a step and those that
leave it, as what belongs to the step. What a step puts out besides is computed of all states at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph.flow import Sources, reach
from kayn.programs.interpret import Value, interpreted_behind
from kayn.programs.slices import equation_as_function, equations_of
from kayn.support.arrays import Array

Groups = tuple[tuple[int, ...], ...]
"""Carries of a loop that depend on each other, those that others are made of first."""


def with_split_loops(jaxpr: Jaxpr, inputs: Sequence[Array], starts: Collection[Any]) -> list[Array]:
    """Run a program without calls, with those loops split in whose states several of its variables are."""

    def split(eqn: JaxprEqn, mine: Sequence[int], value: Value) -> list[Array] | None:
        groups = groups_of(eqn, mine) if eqn.primitive.name == "scan" else ()
        return _Split(eqn, groups).run([jnp.asarray(value(v)) for v in eqn.invars]) if groups else None

    return interpreted_behind(jaxpr, inputs, starts, split)


def groups_of(eqn: JaxprEqn, mine: Sequence[int]) -> Groups:
    """The carries of a loop by what they depend on; none where all that are made of some operands depend on each
    other."""
    body, consts, carried = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"], eqn.params["num_carry"]
    marked = [Sources((str(i),)) for i in range(len(body.invars))]
    needs = [{int(i) - consts for i in found} for found in reach(body, marked)[:carried]]
    for j in range(carried):  # what is handed on belongs to where it comes from
        for i in (i for i in range(carried) if body.outvars[j] is body.invars[consts + i]):
            needs[i] = needs[i] | {j}
    given = [{i for i in own if not 0 <= i < carried} for own in needs]
    before = [{i for i in own if 0 <= i < carried} | {j} for j, own in enumerate(needs)]
    for _ in range(carried):
        before = [set().union(*(before[i] for i in own)) for own in before]
    groups = {tuple(i for i in sorted(own) if j in before[i]) for j, own in enumerate(before)}
    places = {i - consts for i in mine}
    tainted = [g for g in groups if any(places & given[i] for j in g for i in before[j])]
    return tuple(sorted(groups, key=lambda g: len(before[g[0]]))) if len(tainted) > 1 else ()


@dataclass(frozen=True, eq=False)
class _Split:
    eqn: JaxprEqn
    groups: Groups

    @property
    def body(self) -> Jaxpr:
        return self.eqn.params["jaxpr"].jaxpr

    def run(self, values: Sequence[Array]) -> list[Array]:
        """The loop's results."""
        consts, carried = self.eqn.params["num_consts"], self.eqn.params["num_carry"]
        init, rows = values[consts : consts + carried], list(values[consts + carried :])
        turned, length = self.eqn.params["reverse"], self.eqn.params["length"]
        if turned:
            rows = [jnp.flip(x, 0) for x in rows]
        fixed = dict(zip(self.body.constvars, self.eqn.params["jaxpr"].consts, strict=True))
        fixed |= dict(zip(self.body.invars, values[:consts], strict=False))
        along = dict(zip(self.body.invars[consts + carried :], rows, strict=True))
        for group in self.groups:
            entering, leaving = [self.body.invars[consts + j] for j in group], [self.body.outvars[j] for j in group]
            run = _Needed.of(self.body, leaving, along)
            used = [v for v in along if v in run.used]

            def step(
                states: list[Array], now: list[Array], run: _Needed = run, names: Sequence[Any] = (*entering, *used)
            ) -> tuple[list[Array], list[Array]]:
                new = run({**fixed, **dict(zip(names, (*states, *now), strict=True))})
                return new, new

            starts = [jnp.asarray(init[j], v.aval.dtype) for j, v in zip(group, entering, strict=True)]
            stacked = jax.lax.scan(step, starts, [along[v] for v in used], length=length)[1]
            for start, before, after, x in zip(starts, entering, leaving, stacked, strict=True):
                along[before] = jnp.concatenate([start[None], x[:-1]])
                if not isinstance(after, Literal):
                    along.setdefault(after, x)
        found = [self._all_steps(v, fixed, along) for v in self.body.outvars]
        last, rest = [x[-1] for x in found[:carried]], found[carried:]
        return [*last, *((jnp.flip(x, 0) for x in rest) if turned else rest)]

    def _all_steps(self, variable: Any, fixed: Mapping[Any, Array], along: Mapping[Any, Array]) -> Array:
        """What a variable of the body is at every step."""
        if not isinstance(variable, Literal) and variable in along:
            return along[variable]
        run = _Needed.of(self.body, [variable], along)
        used = [v for v in along if v in run.used]

        def at(now: list[Array]) -> Array:
            return run({**fixed, **dict(zip(used, now, strict=True))})[0]

        return jax.vmap(at, axis_size=self.eqn.params["length"])([along[v] for v in used])


@dataclass(frozen=True, eq=False)
class _Needed:
    """Variables of a program as a function of others: only what these need is run.

    Attributes:
        used: what is needed.
    """

    jaxpr: Jaxpr
    wanted: Sequence[Any]
    used: frozenset[Any]
    eqns: tuple[JaxprEqn, ...]

    @staticmethod
    def of(jaxpr: Jaxpr, wanted: Sequence[Any], known: Collection[Any]) -> _Needed:
        """What is known is not computed again."""
        eqns, used = equations_of(jaxpr.eqns, wanted, known)
        return _Needed(jaxpr, wanted, frozenset(used), tuple(eqns))

    def __call__(self, env: Mapping[Any, Array]) -> list[Array]:
        """Their values, given those of all variables that they need."""
        known = dict(env)

        def value(v: Any) -> Array:
            return v.val if isinstance(v, Literal) else known[v]

        for eqn in self.eqns:
            out = equation_as_function(eqn, self.jaxpr)(*map(value, eqn.invars))
            known = {**dict(zip(eqn.outvars, out, strict=True)), **known}
        return [jnp.asarray(value(v), v.aval.dtype) for v in self.wanted]
