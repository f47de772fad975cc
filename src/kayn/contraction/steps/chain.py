"""Sum over all paths of a Markov chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp

from kayn.contraction import chain_rounds
from kayn.contraction.backward import choose
from kayn.contraction.execute import forward
from kayn.contraction.plan import Entries, Nested, Plan
from kayn.contraction.ways import Slots, Way, WayBack, sum_rule
from kayn.support.arrays import Array


@dataclass(frozen=True)
class Chain(Nested):
    """Sum over all paths of some variables along plate `plate`, whose elements are the steps of a Markov chain.

    Going forward, an array `alpha` over the states of the last steps is multiplied with the factors of one step, and
    the oldest state is summed out.

    Attributes:
        sources: factors with the plate.
        out: [*the other plates, *kept variables, *ends].
        body: one step. Its first term is alpha, the others are the sources without the plate.
        states: for every chained variable its own name, then those of its earlier states, the latest first.
        ends: variables that stand for the last states of every chained variable.
        start: what alpha begins with for a sum, the same for all states.
    """

    sources: tuple[int, ...]
    out: int
    plate: str
    body: Plan
    states: tuple[tuple[str, ...], ...]
    ends: tuple[tuple[str, ...], ...]
    start: float

    @property
    def inner_read(self) -> tuple[int | None, ...]:
        """None for alpha, then the factors."""
        return (None, *self.sources)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Variables that stand for a chained variable at other steps."""
        return tuple(v for names in (*(s[1:] for s in self.states), *self.ends) for v in names)

    @property
    def lags(self) -> tuple[str, ...]:
        """The states before a step, over which alpha is."""
        return tuple(v for names in self.states for v in names[1:])

    @property
    def renamed(self) -> dict[str, str]:
        """From the names of states after a step to those before the next."""
        return {old: new for names in self.states for old, new in pairwise(names)}

    @property
    def shape(self) -> list[int]:
        """Of alpha: [*the other plates and kept variables, *lags]."""
        return [self.body.size[a] for a in self.body.axes[0]]

    def renumbered(self, number: Mapping[int, int]) -> Chain:
        """The step with other numbers for its slots."""
        return replace(self, sources=tuple(number[s] for s in self.sources), out=number[self.out])

    def resized(self, axis: str, size: int) -> Chain:
        """The step where an axis has another size."""
        return replace(self, body=self.body.resized(axis, size))

    # -- what it costs, and its text

    def flops(self, plan: Plan) -> int:
        """Those of a step, for every step."""
        return plan.size[self.plate] * self.body.flops

    def streamed(self, plan: Plan) -> int:
        """All: a step multiplies what the states before it have come to by factors of its own."""
        return self.flops(plan)

    def entries(self, plan: Plan, inner: tuple[int, int]) -> Entries:
        """What a step holds, for every step; what it forms, once."""
        held, passing = inner
        return Entries(plan.size[self.plate] * held, passing)

    def lines(self, plan: Plan) -> list[str]:
        """The plate and the axes that are left, then the lines of one step."""
        return [f"chain along {self.plate}: [{', '.join(plan.axes[self.out])}], every step:", *self.body.lines]

    # -- the way forward

    def forward(self, plan: Plan, slots: Slots, way: Way) -> Array:
        """The array over states after the last step."""
        if way.rule is sum_rule and chain_rounds.worthwhile(plan.size[self.plate], self.shape, len(self.lags)):
            factors = self._by_step(plan, slots)
            return self.start + chain_rounds.sum_over_paths(self._one_step(way), factors, self.shape, len(self.lags))
        return self._along(plan, slots, way)[1]

    def _one_step(self, way: Way) -> Callable[[Array, Sequence[Array]], Array]:
        """From an array over the states before a step and its factors to one over those after it."""
        before = self.body.axes[0]
        after = [self.renamed.get(a, a) for a in self.body.axes[self.body.results[0]]]

        def one_step(alpha: Array, factors: Sequence[Array]) -> Array:
            found = forward(self.body, dict(enumerate((alpha, *factors))), way)[self.body.results[0]]
            return jnp.transpose(found, [after.index(a) for a in before])

        return one_step

    def _along(self, plan: Plan, slots: Slots, way: Way) -> tuple[Array, Array]:
        """The array over states before every step, [T, ...], and after the last."""
        one_step, factors = self._one_step(way), self._by_step(plan, slots)
        # no state comes before the first step: a sum counts all that stand there, where a maximum takes one
        states = 1 if way.rule is sum_rule else math.prod(self.shape[len(self.shape) - len(self.lags) :])
        start = jnp.full(self.shape, self.start + math.log(states), factors[0].dtype)
        last, alphas = jax.lax.scan(lambda alpha, own: (one_step(alpha, own), alpha), start, factors)
        return alphas, last

    def _by_step(self, plan: Plan, slots: Slots) -> list[Array]:
        """The factors, steps first."""
        return [jnp.moveaxis(slots[s], plan.axes[s].index(self.plate), 0) for s in self.sources]

    # -- the way back

    def back(
        self, plan: Plan, slots: Slots, way: WayBack, number: Array | None, chosen: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The states at all steps given those at the end: int [*scope], for earlier states too."""
        alphas, _ = self._along(plan, slots, way)
        order = {new: old for old, new in self.renamed.items()}
        kept = {v: c for v, c in chosen.items() if v in self.body.scope}

        def one_back(
            states: dict[str, Array], item: tuple[Array, Array, Array]
        ) -> tuple[dict[str, Array], dict[str, Array]]:
            time, alpha, factors = item
            own = {order[lag]: state for lag, state in states.items()}
            made = forward(self.body, dict(enumerate((alpha, *factors))), way)
            found = choose(self.body, made, way.inside(time), {**kept, **own})
            return {lag: found[lag] for lag in states}, {names[0]: found[names[0]] for names in self.states}

        last = {
            lag: chosen[end]
            for names, ends in zip(self.states, self.ends, strict=True)
            for lag, end in zip(names[1:], ends, strict=True)
        }
        times = jnp.arange(plan.size[self.plate])
        _, paths = jax.lax.scan(one_back, last, (times, alphas, self._by_step(plan, slots)), reverse=True)
        out = {}
        for names in self.states:
            for lag, name in enumerate(names):
                path = paths[names[0]][jnp.maximum(times - lag, 0)]
                out[name] = jnp.moveaxis(path, 0, plan.scope[names[0]].index(self.plate))
        return out
