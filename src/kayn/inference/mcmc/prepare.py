"""A model, its arguments and what proposes for its latents, made ready to be sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.axes.minibatches import subsampled_plates
from kayn.axes.request import make_request
from kayn.errors import KaynError, ModelError
from kayn.evidence.draws import deterministic_values
from kayn.evidence.problem import Problem, model_inputs
from kayn.evidence.queries import draw_combination, take_latent
from kayn.evidence.unguided import inspected_for
from kayn.guides.factorised import FactorisedGuide, Unstarted
from kayn.inference.mcmc.begin import with_all_from_guide
from kayn.inference.mcmc.coordinates import Coordinates, coordinates_of
from kayn.inference.mcmc.following import Following
from kayn.inference.mcmc.independent import draw_sites, refuse_unkept
from kayn.inference.mcmc.lines import lines_of
from kayn.inference.mcmc.passes import Passes, Planner
from kayn.inference.mcmc.proposals import LOCAL, PRIOR, Proposals, local_words, prior_guide, proposals_of, started_from
from kayn.inference.mcmc.state import GibbsState
from kayn.inference.mcmc.sweep import Kernel
from kayn.particles.draw import draw_runs, supports
from kayn.particles.guide_program import GuideProgram, trace_guide
from kayn.programs.events import freed
from kayn.programs.sites import Inspected, share_fixed, summed_out
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.names import in_model, unbounded
from kayn.xla.compilation import once_options
from kayn.xla.jit import QuickJit


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model ready to be sampled.

    Attributes:
        name: of the model.
        kernel: what a sweep does.
        passes: the same in words.
        guide: draws what chains start from.
        held: the model with all latents held: one particle each, for questions that need no axes.
    """

    name: str
    kernel: Kernel
    passes: Passes
    guide: GuideProgram
    held: Problem

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of all latents."""
        return self.kernel.passes[0].problem.graph.latent_names

    @cached_property
    def _begun(self) -> dict[bool, QuickJit]:
        def one(key: KeyArray, given: Mapping[str, Array], num_warmup: Array) -> GibbsState:
            own, rest = jax.random.split(key)
            z, log_weight = self.first(as_key(own), given)
            return GibbsState.of(self.kernel, z, log_weight, num_warmup, rest)

        return {
            False: QuickJit(one, options=once_options),
            True: QuickJit(jax.vmap(one, (0, 0, None)), options=once_options),
        }

    def begin(self, many: bool) -> QuickJit:
        """The first state of one chain or of many, a compiled function of keys, given coordinates and the number of
        sweeps of warm-up."""
        return self._begun[many]

    def first(self, key: KeyArray, given: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """Where a chain begins, in coordinates, and the log average weight there.

        One combination of particles of the guide, pass by pass; latents that are given stay.
        """
        kernel, problem = self.kernel, self.kernel.passes[0].problem
        key, own, any_key = jax.random.split(key, 3)
        runs = draw_runs(self.guide, self.guide.sampler_consts, own, kernel.count, kernel.params, {})
        runs = {n: v.astype(problem.graph.latent(n).dtype) if n in self.latents else v for n, v in runs.items()}
        undrawn = [n for n in self.latents if n not in runs]
        for name, any_own in zip(undrawn, jax.random.split(any_key, len(undrawn) + 1)[:-1], strict=True):
            latent = problem.graph.latent(name)
            any_value = kernel.coordinates[name].any_value(any_own, (kernel.count, *latent.shape), latent.dtype)
            runs[name] = any_value
        fixed = kernel.values(dict(given))
        runs |= {n: jnp.broadcast_to(v, (kernel.count, *v.shape)) for n, v in fixed.items()}
        state, log_weights = {n: runs[n][0] for n in self.latents}, []
        for index, one in enumerate(kernel.passes):
            key, own = jax.random.split(key)
            weighed = with_all_from_guide(kernel, index, state, runs)
            chosen, log_z = draw_combination(weighed, own)
            log_weights.append(log_z)
            for axis in one.axes:
                for name in axis.latents:
                    if name in fixed:
                        continue
                    particles = runs[name]
                    if axis.enumerated:
                        inputs = model_inputs(one.problem, one.problem.numbers, kernel.params, {})
                        particles = supports(one.problem.model, [name], inputs)[name].astype(particles.dtype)
                    state[name] = take_latent(one.problem, name, particles, chosen[axis.name])
        return kernel.of_values(state) | dict(given), jnp.min(jnp.stack(log_weights))

    def given(self, init_params: Mapping[str, Array] | None) -> dict[str, Array]:
        """Values to start from, in coordinates.

        Raises:
            KaynError: they are of no latent, or of one whose coordinates are not known.
        """
        found = {}
        for name, value in (init_params or {}).items():
            own = name if name in self.latents else unbounded(name)
            if own not in self.latents:
                raise KaynError(
                    f"init_params has {name!r}, which is no latent of the model; latents: "
                    f"{sorted(map(in_model, self.latents))}"
                )
            if own not in self.kernel.coordinates:
                raise KaynError(
                    f"init_params has {name!r}, whose particles come from a guide: its chains start from draws of the "
                    "guide; leave it out"
                )
            found[own] = jnp.asarray(value)
        return found

    def samples(self, z: Mapping[str, Array]) -> dict[str, Array]:
        """Values of latents and deterministic sites of one state."""
        problem = self.kernel.passes[0].problem
        values = self.kernel.values(z)
        inputs = model_inputs(problem, problem.numbers, self.kernel.params, {})
        more = deterministic_values(problem, {n: v[None] for n, v in values.items()}, inputs)
        own = {n: v for n, v in values.items() if in_model(n) == n}
        return own | {n: v[0] for n, v in more.items()}

    def refuse_impossible(self, log_weights: Array) -> None:
        """Refuse chains that begin where nothing has any weight.

        Raises:
            ModelError: there is one.
        """
        bad = np.flatnonzero(~np.isfinite(np.atleast_1d(np.asarray(log_weights))))
        if bad.size:
            raise ModelError(
                f"chain {bad[0]} of {self.name} found no start: among {self.kernel.count} particles of every latent no "
                "combination has a positive, finite density. Check data and priors, give more particles, or "
                "init_params= to MCMC.run"
            )


def prepared(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    count: int,
    proposal: Any,
    start: Any,
    params: Mapping[str, PyTree],
    options: Mapping[str, Any],
) -> Prepared:
    """Read a model and a guide, and choose passes.

    Args:
        start: a guide or a fit that chains start from, where no guide proposes; None for the prior's quantiles.

    Raises:
        KaynError: no kernel supports a site, or a proposal does not fit the model.
    """
    proposals = started_from(proposals_of(proposal), start)
    params = {**proposals.params, **params}
    request = make_request(count, **options)
    base = inspected_for(proposals.guide, model, args, kwargs, params, request)
    names = _latents(base)
    kinds = proposals.by_latent(names)
    guide, own = _guides(base, proposals, kinds)
    if isinstance(guide, FactorisedGuide):
        base = replace(base, sites=freed(base.sites, guide.freed(base.sites)))
        params = {**guide.start, **params}
    traced = trace_guide(guide, args, kwargs, params, base.sites)
    base = replace(base, params=params, sites=share_fixed(base.sites, traced.density.sites))
    guided = frozenset(n for n in traced.names if kinds.get(n, LOCAL) != LOCAL)
    refuse_unkept(traced, sorted(guided))
    planner = Planner(base, traced, guided, request)
    chosen, graph = planner.chosen(), planner.graph
    moving = {n: graph.latent(n) for n in graph.latent_names if n not in guided}
    coordinates = {} if own is None else coordinates_of(own, base.sites, moving)

    @cache
    def draws_of(group: tuple[str, ...]) -> Callable:
        return draw_sites(guide, args, kwargs, params, group, count)

    joint = planner.joint(moving_together(coordinates))
    following = Following(partial(base.fn, *args, **kwargs), params, coordinates)
    lines = lines_of(joint, chosen, coordinates, params, count, following)
    kernel = Kernel(chosen, coordinates, params, count, draws_of, lines)
    words = {n: kinds[n] if n in guided else local_words(coordinates[n]) for n in graph.latent_names}
    name = getattr(model, "__name__", type(model).__name__)
    return Prepared(name, kernel, Passes(chosen, words, lines.words() if lines else ()), traced, planner.held())


def moving_together(coordinates: Mapping[str, Coordinates]) -> list[str]:
    """Latents that move along directions too: those whose coordinates are real numbers."""
    return [n for n, c in coordinates.items() if not c.discrete]


def _latents(base: Inspected) -> list[str]:
    """Names of a model's latents.

    Raises:
        ModelError: there is none, or a plate is subsampled.
    """
    plates = subsampled_plates(base.sites)
    if plates:
        name, (full, size) = next(iter(plates.items()))
        raise ModelError(
            f"plate {name!r} is a subsample of {size} of {full} elements; sweeps leave the posterior as it is with all "
            "data only. Drop subsample_size"
        )
    names = [n for n, s in base.sites.items() if s.kind == "sample" and not s.observed]
    if not names:
        raise ModelError("the model has no latent to sample")
    return names


def _guides(base: Inspected, proposals: Proposals, kinds: Mapping[str, str]) -> tuple[Any, FactorisedGuide | None]:
    """What draws particles and first values, and what knows the coordinates of latents that move locally."""
    own = None
    if proposals.guide is None or LOCAL in kinds.values():
        own = Unstarted.of(replace(base, sites=summed_out(base.sites, _not_few(base)))).started()
    if proposals.guide is not None:
        return proposals.guide, own
    return prior_guide(base.fn, tuple(kinds)) if PRIOR in kinds.values() else own, own


def _not_few(base: Inspected) -> list[str]:
    """Discrete latents without a list of values."""
    return [n for n, s in base.sites.items() if s.kind == "sample" and s.discrete and s.num_values is None]
