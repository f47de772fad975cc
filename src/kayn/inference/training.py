"""Train models and guides on minibatches: several losses in turn, early stopping on held-out data,
checkpoints that resume bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax

from kayn import checkpoints
from kayn.errors import DataError, KaynError
from kayn.evidence.read import refuse_broken_arguments
from kayn.inference.course import HELD_OUT, Course
from kayn.inference.epochs import Epochs
from kayn.inference.records import PROGRAM, Record
from kayn.inference.rows import Rows, data_behind
from kayn.inference.steps import Loop, Phase
from kayn.meters import Evidence, evidence_meter
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.options import Guide, Key, Model, Optimizer, Params, PathOption, Strategy
from kayn.support.prints import Outlined
from kayn.support.progress import progress_bar
from kayn.support.validate import Count, Rule, checked

Rules = Annotated[
    Mapping[str, Optimizer],
    Rule("a mapping from patterns of names to optax transformations, not empty", lambda rules: len(rules) > 0),
]


Phases = Annotated[
    Phase | Sequence[Phase],
    Rule("a kayn.Phase(loss, optimizer), or a list of at least one", lambda p: isinstance(p, Phase) or len(p) > 0),
]


@dataclass(frozen=True, repr=False)
class Training(Outlined):
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
    rows = Rows.of(data, held_out, batch_size)
    _refuse_misfits(phases, rows, patience)
    look_every, key = look_every or rows.total // batch_size, as_key(rng_key)
    refuse_too_many("look_every", min(look_every, num_steps), 4 * batch_size)  # the rows of all minibatches until then

    loop = Loop(model, guide, phases, args, augment, key)
    run, course = _begin(loop, rows, dict(params or {}), look, held_out_particles, strategy, checkpoint)
    with progress_bar(num_steps, progress) as show:
        while course.step < num_steps and not course.stale(patience):
            count = min(look_every, num_steps - course.step)
            course = run.further(course, count)
            course = run.looked(course)
            show(course.step, -float(np.mean(course.losses[-count:])))
    return run.result(course, course.stale(patience))


def _refuse_misfits(phases: Sequence[Phase], rows: Rows, patience: int | None) -> None:
    """Refuse arguments that do not fit together."""
    if phases[0].every != 1:
        raise KaynError(f"the first phase has every={phases[0].every}; put one first that is taken in every step")
    if rows.batch_size > rows.total:
        raise DataError(f"batch_size is {rows.batch_size}, but data has {rows.total} rows; use at most that many")
    if patience is not None and rows.held_out is None:
        raise KaynError("patience is given, but no held_out data to tell when to stop; pass held_out=")


@dataclass(frozen=True)
class _HeldOut:
    """Log evidence of held-out data, per datum.

    Attributes:
        meter: `(params, key) -> Evidence`.
        num_data: how many their rows stand for.
    """

    meter: Callable[..., Evidence]
    num_data: int

    def score(self, values: Mapping[str, PyTree], key: KeyArray) -> float:
        return float(self.meter(values, key).total) / self.num_data


@dataclass(frozen=True)
class _Run:
    """What a run does between one look and the next. How far it has come is handed from one to the other.

    Attributes:
        num_data: how many data the rows of a minibatch stand for.
    """

    loop: Loop
    rows: Rows
    epochs: Epochs
    num_data: int
    look: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    held_out: _HeldOut | None
    record: Record | None

    def further(self, course: Course, count: int) -> Course:
        """`count` steps on.

        Raises:
            KaynError: a loss is not finite.
        """
        chosen = self.epochs.rows(course.step, count)
        state, found = self.loop.advance(course.state, self.rows.data, chosen, course.step)
        losses = np.asarray(found, np.float64) / self.num_data
        broken = np.flatnonzero(~np.isfinite(losses))
        if broken.size:
            raise KaynError(
                f"the loss is {losses[broken[0]]} at step {course.step + broken[0]}; lower the learning rate, or clip "
                "gradients with optax"
            )
        return course.further(state, losses.tolist())

    def looked(self, course: Course) -> Course:
        """Figures taken down, and the checkpoint written."""
        values = self.loop.constrained(course.state["params"])
        found = dict(self.look(values)) if self.look else {}
        better = False
        if self.held_out:
            found[HELD_OUT] = self.held_out.score(values, jax.random.fold_in(self.loop.key, 1))
            better = course.surpassed_by(found[HELD_OUT])
        course = course.looked(found, better)
        if self.record:
            self.record.keep(course.state, course.best, course.losses, course.looks)
        return course

    def result(self, course: Course, stopped_early: bool) -> Training:
        last = self.loop.constrained(course.state["params"])
        best = self.loop.constrained(course.best) if self.held_out else last
        return Training(best, last, np.asarray(course.losses), course.looks, stopped_early)


def _begin(
    loop: Loop,
    rows: Rows,
    params: dict[str, PyTree],
    look: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    held_out_particles: int,
    strategy: Strategy,
    checkpoint: PathOption,
) -> tuple[_Run, Course]:
    """A run, and how far it has come: to where its checkpoint is, or to a first look."""
    if loop.augment is None:
        refuse_broken_arguments(loop.model, (*rows.data, *loop.args), {}, params)
    state = loop.start(rows.first, dict(params))
    values = loop.constrained(state["params"])
    num_data = data_behind(loop.model, (*loop.seen, *loop.args), values, rows.batch_size)
    held_out = _held_out(loop, rows.held_out, values, held_out_particles, strategy) if rows.held_out else None
    epochs = Epochs(rows.total, rows.batch_size, int(jax.random.bits(loop.key)))
    record = _record(Path(checkpoint), loop, rows, params, state, strategy) if checkpoint is not None else None

    run = _Run(loop, rows, epochs, num_data, look, held_out, record)
    course = Course(state, state["params"])
    if record and record.path.exists():
        return run, Course(*record.resume(course.state, course.best))
    return run, run.looked(course)  # so that a path that cannot be written to is known at once


def _held_out(
    loop: Loop,
    arrays: tuple[Array, ...],
    values: Mapping[str, PyTree],
    num_particles: int,
    strategy: Strategy,
) -> _HeldOut:
    given = (*arrays, *loop.args)
    num_data = data_behind(loop.model, given, values, arrays[0].shape[0])
    meter = evidence_meter(loop.model, loop.guide, values, *given, num_particles=num_particles, strategy=strategy)
    return _HeldOut(meter, num_data)


def _record(path: Path, loop: Loop, rows: Rows, params: Mapping[str, PyTree], state: PyTree, strategy: str) -> Record:
    """The checkpoint's file, with what the run rests on."""
    source = {"data": rows.data, "held-out data": rows.held_out, "further arguments": loop.args}
    given = {"rng_key": checkpoints.fingerprint(loop.key), "params": checkpoints.fingerprint(params)}
    settings = {"batch_size": rows.batch_size, "strategy": strategy, **given}
    return Record(path, source, {**settings, PROGRAM: loop.program(state, rows.data, rows.batch_size)})
