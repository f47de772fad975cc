"""Which innovations a model adds up, and to which running sum.

`kayn.programs.running` puts the running sum r in the place of innovations z, and `kayn.graph.written_in_sums` has the
program read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from kayn.graph.coefficients import LONGEST, recursions_of, vectors
from kayn.graph.flattened import flattened, is_free, opened, sums_of, within
from kayn.graph.linear import Following
from kayn.graph.linear_states import states_of
from kayn.graph.loop_states import computed_of, states_of_loop
from kayn.graph.recursions import is_recursion
from kayn.graph.written_in_sums import Change
from kayn.programs.drawn import Drawn
from kayn.programs.running import Computed, Coordinates
from kayn.support.arrays import Array

ADDING = frozenset(("cumsum", "dot_general", "add", "add_any", "concatenate", "rev", "scan", "transpose"))
"""Whose results may be running sums: those that add, and what brings these into the order of the innovations."""
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
    axes = {n: names[n] for n in able}
    starts = [drawn.latents.index(n) for n in able]
    whole = _Whole(drawn, flattened(jaxpr, starts), movable)
    chains = whole.chains(axes)
    if len(able) > 1 and len(chains) < len(able):
        for name in whole.added_together(able):
            inner = _Whole(drawn, flattened(jaxpr, starts, [drawn.latents.index(name)]), movable)
            found = inner.with_state(name, axes)
            chains = found if len(found) > len(chains) else chains
    return chains


@dataclass(frozen=True, eq=False)
class _Whole:
    """A model as a program without calls.

    Attributes:
        movable: latents that may be drawn before all others, if their laws depend on none.
    """

    drawn: Drawn
    flat: ClosedJaxpr
    movable: Collection[str]

    @cached_property
    def jaxpr(self) -> Jaxpr:
        return opened(self.flat)

    @cached_property
    def places(self) -> dict[str, Any]:
        """Variables of latents."""
        return dict(zip(self.drawn.latents, self.flat.jaxpr.outvars, strict=False))

    @cached_property
    def _free(self) -> frozenset[str]:
        """Latents that may be drawn before all others."""
        laws = {n: [self.flat.jaxpr.outvars[i] for i in self.drawn.laws[n]] for n in self.movable}
        return frozenset(n for n, law in laws.items() if is_free(self.jaxpr, law, self.places.values()))

    def _is_behind(self, name: str, other: str) -> bool:
        return self.drawn.latents.index(name) > self.drawn.latents.index(other)

    def earlier(self, name: str, able: Collection[str] = ()) -> dict[Any, str]:
        """Variables of latents, those that are drawn before one, or may be, by name.

        Args:
            able: latents that stay where they are.
        """
        before = {*self.drawn.latents[: self.drawn.latents.index(name)], *self._free.difference(able)}
        return {v: n if n in before else "" for n, v in self.places.items()}

    def coordinates(self, name: str, axes: Collection[int], earlier: Mapping[Any, str]) -> Coordinates | None:
        """The running sum of one latent."""
        known = [*self.flat.consts, *self.drawn.closed.consts]
        return _coordinates(self.jaxpr, known, self.places[name], earlier, axes)

    def chains(self, axes: Mapping[str, Collection[int]]) -> dict[str, Coordinates]:
        """The running sums of latents, each by itself."""
        found = {n: self.coordinates(n, own, self.earlier(n, axes)) for n, own in axes.items()}
        chains = {n: c for n, c in found.items() if c is not None}
        # steps of chains that are read together are weighed together, all that each reads
        return chains if len(chains) < 2 else {n: c for n, c in chains.items() if c.order == 1}

    def added_together(self, able: Sequence[str]) -> list[str]:
        """Latents that are in a sum with another one."""
        sums = {n: sums_of(self.jaxpr, self.places[n]) for n in able}
        return [n for n in able if any(sums[n] & sums[m] for m in able if m != n)]

    def with_state(self, name: str, axes: Mapping[str, Collection[int]]) -> dict[str, Coordinates]:
        """One latent read in the state that sums of it and of others are, and those by themselves: the level of a
        series, and its trend, which is a sum too. None where there is no such state."""
        state = self.coordinates(name, axes[name], self.earlier(name))
        if state is None or state.stepping is None or state.order > 1:
            return {}
        others = self.chains({n: own for n, own in axes.items() if n != name})
        alone = all(c.stepping is None and name not in c.latents and c.order == 1 for c in others.values())
        moved = [n for n in state.latents if n in others and self._is_behind(n, name)]
        if (
            not alone
            or not {*state.latents} & {*others}
            or not self._free.issuperset(m for n in moved for m in others[n].latents)
        ):
            return {}
        return {**others, name: replace(state, stepping=replace(state.stepping, of_sum=True))}


def _may_add_up(jaxpr: Jaxpr, start: Any) -> bool:
    """Whether an operation that may add a vector up reads what is computed of it."""
    if isinstance(start, Literal):
        return False
    shape, reached = start.aval.shape, {start}
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            if any(_adds_up(e, shape) for e in within(eqn)):
                return True
            reached.update(eqn.outvars)
    return False


def _is_shifted(jaxpr: Jaxpr, start: Any) -> bool:
    """Whether parts of a vector are read that may be those at other steps."""
    if isinstance(start, Literal):
        return False
    reached, slices = {start}, 0
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            names = [e.primitive.name for e in within(eqn)]
            slices += names.count("slice")
            if slices > 1 or "conv_general_dilated" in names:
                return True
            reached.update(eqn.outvars)
    return False


def _adds_up(eqn: JaxprEqn, shape: tuple[int, ...]) -> bool:
    if eqn.primitive.name == "dot_general":
        return any(v.aval.shape[-2:] == (steps, steps) for v in eqn.invars for steps in shape)
    if eqn.primitive.name == "scan":
        # the first step may be written by itself
        return any(eqn.params["length"] in (steps, steps - 1) for steps in shape)
    return eqn.primitive.name in ("cumprod", "cumsum", "pad")


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
    return states if states is not None and states.axis in axes else states_of(jaxpr, known, start, earlier, axes)


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
