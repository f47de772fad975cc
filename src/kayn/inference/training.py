"""Train models and guides on minibatches: several losses in turn, early stopping on held-out data,
checkpoints that resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI

from kayn import checkpoints
from kayn.errors import DataError, KaynError
from kayn.evidence.problem import refuse_unknown_params
from kayn.evidence.read import refuse_broken_arguments
from kayn.inference.epochs import Epochs
from kayn.inference.records import PROGRAM, Record, equations
from kayn.inference.rows import data_behind
from kayn.meters import evidence_meter
from kayn.objectives.state import first_state
from kayn.programs.data import is_column, why_unusable
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.options import Guide, Key, Loss, Model, Optimizer, Params, PathOption, Strategy
from kayn.support.progress import progress_bar
from kayn.support.validate import Count, Rule, check_fields, checked

HELD_OUT = "held-out log evidence"
Rules = Annotated[
    Mapping[str, Optimizer],
    Rule("a mapping from patterns of names to optax transformations, not empty", lambda rules: len(rules) > 0),
]


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


Phases = Annotated[
    Phase | Sequence[Phase],
    Rule("a kayn.Phase(loss, optimizer), or a list of at least one", lambda p: isinstance(p, Phase) or len(p) > 0),
]


@dataclass(frozen=True)
class Training:
    """What `train` returns.

    Attributes:
        params: values of the `numpyro.param` sites at the best look at held-out data;
            the last ones where there are none.
        last: the last values.
        losses: [steps], of the first phase, per datum, in nats. Data are the rows of a minibatch, or those that a
            subsampled plate says they stand for.
        looks: by name, [(step, value), ...]: the held-out log evidence per datum, counted likewise,
            and what `look` returned.
        stopped_early: whether the held-out log evidence had stopped improving.
    """

    params: dict[str, PyTree]
    last: dict[str, PyTree]
    losses: np.ndarray
    looks: dict[str, list[tuple[int, Any]]]
    stopped_early: bool


@checked()
def by_parameter(rules: Rules) -> optax.GradientTransformation:
    """An optimiser that treats parameters by name:
    `by_parameter({"encoder*": optax.adam(3e-4), "*": optax.adam(1e-3)})`.

    Args:
        rules: optimisers by shell pattern; the first pattern that a name matches counts. `optax.set_to_zero()` freezes.
    """

    def labels(params: Mapping[str, PyTree]) -> dict[str, Any]:
        found = {}
        for name, value in params.items():
            fitting = [p for p in rules if fnmatchcase(name, p)]
            if not fitting:
                raise KaynError(
                    f"by_parameter: {name!r} matches none of the patterns {', '.join(rules)}; add one, e.g. '*'"
                )
            found[name] = jax.tree.map(lambda _, p=fitting[0]: p, value)
        return found

    return optax.multi_transform(dict(rules), labels)


@checked()
def train(
    model: Model,
    guide: Guide,
    phases: Phases,
    data: Any,
    *args: Any,
    batch_size: Count,
    num_steps: Count,
    rng_key: Key = 0,
    params: Params = None,
    augment: Callable[[Any, tuple], tuple] | None = None,
    held_out: Any = None,
    held_out_particles: Count = 100,
    strategy: Strategy = "local",
    look: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    look_every: Count | None = None,
    patience: Count | None = None,
    checkpoint: PathOption = None,
    progress: bool = True,
) -> Training:
    """Fit the `numpyro.param` sites of a model and its guide to data in minibatches.

    The model is called with a minibatch of every array of `data`, then `args`. Where it has latents outside the plate
    over data, let the plate know how many data there are, `numpyro.plate("data", N, subsample_size=len(x))`, and
    minibatches are scaled to the whole.

    Args:
        phases: losses with their optimisers, taken one after the other in every step in which they are due.
        data: an array, or a tuple of arrays with the same leading dimension. Every epoch is a fresh permutation,
            the same for the same key.
        batch_size: rows of a minibatch; what is left of an epoch is dropped.
        augment: `(key, batch) -> batch` on tuples, e.g. to binarise images afresh at every step.
        held_out: data whose log evidence, estimated with `held_out_particles` particles and the given strategy, tells
            when to stop and which parameters are best.
        look: `params -> figures` taken down at every look.
        look_every: steps between looks; an epoch by default.
        patience: stop after so many looks without a better held-out log evidence; None never stops early.
        checkpoint: a file written at every look. Where it is there already, training goes on from it, to the same bits
            as without a break. It is refused where it belongs to other data; to settings or programs that have changed
            since, a warning says so.

    Raises:
        KaynError: arguments that do not fit together, named; a loss that is no longer finite, with its step.
    """
    phases = (phases,) if isinstance(phases, Phase) else tuple(phases)
    arrays, held = _arrays("data", data), None if held_out is None else _arrays("held_out", held_out)
    rows = arrays[0].shape[0]
    if phases[0].every != 1:
        raise KaynError(f"the first phase has every={phases[0].every}; put one first that is taken in every step")
    if batch_size > rows:
        raise DataError(f"batch_size is {batch_size}, but data has {rows} rows; use at most that many")
    if patience is not None and held is None:
        raise KaynError("patience is given, but no held_out data to tell when to stop; pass held_out=")
    look_every, key = look_every or rows // batch_size, as_key(rng_key)
    refuse_too_many("look_every", min(look_every, num_steps), 4 * batch_size)  # the rows of all minibatches until then

    loop = _Loop(model, guide, phases, args, augment, key)
    if augment is None:
        refuse_broken_arguments(model, (*arrays, *args), {}, params or {})
    first = tuple(a[:batch_size] for a in arrays)
    state = loop.start(first, dict(params or {}))
    values = loop.constrained(state["params"])
    data_of_batch = data_behind(model, (*loop.seen, *args), values, batch_size)
    data_held_out = data_behind(model, (*held, *args), values, held[0].shape[0]) if held else 0
    meter = held and evidence_meter(
        model, guide, values, *held, *args, num_particles=held_out_particles, strategy=strategy
    )
    epochs = Epochs(rows, batch_size, int(jax.random.bits(key)))

    best = state["params"]
    losses: list[float] = []  # one a step, so that their number is the step
    looks: dict[str, list[tuple[int, Any]]] = {}

    def scores() -> Any:
        return np.nan_to_num(np.array([value for _, value in looks.get(HELD_OUT, ())]), nan=-np.inf, neginf=-np.inf)

    def look_now() -> Any:
        """Take figures down; the best parameters so far."""
        values = loop.constrained(state["params"])
        found = dict(look(values)) if look else {}
        better = False
        if meter:
            found[HELD_OUT] = float(meter(values, jax.random.fold_in(key, 1)).total) / data_held_out
            better = found[HELD_OUT] > np.max(scores(), initial=-np.inf)
        for name, value in found.items():
            looks.setdefault(name, []).append((len(losses), value))
        return state["params"] if better else best

    record = None
    if checkpoint is not None:
        source = {"data": arrays, "held-out data": held, "further arguments": args}
        given = {"rng_key": checkpoints.fingerprint(key), "params": checkpoints.fingerprint(dict(params or {}))}
        settings = {"batch_size": batch_size, "strategy": strategy, **given}
        record = Record(Path(checkpoint), source, {**settings, PROGRAM: loop.program(state, arrays, batch_size)})
    if record and record.path.exists():
        state, best, losses, looks = record.resume(state, best)
    else:
        best = look_now()
        if record:
            record.keep(state, best, losses, looks)  # so that a path that cannot be written to is known at once

    def stale() -> bool:
        return patience is not None and bool(len(scores()) - 1 - np.argmax(scores()) >= patience)

    with progress_bar(num_steps, progress) as show:
        while (step := len(losses)) < num_steps and not stale():
            count = min(look_every, num_steps - step)
            state, found = loop.advance(state, arrays, epochs.rows(step, count), step)
            found = np.asarray(found, np.float64) / data_of_batch
            if not np.isfinite(found).all():
                raise KaynError(
                    f"the loss is {found[~np.isfinite(found)][0]} at step "
                    f"{step + int((~np.isfinite(found)).argmax())}; lower the learning rate, or clip gradients with "
                    "optax"
                )
            losses.extend(found.tolist())
            best = look_now()
            if record:
                record.keep(state, best, losses, looks)
            show(step + count, -float(found.mean()))
    last = loop.constrained(state["params"])
    return Training(loop.constrained(best) if meter else last, last, np.asarray(losses), looks, stale())


class _Loop:
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
        phase = self.phases[index]

        def loss(free: PyTree) -> Array:
            return phase.loss.loss(key, self.constrain(free), self.model, self.guide, *batch, *self.args)

        value, gradient = jax.value_and_grad(loss)(state["params"])
        updates, own = phase.optimizer.update(gradient, state["optimizers"][index], state["params"])
        optimizers = [own if i == index else o for i, o in enumerate(state["optimizers"])]
        return {"params": optax.apply_updates(state["params"], updates), "optimizers": optimizers}, jnp.asarray(value)


def _arrays(name: str, data: Any) -> tuple[Array, ...]:
    given = data if isinstance(data, tuple) else (data,)
    for i, value in enumerate(given):
        which = f"{name}[{i}]" if isinstance(data, tuple) else name
        why = "None" if value is None else why_unusable(value)
        if why and not (is_column(value) and why_unusable(np.asarray(value)) is None):
            raise DataError(f"{which} is {why}")
    arrays = tuple(jnp.asarray(np.asarray(a) if is_column(a) else a) for a in given)
    sizes = {a.shape[0] if a.ndim else None for a in arrays}
    if len(sizes) != 1 or sizes & {None, 0}:
        raise DataError(
            f"{name} has shapes {', '.join(str(a.shape) for a in arrays)}; pass an array, or a tuple of arrays with "
            "the same leading dimension"
        )
    return arrays
