"""Moves of all latents together, with K particles on one axis: along learnt directions, one coordinate of a vector at a
time, and a location or a scale with all that follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import IdentityTransform

from kayn.axes.types import proposal_name
from kayn.evidence.draws import Draws
from kayn.evidence.problem import model_inputs
from kayn.evidence.queries import draw_combination
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import weigh_against
from kayn.graph.absent import absences
from kayn.inference.mcmc.adaptation import adapted, target_rate
from kayn.inference.mcmc.arrange import if_present, with_volumes
from kayn.inference.mcmc.coordinates import Coordinates
from kayn.inference.mcmc.directions import Directions
from kayn.inference.mcmc.following import Following
from kayn.inference.mcmc.local import local_particles
from kayn.inference.mcmc.passes import Pass
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.names import in_model

ALONG = Coordinates(IdentityTransform())
"""Of a step along a line: a real number."""
GOVERNING = 64
"""Numbers in a latent up to which each of them is moved with what follows it."""
AT_ONCE = 32
"""Coordinates that are moved one by one in a sweep; where there are more, these many of them by chance."""


class LineSteps(NamedTuple):
    """What warm-up learns of lines.

    Attributes:
        directions: along which latents move together.
        log_step: of a step of each single coordinate, [L].
    """

    directions: Directions
    log_step: Array


class Line(NamedTuple):
    """A line through the current state.

    Attributes:
        vector: its direction in standardised coordinates, [n].
        carries: whether latents that follow others do so; if not, they stay.
        log_step: of a step along it.
    """

    vector: Array
    carries: Array
    log_step: Array


@dataclass(frozen=True, eq=False)
class Lines:
    """Which lines there are.

    Attributes:
        one: the pass in which all that moves has one index.
        coordinates: by latent.
        params: values of `numpyro.param` sites.
        count: K.
        following: which latents follow others; None where none does.
        alone: latents whose numbers move one by one, the others held.
        governing: those that move so with all that follows them.
    """

    one: Pass
    coordinates: Mapping[str, Coordinates]
    params: Mapping[str, PyTree]
    count: int
    following: Following | None
    alone: tuple[str, ...]
    governing: tuple[str, ...]
    single: np.ndarray = field(init=False)
    """Which coordinates these are, among those of all that moves: int [L], those of `alone` first."""

    def __post_init__(self) -> None:
        """Count coordinates."""
        ends = np.cumsum([0, *(_size(self.one, self.coordinates, n) for n in self.one.free)])
        own = {n: np.arange(*ends[i : i + 2]) for i, n in enumerate(self.one.free)}
        moving = [own[n] for n in (*self.alone, *self.governing)]
        object.__setattr__(self, "single", np.concatenate([np.zeros(0, int), *moving]))

    @property
    def carries(self) -> np.ndarray:
        """For which of them latents follow, bool [L]."""
        own = sum(_size(self.one, self.coordinates, n) for n in self.alone)
        return np.arange(len(self.single)) >= own

    def words(self) -> tuple[str, ...]:
        """What moves, a line a kind."""
        out = [f"Along learnt directions, together: {_names(self.one.free)}"]
        if self.alone:
            out.append(f"One number at a time: {_names(self.alone)}")
        if self.following is not None:
            out.append(f"One number at a time, others along with it: {_names(self.governing)}")
            out.append(f"  along with them: {_names(self.following.names)}")
        return tuple(out)

    def first(self) -> LineSteps:
        """Steps of size one."""
        count = sum(_size(self.one, self.coordinates, n) for n in self.one.free)
        return LineSteps(Directions.first(count), jnp.zeros(len(self.single)))

    def moved(
        self, state: dict[str, Array], steps: LineSteps, spread: Mapping[str, Array], key: KeyArray, number: Array
    ) -> tuple[dict[str, Array], LineSteps, Array]:
        """After a step along each line: the state, steps adapted to it, and the least log average weight.

        Args:
            spread: standard deviations of coordinates, by latent [*shape].
            number: of the sweep.
        """
        choice_key, key = jax.random.split(key)
        learnt, each = steps.directions, min(len(self.single), AT_ONCE)
        chosen = jnp.arange(each)
        if each < len(self.single):
            chosen = jax.random.choice(choice_key, len(self.single), (each,), replace=False)
        count, directions = learnt.vectors.shape[1], len(learnt.vectors)
        single, carries = jnp.asarray(self.single), jnp.asarray(self.carries)

        def step(state: dict[str, Array], item: tuple[Array, KeyArray]) -> tuple[dict[str, Array], tuple[Array, Array]]:
            number, key = item
            line = Line(learnt.vectors[number % directions], jnp.array(False), learnt.log_step[number % directions])
            if each:
                # numbers behind those of directions
                own = chosen[jnp.maximum(number - directions, 0)]
                vector = jnp.zeros(count, line.vector.dtype).at[single[own]].set(1.0)
                alone = Line(vector, carries[own], steps.log_step[own])
                line = jax.tree.map(lambda a, b: jnp.where(number < directions, a, b), line, alone)
            return self._stepped(state, line, spread, key)

        numbers = jnp.arange(directions + each)
        state, (moved, log_zs) = jax.lax.scan(step, state, (numbers, jax.random.split(key, len(numbers))))
        new = learnt.stepped(moved[:directions], self.count, number)
        rate = target_rate(self.count, 1)
        own = adapted(steps.log_step[chosen], moved[directions:], rate, number)
        return state, LineSteps(new, steps.log_step.at[chosen].set(own)), jnp.min(log_zs)

    def _stepped(
        self, state: dict[str, Array], line: Line, spread: Mapping[str, Array], key: KeyArray
    ) -> tuple[dict[str, Array], tuple[Array, Array]]:
        """After a step along a line: the state, whether it has moved, and the log average weight."""
        place_key, draw_key = jax.random.split(key)
        places, weighed = self.weighed(line, state, spread, place_key)
        axis = self.one.axes[0]
        chosen, log_z = draw_combination(weighed, draw_key)
        moved = jnp.isfinite(log_z) & (chosen[axis.name] != 0)
        new = {n: jnp.where(moved, places[n][chosen[axis.name]], state[n]) for n in axis.latents}
        return {**state, **new}, (moved, log_z)

    def weighed(
        self, line: Line, state: Mapping[str, Array], spread: Mapping[str, Array], key: KeyArray
    ) -> tuple[dict[str, Array], Weighed]:
        """Particles along a line, the current state first, and their weights."""
        one, problem = self.one, self.one.problem
        inputs = model_inputs(problem, problem.numbers, self.params, {})
        absent = absences(problem.model, inputs)
        far = local_particles(key, jnp.zeros(()), jnp.exp(line.log_step), self.count, ALONG)
        sizes = np.cumsum([state[n].size for n in one.free])[:-1]
        towards = {}
        for name, part in zip(one.free, jnp.split(line.vector, sizes), strict=True):
            step = part.reshape(state[name].shape) * spread[name]
            towards[name] = if_present(absent, name, step, state[name].ndim)
        places, log_volume = self._along(state, towards, line.carries, far, absent)
        places |= {n: state[n][None] for n in problem.graph.latent_names if n not in one.free}
        values = {n: self.coordinates[n].values(u) if n in self.coordinates else u for n, u in places.items()}
        draws = Draws(problem.model.with_aliases(values, leading=1), {}, {})
        moving = [n for a in one.axes for n in a.latents]
        terms = with_volumes(problem, self.coordinates, places, moving, {})
        own = proposal_name(one.axes[0])
        terms[own] = terms[own] + log_volume
        return places, weigh_against(problem, problem.numbers, draws, self.params, terms)

    def _along(
        self,
        state: Mapping[str, Array],
        towards: Mapping[str, Array],
        carries: Array,
        far: Array,
        absent: Mapping[str, Array],
    ) -> tuple[dict[str, Array], Array]:
        """What moves, [K, *shape] by latent with the current state first, and the log volume that followers have, [K].

        Args:
            towards: steps of one, by latent [*shape].
            far: how many of them, [K].
        """
        begin, volume = {n: state[n] for n in self.one.free}, jnp.zeros(())
        if self.following is not None:
            stays = {
                n: if_present(absent, n, jnp.ones_like(state[n]), state[n].ndim) == 0 for n in self.following.names
            }
            inner, own = self.following.innovations(state, stays)
            begin = {n: jnp.where(carries, inner[n], state[n]) for n in begin}
            volume = jnp.where(carries, own, 0.0)
        ends = {}
        for name, u in begin.items():
            steps = far.reshape((-1, *(1,) * u.ndim)) * towards[name]
            ends[name] = u + steps.astype(u.dtype)
        if self.following is None:
            return ends, jnp.zeros(len(far))
        follow, others = self.following.follow, {n: u for n, u in state.items() if n not in ends}
        found, volumes = jax.vmap(lambda own: follow({**others, **own}, stays))(ends)
        ends = {n: jnp.where(carries, found[n], u) for n, u in ends.items()}
        # the current state as it is, without rounding
        ends = {n: u.at[0].set(state[n]) for n, u in ends.items()}
        return ends, jnp.where(carries, volumes, 0.0).at[0].set(volume)


def lines_of(
    joint: Pass | None,
    passes: Sequence[Pass],
    coordinates: Mapping[str, Coordinates],
    params: Mapping[str, PyTree],
    count: int,
    following: Following,
) -> Lines | None:
    """The lines of a model whose latents move in some passes; None where they have no pass together.

    One by one move the numbers of a latent that share an index in all passes; and, with what follows them, those of
    locations and scales.
    """
    if joint is None:
        return None
    graph = joint.problem.graph
    followers = following.names_of(graph)
    follow = tuple(n for n in followers.names if n in joint.free)
    above = {p for n in follow for p in graph.latent(n).parents}
    sizes = {n: _size(joint, coordinates, n) for n in joint.free}
    alone = tuple(n for n in sizes if _as_one(passes, n))
    governing = tuple(n for n, size in sizes.items() if n in above and size <= GOVERNING)
    follows = replace(followers, names=follow) if governing else None
    return Lines(joint, coordinates, params, count, follows, alone, governing)


def _as_one(passes: Sequence[Pass], name: str) -> bool:
    """Whether a number of a latent shares its index wherever it moves: with others of the latent, or, where there are
    no plates, with other latents."""

    def shared(one: Pass) -> bool:
        axis = one.problem.layout.axis_of(name)
        names = (name,) if axis.scope else axis.latents
        return sum(one.problem.coordinates(n) for n in names) > 1

    return all(shared(p) for p in passes if name in p.free)


def _size(one: Pass, coordinates: Mapping[str, Coordinates], name: str) -> int:
    """How many coordinates a latent has."""
    return math.prod(coordinates[name].shape_of(one.problem.graph.latent(name).shape))


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(in_model, names))
