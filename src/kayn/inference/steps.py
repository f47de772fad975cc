"""What one step of a training run computes: the losses that are due, each with its optimiser, on one minibatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from numpyro.infer import SVI

from kayn.errors import KaynError
from kayn.evidence.problem import refuse_unknown_params
from kayn.inference.records import equations
from kayn.objectives.state import first_state
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.options import Loss, Optimizer
from kayn.support.validate import Count, check_fields


@dataclass(frozen=True)
class Phase:
    """A loss with an optimiser of its own, taken every so many steps.

    Attributes:
        loss: one of kayn's losses, or any NumPyro `ELBO`.
        optimizer: an optax transformation; `by_parameter` gives groups of parameters rates of their own.
        every: 2 for every other step. The first phase is taken in every step.
    """

    loss: Loss
    optimizer: Optimizer
    every: Count = 1

    def __post_init__(self) -> None:
        """Check the fields against their annotations.

        Raises:
            KaynError: one does not fit; it is named.
        """
        check_fields(self)


class Loop:
    """The compiled loop over steps, and the way between parameters and what the optimisers see of them."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        phases: tuple[Phase, ...],
        args: tuple,
        augment: Callable | None,
        key: KeyArray,
    ):
        self.model, self.guide, self.phases = model, guide, phases
        self.args, self.augment, self.key = args, augment, key
        self.constrain: Callable = dict
        self.seen: tuple = ()
        self.advance = jax.jit(self._advance)
        # traced once for the loop and for its fingerprint
        self.one = jax.jit(self._one, inline=True)

    def start(self, batch: tuple, params: dict[str, PyTree]) -> dict[str, PyTree]:
        """The state before the first step.

        Args:
            batch: rows of a minibatch, for their form.
            params: values of some parameters; the rest begin where the programs say.

        Raises:
            KaynError: parameters that neither program has, or modules with a state of their own.
        """
        if self.augment:
            batch = self.augment(self.key, batch)
        refuse_unknown_params(self.model, self.guide, (*batch, *self.args), {}, params)
        self.seen = batch
        svi = SVI(self.model, self.guide, self.phases[0].optimizer, self.phases[0].loss)
        begun = first_state(svi, self.key, (*batch, *self.args), {}, params)
        if begun.mutable_state:
            raise KaynError(
                f"kayn.train does not hand on the state of modules ({', '.join(map(repr, begun.mutable_state))}, "
                "numpyro.primitives.mutable); take steps by numpyro.infer.SVI.update with the same loss, which does"
            )
        free = svi.optim.get_params(begun.optim_state)
        self.constrain = svi.constrain_fn
        return {"params": free, "optimizers": [phase.optimizer.init(free) for phase in self.phases]}

    def constrained(self, free: PyTree) -> dict[str, PyTree]:
        """Values of the parameters, from what the optimisers see of them."""
        return dict(self.constrain(free))

    def _advance(self, state: PyTree, arrays: tuple, rows: Array, first: Any) -> tuple[PyTree, Array]:
        def body(state: PyTree, now: tuple[Any, Any]) -> tuple[PyTree, Array]:
            return self.one(state, arrays, *now)

        return jax.lax.scan(body, state, (first + jnp.arange(rows.shape[0]), rows))

    def _one(self, state: PyTree, arrays: tuple, number: Array, chosen: Array) -> tuple[PyTree, Array]:
        """All phases that are due in one step: the new state, and the first one's loss."""
        key = jax.random.fold_in(self.key, number)
        batch = tuple(a[chosen] for a in arrays)
        if self.augment:
            batch = self.augment(jax.random.fold_in(key, len(self.phases)), batch)
        state, loss = self.step(0, jax.random.fold_in(key, 0), batch, state)
        for i, phase in enumerate(self.phases[1:], 1):
            take = partial(self.step, i, jax.random.fold_in(key, i), batch)
            if phase.every == 1:
                state, _ = take(state)
            else:
                due = number % phase.every == 0
                state = jax.lax.cond(due, lambda s, take=take: take(s)[0], lambda s: s, state)
        return state, loss

    def program(self, state: PyTree, arrays: tuple, batch_size: int) -> str:
        """A fingerprint of what a step computes: model, guide, losses and optimisers as equations."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        chosen = jax.ShapeDtypeStruct((batch_size,), jax.dtypes.canonicalize_dtype(int))
        return equations(self.one.trace(state, arrays, number, chosen).jaxpr)

    def step(self, index: int, key: KeyArray, batch: tuple, state: PyTree) -> tuple[PyTree, Array]:
        """One phase's step: the new state, and its loss."""
        phase = self.phases[index]

        def loss(free: PyTree) -> Array:
            return phase.loss.loss(key, self.constrain(free), self.model, self.guide, *batch, *self.args)

        value, gradient = jax.value_and_grad(loss)(state["params"])
        updates, own = phase.optimizer.update(gradient, state["optimizers"][index], state["params"])
        optimizers = [own if i == index else o for i, o in enumerate(state["optimizers"])]
        return {"params": optax.apply_updates(state["params"], updates), "optimizers": optimizers}, jnp.asarray(value)
