"""What the time of a step demands: axes share an index where all their combinations would take too long.

A factor's result may be small and what it takes to compute it large: a sum over thousands of rows, a series, an
integral. And small factors may be many, and take long to contract. Latents of the same plates then share an axis. The
many groups of a model give the gain of all combinations, not the few latents inside of one, so that this costs little,
as long as the guide can hold their correlations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations_with_replacement

from kayn.axes.state import State
from kayn.axes.types import Axis, axes_of_terms, pairs_of
from kayn.contraction.plan import Plan
from kayn.contraction.steps.product import settled_slot
from kayn.graph.types import Link, Output
from kayn.graph.work import MATMUL_SPEED

OPERATIONS = 2**9
"""A factor may take so many operations for each entry that an array may have (`target_elements`), by default 5e8 in
all: less than a tenth of a second on two cores."""
CONTRACTED = 2**8
"""The contraction may take half as many multiply-adds, where the number of particles is left to kayn: a tenth of a
second with the way back, and several times that in the first steps, far from the posterior, where sums of exponentials
have to be exact."""
STREAMED = 8
"""How many times as long a multiply-add takes whose operands are read for nothing else."""
VECTORS = 8
"""How many times as quick operations of densities are, which go in vectors, as those of the sums that follow, which
wait for memory."""


def slow_factor(state: State, output: Output) -> State | None:
    """Two axes of a factor that takes too long to compute: those that leave the least to do, over the same plates."""
    if not takes_long(state, output):
        return None
    operations = evaluating(state, output)
    found = [(evaluating(s, output), s) for s in _mergers(state, output, operations)]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def takes_long(state: State, output: Output) -> bool:
    """Whether a factor takes too long to compute."""
    return evaluating(state, output) > OPERATIONS * state.case.request.target_elements


def slow_contraction(state: State) -> State | None:
    """Two axes over the same plates that leave the least to contract, if it takes too long: those without plates if
    that halves it. Who asks for a number of particles gets their combinations."""
    before, request = contracting(state.plan), state.case.request
    if not request.more or before <= CONTRACTED * request.target_elements:
        return None
    reason = f"the contraction would take {before:.2g} multiply-adds"
    for axes in ([a for a in state.axes if not a.scope], state.axes):
        found = [(contracting(s.plan), s) for s in _merged(state, axes, reason) if s.stuck is None]
        least, best = min(found, key=lambda pair: pair[0], default=(before, state))
        if least <= before / 2:
            return best
    return None


def contracting(plan: Plan) -> int:
    """Multiply-adds of a contraction, but for sums over rows: factors are summed over these while they are made."""
    rows = [step for term in range(len(plan.terms)) for step in settled_slot(plan, term)[0]]
    return plan.flops - sum(step.flops(plan) for step in rows)


def evaluating(state: State, output: Output) -> float:
    """How many operations it takes to compute a factor on all particles of its axes."""
    return sum(operations * state.combinations(latents) for latents, operations in output.work)


def operations(state: State) -> float:
    """Of a step: the contraction, every entry of every factor before rows are summed, and computing these, which goes
    in vectors. Densities of exponential families may be summed over rows by matrix products; chains stream through
    theirs."""
    plan, factors = state.plan, state.case.graph.factors
    entries = [math.prod(plan.size[a] for a in plan.axes[slot]) for slot in range(len(plan.terms))]
    for position, factor in enumerate(factors):
        entries[position] //= 1 if factor.density is None else MATMUL_SPEED
    streamed = sum(step.streamed(plan) for step in plan.steps)
    return contracting(plan) + (STREAMED - 1) * streamed + sum(entries) + _computing(state) / VECTORS


def of_a_step(state: State) -> float:
    """As `operations`, with computing factors at its full price, and entries that no matrix product forms: what is
    gained where axes become one."""
    factors = [f for f in state.case.graph.factors if f.density is not None and _by_entry(state, f)]
    entries = sum(state.entries(f) for f in factors) * (1 - 1 / MATMUL_SPEED)
    return operations(state) + _computing(state) * (1 - 1 / VECTORS) + entries


def _computing(state: State) -> float:
    return sum(evaluating(state, f) for f in state.case.graph.factors)


def _by_entry(state: State, factor: Output) -> bool:
    """Whether every entry of an exponential family has to be computed: one argument reads all axes of the factor, so
    that there are no two sides to a product, and its predictor has no terms whose pairs are fewer than all entries."""
    density = factor.density
    assert density is not None
    axes = state.axes_read(factor.latents)
    if all(set(state.axes_read(a.latents)) < set(axes) for a in density.arguments):
        return False
    sizes = [math.prod(a.size for a in group) for group in axes_of_terms(density.terms, axes)]
    if len(sizes) < 2:
        return True
    assert density.family.predictor is not None, "others have no terms"
    linked = any(isinstance(how, Link) for read in factor.reads for _, how in read.through)
    pairs = sum(m * n for m, n in combinations_with_replacement(sizes, 2))
    cost = math.prod(sizes) if density.family.predictor.exponential else pairs
    return cost >= (1 if linked else MATMUL_SPEED) * math.prod(sizes)


def _mergers(state: State, output: Output, operations: float) -> list[State]:
    axes = state.real_axes(n for latents, _ in output.work for n in latents)
    return _merged(state, axes, f"{output.name} would take {operations:.2g} operations")


def _merged(state: State, axes: Iterable[Axis], reason: str) -> list[State]:
    return [state.merged(a, b, reason) for a, b in pairs_of(axes) if set(a.scope) == set(b.scope)]
