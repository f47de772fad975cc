"""Marks through equations that run programs of their own: loops, branches and solvers.

The steps of a loop are read all at once: its body is mapped over steps, so that every rule sees each step's own data,
and what is carried from one step to the next is found by a fixed point. Long loops over large arrays are read as one
step that may be any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from kayn.graph.expressions import Made, Node, Operation
from kayn.graph.marks.algebra import FAR, Mark, Marks, along, anything, joined, whole
from kayn.graph.marks.walk import Body, Equation, Reading, Walk
from kayn.programs.slices import slice_outputs

LARGEST = 2**25
"""Entries of all arrays in all steps of a loop up to which each step is read for itself."""
ROUNDS = 8
"""How often a carry is followed through all steps before what any step carries is taken for every one."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop of a known number of steps, as `lax.scan` has it."""

    walk: Walk
    body: ClosedJaxpr
    length: int
    reverse: bool
    consts: Sequence[Reading]
    start: Sequence[Reading]
    rows: Sequence[Reading]

    def read(self) -> list[Marks]:
        """Marks of the last carry and of stacked results."""
        entries = self.length * _entries(self.body.jaxpr, len(self.consts))
        found = self._by_step() if self.length and entries <= LARGEST else None
        return self._as_one() if found is None else found

    # -- step by step

    def _by_step(self) -> list[Marks] | None:
        jaxpr, count = self.body.jaxpr, len(self.start)
        kept = [jaxpr.outvars[i] is jaxpr.invars[len(self.consts) + i] for i in range(count)]
        axes = [None] * len(self.consts) + [None if k else 0 for k in kept] + [0] * len(self.rows)
        avals = [v.aval for v in jaxpr.invars]
        wide = [_batched(a, self.length) if x == 0 else a for a, x in zip(avals, axes, strict=True)]
        try:
            over_steps = jax.vmap(jaxpr_as_fun(self.body), in_axes=tuple(axes), axis_size=self.length)
            closed = jax.make_jaxpr(over_steps)(*wide)
        except (NotImplementedError, TypeError, ValueError):  # a primitive that cannot be mapped
            return None
        carried = [s.node if k else self._carried(i) for i, (s, k) in enumerate(zip(self.start, kept, strict=True))]
        consts = [self.walk.constant(c) for c in closed.consts]

        def step(carry: list[Marks]) -> list[Marks]:
            now = [Reading(n, m) for n, m in zip(carried, carry, strict=True)]
            return [r.marks for r in self.walk.run(closed.jaxpr, [*consts, *self.consts, *now, *self.rows])]

        shapes = [(self.length, *v.aval.shape) for v in jaxpr.outvars[:count]]
        firsts = [s.marks for s in self.start]

        def before(out: Sequence[Marks]) -> list[Marks]:
            """What enters each step, where `out` leaves it."""
            return [
                f if k else {key: self._shifted(f.get(key), o.get(key), shape) for key in {**f, **o}}
                for f, o, k, shape in zip(firsts, out, kept, shapes, strict=False)
            ]

        out = fixed_point(before([{}] * count), step, before, lambda marks: self._alike(marks, kept))[1]
        last = 0 if self.reverse else -1
        ends = [
            f if k else {key: m[:, last] for key, m in o.items()} for f, o, k in zip(firsts, out, kept, strict=False)
        ]
        return [*ends, *out[count:]]

    def _shifted(self, first: Mark | None, out: Mark | None, shape: tuple[int, ...]) -> Mark:
        found = np.empty((2, *shape), np.int32)
        start, later, left = (
            (-1, slice(None, -1), slice(1, None)) if self.reverse else (0, slice(1, None), slice(None, -1))
        )
        found[:, start] = -FAR if first is None else first
        found[:, later] = -FAR if out is None else out[:, left]
        return found

    def _alike(self, carry: Sequence[Marks], kept: Sequence[bool]) -> list[Marks]:
        """Every step with what any has."""
        return [
            marks if k else {key: np.broadcast_to(along(m, [0], keep=True), m.shape) for key, m in marks.items()}
            for marks, k in zip(carry, kept, strict=True)
        ]

    def _carried(self, which: int) -> Node:
        """What enters each step of one carry, computed from no more of the loop than that needs: [steps, *shape]."""
        jaxpr, count = self.body.jaxpr, len(self.start)
        operands = [*map(self.walk.constant, self.body.consts), *self.consts, *self.start, *self.rows]
        fixed = len(operands) - count - len(self.rows)
        order, run, used = needed_carries(jaxpr, {which}, fixed, count)
        places = sorted({*used, *(fixed + i for i in order)})
        length, reverse = self.length, self.reverse

        def compute(*values: Any) -> Any:
            given = dict(zip(places, values, strict=True))
            rows = {i: v for i, v in given.items() if i >= fixed + count}

            def forth(carry: dict[int, Any], row: dict[int, Any]) -> tuple[dict[int, Any], Any]:
                now = {**given, **{fixed + i: c for i, c in carry.items()}, **row}
                out = run(*(now[i] for i in used))
                return dict(zip(order, out, strict=True)), carry[which]

            start = {i: jax.numpy.asarray(given[fixed + i]) for i in order}
            return lax.scan(forth, start, rows, length=length, reverse=reverse)[1]

        name = Operation(Made.STEP, ("carried", id(self.body), which, length, reverse), {"body": self.body})
        return self.walk.nodes.apply(name, compute, [operands[i].node for i in places])

    # -- any step

    def _as_one(self) -> list[Marks]:
        jaxpr, count = self.body.jaxpr, len(self.start)
        kept = [jaxpr.outvars[i] is jaxpr.invars[len(self.consts) + i] for i in range(count)]
        rows = [{key: along(m, [0]) for key, m in r.marks.items()} for r in self.rows] if self.length else []
        rows = rows or [{} for _ in self.rows]
        consts = [self.walk.constant(c) for c in self.body.consts]
        firsts = [s.marks for s in self.start]

        def step(carry: list[Marks]) -> list[Marks]:
            carries = [
                s if k else Reading(self.walk.fresh(), m) for s, m, k in zip(self.start, carry, kept, strict=True)
            ]
            now = [*carries, *(Reading(self.walk.fresh(), m) for m in rows)]
            return [r.marks for r in self.walk.run(jaxpr, [*consts, *self.consts, *now])]

        carry, out = fixed_point(firsts, step, lambda out: [merged(f, o) for f, o in zip(firsts, out, strict=False)])
        ys = [
            {key: np.broadcast_to(m[:, None], (2, self.length, *m.shape[1:])) for key, m in marks.items()}
            for marks in out[count:]
        ]
        return [*(merged(c, o) for c, o in zip(carry, out, strict=False)), *ys]


def needed_carries(
    jaxpr: Jaxpr, wanted: set[int], first: int, count: int
) -> tuple[list[int], Callable[..., list[Any]], tuple[int, ...]]:
    """The carries that some of them are computed of, and the program that computes these, with what it takes.

    Args:
        first, count: where carries are among constants and inputs.
    """
    while True:
        order = sorted(wanted)
        run, used = slice_outputs(jaxpr, order)
        grown = wanted | {i - first for i in used if first <= i < first + count}
        if grown == wanted:
            return order, run, used
        wanted = grown


def fixed_point(
    start: list[Marks],
    step: Callable[[list[Marks]], list[Marks]],
    before: Callable[[Sequence[Marks]], list[Marks]],
    alike: Callable[[list[Marks]], list[Marks]] = list,
) -> tuple[list[Marks], list[Marks]]:
    """What is carried into steps that give no more than that, and what they give then.

    Args:
        before: what is carried into steps, of what they give.
        alike: coarser marks, for a carry that takes many rounds to settle.
    """
    carry = start
    for turn in range(1, 4 * ROUNDS):
        out = step(carry)
        grown: list[Marks] = [merged(a, b) for a, b in zip(carry, before(out), strict=True)]
        if turn >= ROUNDS:
            grown = alike(grown)
        if turn >= 2 * ROUNDS:
            grown = [{k: _widened(m, a.get(k)) for k, m in g.items()} for g, a in zip(grown, carry, strict=True)]
        if all(_same(a, b) for a, b in zip(carry, grown, strict=True)):
            return carry, out
        carry = grown
    everything: list[Marks] = [{k: anything(m.shape[1:]) for k, m in marks.items()} for marks in carry]
    return everything, step(everything)


def merged(a: Marks, b: Marks) -> Marks:
    """What is read in one way or in another."""
    return {k: joined([a.get(k), b.get(k)], (a[k] if k in a else b[k]).shape[1:]) for k in {**a, **b}}


def _same(a: Marks, b: Marks) -> bool:
    return a.keys() == b.keys() and all(a[k] is b[k] or np.array_equal(a[k], b[k]) for k in a)


def _widened(mark: Mark, before: Mark | None) -> Mark:
    """Entries that still grow may read anything."""
    grows = np.ones(mark.shape[1:], bool) if before is None else (mark != before).any(0)
    return np.where(grows, np.int32(FAR), mark)


def _batched(aval: Any, length: int) -> Any:
    return jax.ShapeDtypeStruct((length, *aval.shape), aval.dtype)


def _entries(jaxpr: Jaxpr, fixed: int) -> int:
    """Entries of all arrays of a step, but for the first inputs, which are the same in all; what it calls counts as its
    results."""
    variables = [*jaxpr.invars[fixed:], *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
    return sum(math.prod(getattr(v.aval, "shape", ())) for v in variables)


def scan(q: Equation) -> list[Marks]:
    """A loop over rows."""
    consts, carried = q.params["num_consts"], q.params["num_carry"]
    fixed, start, rows = _cut(q.operands, consts, consts + carried)
    body, length, reverse = (q.params[p] for p in ("jaxpr", "length", "reverse"))
    return Loop(q.walk, body, length, reverse, fixed, start, rows).read()


def while_loop(q: Equation) -> list[Marks]:
    """A loop that ends by what it carries.

    Where data alone say when, it is one of so many steps. Where latents do, a result reads what they do as well, at its
    place in a batch, but for what has settled: one more step leaves it as it is, so that it does not matter who else
    goes on.
    """
    test, body = q.params["cond_jaxpr"], q.params["body_jaxpr"]
    asked, used = q.params["cond_nconsts"], q.params["body_nconsts"]
    of_test, of_body, start = _cut(q.operands, asked, asked + used)
    steps = _steps(q, test, body, of_test, of_body, start)
    if steps is not None:
        return Loop(q.walk, body, steps, False, of_body, start, ()).read()
    own = [[q.walk.constant(c) for c in closed.consts] for closed in (test, body)]
    firsts = [s.marks for s in start]

    def step(carry: list[Marks]) -> list[Marks]:
        now = [Reading(q.walk.fresh(), m) for m in carry]
        return [r.marks for r in q.walk.run(body.jaxpr, [*own[1], *of_body, *now])]

    carry, _ = fixed_point(firsts, step, lambda out: [merged(f, o) for f, o in zip(firsts, out, strict=True)])
    (ends,) = q.walk.run(test.jaxpr, [*own[0], *of_test, *(Reading(q.walk.fresh(), m) for m in carry)])
    ended = [merged(c, _at_batches(ends.marks, v.aval.shape)) for c, v in zip(carry, q.eqn.outvars, strict=True)]
    if all(_same(a, b) for a, b in zip(carry, ended, strict=True)):
        return ended
    return [c if s else e for c, e, s in zip(carry, ended, _settled(q, body, of_body), strict=True)]


def _at_batches(marks: Marks, shape: Sequence[int]) -> Marks:
    """Marks of a predicate for the entries of an array whose first dimensions are those of the predicate."""
    return {k: joined([m.reshape(*m.shape, *(1,) * (len(shape) - m.ndim + 1))], shape) for k, m in marks.items()}


def _steps(
    q: Equation, test: ClosedJaxpr, body: ClosedJaxpr, of_test: Any, of_body: Any, start: Sequence[Reading]
) -> int | None:
    """How many steps a loop takes, where data alone say it."""
    asked, used, count = len(of_test), len(of_body), len(start)
    ask, tests = slice_outputs(test.jaxpr, [0])
    order, run, bodies = needed_carries(body.jaxpr, {i - asked for i in tests if i >= asked}, used, count)
    consts = [*test.consts, *body.consts]
    given = {i: q.walk.values.known(start[i].node) for i in order}
    tested = {i: q.walk.values.known(of_test[i].node) for i in tests if i < asked}
    stepped = {i: q.walk.values.known(of_body[i].node) for i in bodies if i < used}
    if (
        test.out_avals[0].shape
        or consts
        or any(v is None for v in (*given.values(), *tested.values(), *stepped.values()))
    ):
        return None

    def goes_on(state: Any) -> Any:
        carry, _ = state
        return ask(*(carry[i - asked] if i >= asked else tested[i] for i in tests))[0]

    def go(state: Any) -> Any:
        carry, taken = state
        out = run(*(carry[i - used] if i >= used else stepped[i] for i in bodies))
        return dict(zip(order, out, strict=True)), taken + 1

    with jax.ensure_compile_time_eval():
        begin = {i: jax.numpy.asarray(v) for i, v in given.items()}
        return int(lax.while_loop(goes_on, go, (begin, 0))[1])


TOLERANCE = 1e-4
"""How much a step may still change of what has settled, beside its size and one."""


def _settled(q: Equation, body: ClosedJaxpr, of_body: Sequence[Reading]) -> list[bool]:
    """Which carries one more step would leave as they are, at trial values."""
    walk = q.walk
    final = [walk.values.tried(n) for n in q.results]
    consts = [walk.values.tried(o.node) for o in of_body]
    if any(v is None for v in (*final, *consts)):
        return [False] * len(final)
    with jax.ensure_compile_time_eval():
        more = jaxpr_as_fun(body)(*consts, *final)

    def close(before: Any, after: Any) -> bool:
        a, b = np.asarray(before), np.asarray(after)
        return a.dtype.kind in "bif" and bool(np.allclose(a.astype(float), b.astype(float), TOLERANCE, TOLERANCE))

    return list(map(close, final, more))


def cond(q: Equation) -> list[Marks]:
    """The branch that is taken, where that is known; any of them and what chooses, where it is not."""
    which, branches, operands = q.known(0), q.params["branches"], q.operands[1:]
    if which is not None:
        branches = [branches[int(np.clip(which, 0, len(branches) - 1))]]
    found: list[Marks] = [{k: whole([m], v.aval.shape) for k, m in q.operands[0].marks.items()} for v in q.eqn.outvars]
    for branch in branches:
        out = q.walk.run(branch.jaxpr, [*map(q.walk.constant, branch.consts), *operands])
        found = [merged(a, r.marks) for a, r in zip(found, out, strict=True)]
    return found


def linear_solve(q: Equation) -> list[Marks] | None:
    """What its solver does."""
    lengths, solver = q.params["const_lengths"], q.params["jaxprs"].solve
    first = lengths.matvec + lengths.vecmat
    operands = [*q.operands[first : first + lengths.solve], *q.operands[sum(lengths) :]]
    found = q.walk.run(solver.jaxpr, [*map(q.walk.constant, solver.consts), *operands])
    return [r.marks for r in found]


def _cut(values: Sequence[Any], first: int, second: int) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    return values[:first], values[first:second], values[second:]


BODIES: dict[str, Body] = {
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "custom_linear_solve": linear_solve,
}
