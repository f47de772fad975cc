"""Innovations that a loop turns into its state step by step, `s_t = F_t(s_{t-1}, ...) + w_t z_t`, whatever F is.

The state is as large as what a step is given. Its elements may depend on each other's earlier values (a vector
autoregression), F on latents, and w on latents and on earlier states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from kayn.support.arrays import Array

FAR = 1e15
"""Where a state comes from that cannot be: no innovation is as large."""


@dataclass(frozen=True, eq=False)
class Stepping:
    """The step of a loop whose carries are its state, and that one step earlier, and so on.

    Attributes:
        latents: names of those that the loop's operands are computed of, apart from the innovations.
        operands: their values and the innovations to the operands of the loop, whose steps come first.
        body: of the loop: its constants, the states, and what belongs to a step, to the new state.
        fixed: how many of the operands are the same at all steps.
        order: how many of them, behind those, are states before the first.
        place: which of the operands the innovations are in.
        axis: the dimension of innovations and states that steps are, from the last.
        found_in: the shape of the innovations that the loop was found with.
        alike: whether all steps are, such that there may be any number.
        scaled: whether the loop's states are these times factors, of its innovations, that stay outside.
        of_sum: whether the loop is written for a sum over earlier entries (`kayn.graph.flattened`).
    """

    latents: tuple[str, ...]
    operands: Callable[..., Sequence[Array]]
    body: ClosedJaxpr
    fixed: int
    order: int
    place: int
    axis: int
    found_in: tuple[int, ...]
    alike: bool
    scaled: bool
    of_sum: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape that innovations have to have; None where there may be any number of steps."""
        return None if self.alike else self.found_in

    def parts(self, values: Sequence[Array]) -> tuple[Array, ...]:
        """The loop's operands where innovations are zero, and at last what these are multiplied by before a step.

        Args:
            values: of the latents.
        """

        def given(z: Array) -> tuple[Array, Sequence[Array]]:
            found = [jnp.asarray(x) for x in self.operands(*values, z)]
            return found[self.place], found

        # not a difference, in which digits would be lost beside large operands
        zeros, ones = jnp.zeros(self.found_in), jnp.ones(self.found_in)
        _, slope, found = jax.jvp(given, (zeros,), (ones,), has_aux=True)
        if self.alike:
            found[self.place], slope = found[self.place][:1], slope[:1]
        return (*found, slope)

    def sums(self, parts: Sequence[Array], z: Array) -> Array:
        """The states, in the shape of the innovations."""
        *operands, slope = parts
        operands[self.place] = operands[self.place] + slope * jnp.moveaxis(z, self.axis, 0)
        starts, along = operands[self.fixed : self.fixed + self.order], operands[self.fixed + self.order :]
        run = jaxpr_as_fun(self.body)

        def step(states: tuple[Array, ...], now: list[Array]) -> tuple[tuple[Array, ...], Array]:
            new = run(*operands[: self.fixed], *states, *now)[0]
            return (new, *states[:-1]), new

        return jnp.moveaxis(jax.lax.scan(step, tuple(starts), along)[1], 0, self.axis)

    def apart(self, parts: Sequence[Array], before: Sequence[Array]) -> tuple[Array, Array]:
        """What earlier states contribute to each, and what its innovation is multiplied by, both in their shape.

        Args:
            before: the states one step earlier, two, and so on; what is before the first step is not used.
        """
        *operands, slope = parts
        before = [jnp.moveaxis(x, self.axis, 0) for x in before]
        steps, first = len(before[0]), self.fixed + self.order
        starts, along = operands[self.fixed : first], operands[first:]
        along[self.place - first] = jnp.broadcast_to(along[self.place - first], before[0].shape)
        states = [_entering(lag, x, starts) for lag, x in enumerate(before[: self.order], 1)]
        run = jaxpr_as_fun(self.body)

        def one(states: Sequence[Array], now: Sequence[Array]) -> tuple[Array, Array]:
            def of(x: Array) -> Array:
                given = [*now]
                given[self.place - first] = x
                return run(*operands[: self.fixed], *states, *given)[0]

            x = now[self.place - first]
            return jax.jvp(of, (x,), (jnp.ones_like(x),))

        shift, weight = jax.vmap(one, axis_size=steps)(states, along)
        weight = weight * slope
        # from some states there may be no way on: the root of what is negative, a step of size zero
        none = ~jnp.isfinite(shift) | ~jnp.isfinite(weight) | (weight == 0)
        found = jnp.where(none, FAR, shift), jnp.where(none, 1.0, weight)
        return jnp.moveaxis(found[0], 0, self.axis), jnp.moveaxis(found[1], 0, self.axis)


def _entering(lag: int, before: Array, starts: Sequence[Array]) -> Array:
    """States of some steps earlier, with those before the first where there are none."""
    for t in range(min(lag, len(before))):
        before = before.at[t].set(starts[lag - t - 1].astype(before.dtype))
    return before
