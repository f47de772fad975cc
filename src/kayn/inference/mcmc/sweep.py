"""One sweep: in every pass particles of the latents that move, the current value among them, and one exact joint draw
from all their combinations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kayn.axes.types import Axis
from kayn.evidence.draws import Draws
from kayn.evidence.problem import model_inputs
from kayn.evidence.queries import aligned, draw_combination, take_latent
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import proposal_terms, weigh_against
from kayn.graph.absent import absences
from kayn.inference.mcmc.adaptation import adapted, covariance_after, spread_after, target_rate
from kayn.inference.mcmc.arrange import for_all_runs, if_present, placed, step_name, with_volumes
from kayn.inference.mcmc.coordinates import Coordinates
from kayn.inference.mcmc.independent import inputs_of, only, order_of, slot_logits
from kayn.inference.mcmc.lines import Lines, LineSteps
from kayn.inference.mcmc.local import local_particles
from kayn.inference.mcmc.passes import Pass
from kayn.inference.mcmc.together import MOST, apart, correlated, elements
from kayn.particles.draw import supports
from kayn.support.arrays import Array, KeyArray, PyTree

IN_TURN = 2**19
"""Operations of a sweep's passes from which on chains are swept one after the other on a CPU. At once, whatever a
condition decides on is computed in both ways: products and, in reserve, every entry (`kayn.xla.fallback`)."""


class Tuning(NamedTuple):
    """Steps of local proposals.

    Attributes:
        log_step: by axis that moves locally, [*scope].
        covariance: by axis on which several latents of the same plates do, of an element's coordinates,
            [*sorted scope, d, d].
        mean, variance: running moments of latents that move locally and are no whole numbers, in their coordinates.
        lines: along which these move together; None where there are none.
    """

    log_step: dict[str, Array]
    covariance: dict[str, Array]
    mean: dict[str, Array]
    variance: dict[str, Array]
    lines: LineSteps | None


class Told(NamedTuple):
    """What a sweep has to tell.

    Attributes:
        moved: by latent, the share of its elements that have another value after the passes.
        unsound: by factor, whether any of its log densities was +inf.
        log_weight: the least log average weight of a pass; -inf where there was nothing to draw from.
    """

    moved: dict[str, Array]
    unsound: dict[str, Array]
    log_weight: Array


@dataclass(frozen=True, eq=False)
class Kernel:
    """What does not change from sweep to sweep, nor from chain to chain.

    Attributes:
        passes: in order.
        coordinates: by latent that moves locally.
        params: values of `numpyro.param` sites.
        count: K.
        lines: along which latents move together; None where there are none.
        draw_sites: for every group of sites that the guide draws together, a function of a key and known values.
    """

    passes: tuple[Pass, ...]
    coordinates: Mapping[str, Coordinates]
    params: Mapping[str, PyTree]
    count: int
    draw_sites: Callable[[tuple[str, ...]], Callable]
    lines: Lines | None = None
    orders: tuple[list[tuple[str, ...]], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the order in which sites of guides are drawn."""
        object.__setattr__(self, "orders", tuple(order_of(p.problem.guide, p.guided, p.axes) for p in self.passes))

    def values(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """Values of latents from their coordinates, with any leading dimensions."""
        return {n: self.coordinates[n].values(u) if n in self.coordinates else u for n, u in state.items()}

    def of_values(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Coordinates of values."""
        return {n: self.coordinates[n].of_values(x) if n in self.coordinates else x for n, x in values.items()}

    # -- tuning

    def first_tuning(self, state: Mapping[str, Array]) -> Tuning:
        """Steps of size one."""
        steps, covariance, mean, variance = {}, {}, {}, {}
        for one in self.passes:
            for axis in one.axes:
                moving = self.moves_locally(one, axis)
                if moving:
                    sizes = [one.problem.layout.plan.size[p] for p in sorted(axis.scope)]
                    steps[step_name(one, axis)] = jnp.zeros(sizes)
                if self._together(one, axis):
                    count = elements(one.problem, axis, state).shape[-1]
                    covariance[step_name(one, axis)] = jnp.broadcast_to(jnp.eye(count), (*sizes, count, count))
                for name in moving:
                    if not self.coordinates[name].discrete:
                        mean[name], variance[name] = state[name], jnp.ones_like(state[name])
        return Tuning(steps, covariance, mean, variance, self.lines.first() if self.lines else None)

    def moves_locally(self, one: Pass, axis: Axis) -> list[str]:
        """Those latents of an axis that do."""
        return [] if axis.enumerated else [n for n in axis.latents if n not in one.guided]

    def _together(self, one: Pass, axis: Axis) -> bool:
        """Whether an axis has several latents that run over its plates and no others, each real and moving locally."""
        if len(axis.latents) < 2 or not axis.scope or self.moves_locally(one, axis) != list(axis.latents):
            return False
        graph = one.problem.graph
        own = [{p for p in graph.latent(n).plate_names if graph.plate(p).size > 1} for n in axis.latents]
        real = not any(self.coordinates[n].discrete for n in axis.latents)
        return real and all(p == set(axis.scope) for p in own) and self._numbers(one, axis) <= MOST

    def _numbers(self, one: Pass, axis: Axis) -> int:
        return sum(one.problem.coordinates(n) for n in axis.latents)

    # -- a sweep

    def for_all(self, one: Callable) -> Callable:
        """What does for many chains what a function does for one: at once, or, where that is faster, in turn."""
        work = sum(one.problem.layout.operations for one in self.passes)
        if jax.default_backend() == "cpu" and work > IN_TURN:
            return lambda state: jax.lax.map(one, state)
        return jax.vmap(one)

    def sweep(
        self, state: dict[str, Array], tuning: Tuning, key: KeyArray, number: Array, learning: Array
    ) -> tuple[dict[str, Array], Tuning, Told]:
        """The next state.

        Args:
            state: coordinates by latent, [*shape].
            number: of the sweep.
            learning: whether steps are adapted to it.
        """
        before, steps, weights = state, dict(tuning.log_step), []
        unsound: dict[str, Array] = {}
        for index, one in enumerate(self.passes):
            key, own = jax.random.split(key)
            state, moved, told, log_z = self._passed(index, state, tuning, own)
            weights.append(log_z)
            unsound |= {n: unsound.get(n, False) | v for n, v in told.items()}
            for axis in one.axes:
                if (name := step_name(one, axis)) in steps:
                    rate = target_rate(axis.size, self._numbers(one, axis))
                    steps[name] = adapted(steps[name], moved[axis.name], rate, number)
        changed = {n: jnp.mean(state[n] != before[n], dtype=float) for n in state}
        lines = tuning.lines
        if self.lines is not None and lines is not None:
            free = self.lines.one.free
            spread = {n: _spread(tuning, n) for n in free}
            state, lines, log_z = self.lines.moved(state, lines, spread, key, number)
            weights.append(log_z)
            centred = [(state[n] - tuning.mean[n]) / spread[n] for n in free]
            learnt = lines.directions.learnt(jnp.concatenate([c.ravel() for c in centred]), number)
            lines = lines._replace(directions=learnt)
        mean, variance = {}, {}
        for name in tuning.mean:
            mean[name], variance[name] = spread_after(tuning.mean[name], tuning.variance[name], state[name], number)
        new = Tuning(steps, self._covariance(tuning, state, number), mean, variance, lines)
        new = jax.tree.map(lambda a, b: jnp.where(learning, a, b), new, tuning)
        return state, new, Told(changed, unsound, jnp.min(jnp.stack(weights)))

    def _covariance(self, tuning: Tuning, state: Mapping[str, Array], number: Array) -> dict[str, Array]:
        """Running covariances of elements after a sweep."""
        out = {}
        for one in self.passes:
            for axis in one.axes:
                if (name := step_name(one, axis)) in tuning.covariance:
                    centred = {n: state[n] - tuning.mean[n] for n in axis.latents}
                    out[name] = covariance_after(tuning.covariance[name], elements(one.problem, axis, centred), number)
        return out

    def _passed(
        self, index: int, state: dict[str, Array], tuning: Tuning, key: KeyArray
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Array]:
        """After one pass: the state, which indices have changed by axis, unsound factors, log average weight."""
        one = self.passes[index]
        place_key, draw_key = jax.random.split(key)
        places, slots, weighed = self.weighed(index, state, tuning, place_key)
        chosen, log_z = draw_combination(weighed, draw_key)
        new = dict(state)
        for axis in one.axes:
            for name in axis.latents:
                found = take_latent(one.problem, name, places[name], chosen[axis.name])
                # where nothing has any weight there was nothing to draw from
                new[name] = jnp.where(jnp.isfinite(log_z), found, state[name])
        moved = {a.name: chosen[a.name] != slots[a.name] for a in one.axes if not a.enumerated}
        return new, moved, weighed.unsound, log_z

    def weighed(
        self, index: int, state: Mapping[str, Array], tuning: Tuning, key: KeyArray
    ) -> tuple[dict[str, Array], dict[str, Array], Weighed]:
        """Particles of a pass, [K, *shape] in their coordinates; the places of the current values, int [*scope] by
        axis; and the weights of all combinations."""
        one = self.passes[index]
        problem = one.problem
        places = {n: state[n][None] for n in problem.graph.latent_names if n not in one.free}
        exact = [n for a in one.axes if a.enumerated for n in a.latents]
        inputs = model_inputs(problem, problem.numbers, self.params, {})
        places |= {
            n: v.astype(problem.graph.latent(n).dtype) for n, v in supports(problem.model, exact, inputs).items()
        }
        slots = {a.name: jnp.zeros([problem.layout.plan.size[p] for p in sorted(a.scope)], int) for a in one.axes}
        absent = absences(problem.model, inputs)
        for axis in one.axes:
            covariance, noise = tuning.covariance.get(step_name(one, axis)), {}
            moving = self.moves_locally(one, axis)
            if covariance is not None:
                key, own = jax.random.split(key)
                keys = dict(zip(moving, jax.random.split(own, len(moving)), strict=True))
                alone = {n: jax.random.normal(k, (self.count, *state[n].shape), float) for n, k in keys.items()}
                mixed = correlated(elements(problem, axis, alone, 1), covariance)
                noise = apart(problem, axis, mixed, state, 1)
            for name in moving:
                key, own = jax.random.split(key)
                scale = self._scale(one, axis, name, tuning, absent)
                current, coordinates = state[name], self.coordinates[name]
                places[name] = local_particles(own, current, scale, self.count, coordinates, noise.get(name))
        self._guided(index, state, places, slots, key)
        values = self.values(places)
        terms = self._terms(one, places, values)
        draws = Draws(problem.model.with_aliases(values, leading=1), {}, {})
        return places, slots, weigh_against(problem, problem.numbers, draws, self.params, terms)

    def _scale(self, one: Pass, axis: Axis, name: str, tuning: Tuning, absent: Mapping[str, Array]) -> Array:
        """Standard deviations of steps, that broadcast to a latent in its coordinates."""
        problem, latent = one.problem, one.problem.graph.latent(name)
        ndim = jnp.ndim(tuning.mean[name]) if name in tuning.mean else len(latent.shape)
        step = jnp.exp(tuning.log_step[step_name(one, axis)])
        scale = aligned(problem, axis, name, step, ndim)
        joint = step_name(one, axis) in tuning.covariance
        if not joint and name in tuning.variance and self._numbers(one, axis) > 1:
            scale = scale * _spread(tuning, name)
        return if_present(absent, name, scale, ndim)

    def _guided(
        self,
        index: int,
        state: Mapping[str, Array],
        places: dict[str, Array],
        slots: dict[str, Array],
        key: KeyArray,
    ) -> None:
        """Particles from the guide, parents first, the current values in the places that are drawn for them."""
        one = self.passes[index]
        problem, density = one.problem, one.problem.guide.density
        inputs = inputs_of(problem, self.params) if one.guided else []
        extra: dict[str, Array] = {}
        for names in self.orders[index]:
            key, draw_key, slot_key = jax.random.split(key, 3)
            known = {**for_all_runs(self.values(places), self.count), **extra}
            drawn = self.draw_sites(names)(draw_key, known)
            if names[0] not in one.free:
                extra |= drawn
                continue
            axis = only(problem.layout.axis_of(names[0]), one.guided)
            current = {n: jnp.broadcast_to(state[n], (self.count, *state[n].shape)) for n in names}
            runs = density.with_aliases({**known, **current}, leading=1)
            logits = slot_logits(problem, axis, runs, inputs)
            slot = jnp.zeros((), int) if logits is None else jax.random.categorical(slot_key, logits)
            order = [axis.scope.index(p) for p in sorted(axis.scope)]
            slot = jnp.transpose(slot, order) if logits is not None else slots[axis.name]
            slots[axis.name] = slot
            for name in names:
                places[name] = placed(problem, axis, name, drawn[name].astype(state[name].dtype), state[name], slot)

    def _terms(self, one: Pass, places: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """What particles of every axis are weighed by besides the model: [*scope, K]."""
        problem = one.problem
        runs = problem.guide.density.with_aliases(for_all_runs(values, self.count), leading=1)
        draws = Draws(dict(values), runs, {})
        asked = [only(a, one.guided) for a in one.axes if not a.enumerated]
        asked = [a for a in asked if a.latents] + [a for a in one.axes if a.enumerated]
        terms = proposal_terms(problem, problem.numbers, draws, self.params, asked) if asked else {}
        moving = [n for axis in one.axes for n in self.moves_locally(one, axis)]
        return with_volumes(problem, self.coordinates, places, moving, terms)


def _spread(tuning: Tuning, name: str) -> Array:
    return jnp.sqrt(tuning.variance[name] + 1e-12)
