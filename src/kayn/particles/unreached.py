"""Discrete values that a guide never draws although they carry weight in the model: they would be missing from the
evidence, as those outside of a guide's support are (`kayn.particles.reach`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import discrete

from kayn.errors import GuideError
from kayn.programs.outputs import Part
from kayn.programs.sites import Site
from kayn.programs.supports import BOX
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.xla.compilation import compiled_now

MOST = 32
"""Values up to which all of a latent's are tried."""
ONE_DRAW = (discrete.BernoulliProbs, discrete.BernoulliLogits, discrete.CategoricalProbs, discrete.CategoricalLogits)
"""Laws that one uniform number decides. It tells no probability below a float's resolution from zero;
counts of many such draws can be rarer."""
MOST_WORK = 3e7
"""Entries that log densities at all values, element by element, may be made of for one run; events of more are not
looked at."""
LEAST = math.log(1e-3)
"""How much less than the best draws of the guide a value may weigh so that it is not missed."""


def refuse_values_never_drawn(
    guide: Program,
    model: Program,
    known: tuple[Sequence[Array], Sequence[Array]],
    draw: Callable[[frozenset[str]], Mapping[str, Array] | None],
) -> None:
    """Look for values with probability zero in the guide that weigh as much in the model as what it draws,
    unless they depend on traced values.

    Args:
        known: constants and inputs of guide and model, None in the places of latents.
        draw: values of some guide sites in a few runs: [runs, *shape]; None where they are not known.

    Raises:
        GuideError: there is one.
    """
    values = {n: found for n in guide.latents if (found := _values(guide, model, n))}
    densities = {n: d for n in values if (d := _density(guide, [n], known[0])) is not None}
    densities = {n: d for n, d in densities.items() if d.work(guide.sites[n], values[n]) <= MOST_WORK}
    joint = _density(model, _factors(model), known[1]) if densities else None
    if joint is None:
        return
    read = frozenset().union(*(d.read_for(guide.sites[n]) for n, d in densities.items()))
    drawn = draw(read)
    if drawn is None:
        return

    def at_values(drawn: Mapping[str, Array]) -> dict[str, Array]:
        return {n: d.of_values(guide.sites[n], values[n], drawn) for n, d in densities.items()}

    compared = compiled_now(at_values, drawn)
    if compared is None:
        return
    for name, log_q in compared(drawn).items():
        _refuse(guide.sites[name], values[name], np.asarray(log_q), joint, draw)


def _values(guide: Program, model: Program, name: str) -> range | None:
    """All values of a latent whose probabilities can be compared one by one; those of masked ones may be absent."""
    mine, yours = guide.sites[name], model.sites.get(name)
    if yours is None or mine.kind != "sample" or mine.delta or not mine.discrete or yours.steps is not None:
        return None
    box = yours.support
    if Part.MASK.of(name) in model.outputs or box is None or box.kind != BOX or not box.whole:
        return None
    if box.lower is None or box.upper is None or not math.isfinite(box.upper) or box.upper - box.lower >= MOST:
        return None
    return range(int(box.lower), int(box.upper) + 1)


def _factors(model: Program) -> list[str]:
    return [n.site for n in model.outputs if n.part is Part.DENSITY]


@dataclass(frozen=True)
class _Density:
    """A sum of log densities, or one of them as it is, as a function of latents,
    and the names of those that it reads."""

    value: Callable[[Mapping[str, Array]], Array]
    reads: frozenset[str]

    def work(self, site: Site, values: range) -> int:
        """Entries of the densities that `of_values` takes of one run."""
        return len(values) * math.prod(site.shape) * math.prod(site.shape[len(site.batch_shape) :])

    def read_for(self, site: Site) -> frozenset[str]:
        """What `of_values` needs to be drawn."""
        return self.reads if site.event_dim else self.reads - {site.name}

    def of_values(self, site: Site, values: range, drawn: Mapping[str, Array]) -> Array:
        """Of every value of every element, in the runs of what it reads (one if it reads nothing):
        [values, runs, *shape].

        The density of an event is that of all its elements. They are independent, so that one of them at all of its
        values, where the others are as they were drawn, tells its probabilities; together these are one.
        """
        given = {n: v for n, v in drawn.items() if n in self.read_for(site)}
        runs = next((len(v) for v in given.values()), 1)

        def at(value: Array) -> Array:
            return jax.vmap(self.value)({**given, site.name: jnp.full((runs, *site.shape), value)})

        if not site.event_dim:
            return jax.vmap(at)(jnp.asarray(values, site.dtype))
        event = site.shape[len(site.batch_shape) :]
        others = given[site.name].reshape(runs, *site.batch_shape, -1)

        def of_element(position: Array) -> Array:
            def instead(value: Array) -> Array:
                whole = others.at[..., position].set(value).reshape(runs, *site.shape)
                return jax.vmap(self.value)({**given, site.name: whole})

            return jax.nn.log_softmax(jax.vmap(instead)(jnp.asarray(values, site.dtype)), 0)

        found = jnp.moveaxis(jax.lax.map(of_element, jnp.arange(math.prod(event))), 0, -1)
        return found.reshape(*found.shape[:-1], *event)


def _density(program: Program, names: Sequence[str], known: Sequence[Array]) -> _Density | None:
    """None where it depends on values that are not known."""
    run, used = program.sliced([Part.DENSITY.of(n) for n in names])
    inputs = dict(enumerate(program.inputs, len(program.consts)))
    if any(known[i] is None or isinstance(known[i], jax.core.Tracer) for i in used if i not in inputs):
        return None

    def value(values: Mapping[str, Array]) -> Array:
        absent = {
            n: jnp.zeros(program.sites[n].shape, program.sites[n].dtype) for n in program.latents if n not in values
        }
        given = program.with_aliases({**absent, **values})
        out = run(*(given[inputs[i]] if i in inputs else known[i] for i in used))
        return out[0] if len(out) == 1 else sum(jnp.sum(v) for v in out)

    bases = {a.name: a.base for a in program.aliases}
    return _Density(value, frozenset(bases.get(n := inputs[i], n) for i in used if i in inputs))


def _zero(site: Site, dtype: Any) -> float:
    """Log probabilities below stand for zero, which NumPyro raises to the least of its parameters' type:
    next to zero or next to one."""
    kind = jnp.finfo(dtype)
    return math.log(2 * float(kind.eps if site.follows(*ONE_DRAW) else kind.tiny))


def _refuse(
    site: Site,
    values: range,
    log_q: np.ndarray,
    joint: _Density,
    draw: Callable[[frozenset[str]], Mapping[str, Array] | None],
) -> None:
    """In every run that gives a value probability zero, put it in place of what was drawn for the first such
    element."""
    name = site.name
    zero = log_q < _zero(site, log_q.dtype)
    drawn = draw(joint.reads | {name}) if zero.any() else None
    weigh = None if drawn is None else compiled_now(jax.vmap(joint.value), drawn)
    if drawn is None or weigh is None:
        return
    best = np.asarray(weigh(drawn)).max()
    for value, never in zip(values, zero, strict=True):
        never = np.broadcast_to(never, (len(drawn[name]), *never.shape[1:]))
        runs = np.flatnonzero(never.any(tuple(range(1, never.ndim))))
        if not len(runs):
            continue
        first = never[runs].reshape(len(runs), -1).argmax(1)
        moved = np.array(drawn[name])
        moved[runs, *np.unravel_index(first, never.shape[1:])] = value
        if np.any(np.asarray(weigh({**drawn, name: moved}))[runs] > best + LEAST):
            raise GuideError(
                f"guide site {name!r} has probability zero at {value}, which the model gives weight. What the guide "
                "never draws would be missing from the evidence; keep probabilities above zero, e.g. mix in a "
                "little of a uniform law, or use guide=None"
            )
