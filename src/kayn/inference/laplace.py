"""Posterior replicates of a guide whose vectors follow the model given its numbers (`kayn.guides.laplace`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import IdentityTransform

from kayn.axes.choose import choose_layout
from kayn.errors import KaynError
from kayn.evidence.as_drawn import inspected_as_drawn
from kayn.evidence.problem import Problem
from kayn.guides.curvature import WHOLE, Banded, Curvature
from kayn.guides.factorised import FactorisedGuide, GuideSite
from kayn.guides.joint_blocks import LARGEST_BLOCK
from kayn.guides.laplace import BEGIN, LOC, SHARES, TRIL, WIDTH, LaplaceGuide, Unconstrained
from kayn.guides.normal import Gaussian, MultivariateNormal, Normal
from kayn.inference.beginning import CHUNK
from kayn.inference.coordinates import coordinate_density, gaussian
from kayn.inference.importance import weighing
from kayn.inference.sampler import Sampler
from kayn.inference.together import wider_by
from kayn.particles.guide_program import trace_guide
from kayn.particles.shared_noise import evenly
from kayn.posterior.call import Call
from kayn.posterior.enough import possible
from kayn.posterior.posterior import Posterior
from kayn.posterior.wider import dear
from kayn.support.arrays import Array, KeyArray, concatenated
from kayn.xla.compilation import once_options
from kayn.xla.jit import QuickJit

LAPLACE = "laplace"
"""In the settings of a posterior's origin: that its particles are of this guide, and how it reads curvature."""
PARTICLES = (100, 30)
"""Of every latent, which share an axis: the fewer where a look at more takes long."""
WIDER, OVERDISPERSION = 1.0, 0.5
"""How much wider numbers and vectors are drawn than their posterior is, as `QEM` has it: numbers twice as much, since
the tails of scales are long."""
LONG, LONGEST = 64, 2**11
"""Coordinates of vectors from which a band is looked for, and at most."""
USUAL_STEPS = 4
"""Of Newton's method, by which its operations are counted."""


@dataclass(frozen=True, eq=False)
class LaplaceSampler:
    """Draws posterior replicates, as `kayn.inference.sampler.Sampler` does.

    Attributes:
        sites: of kayn's other guide: those of numbers, then those of vectors.
        params: of the guide, before they are made wider.
        run: log Z, axis weights and particles of `CHUNK` keys.
        curvature: of the guide.
    """

    problem: Problem
    sites: tuple[list[GuideSite], list[GuideSite]]
    params: Mapping[str, Array]
    run: Callable[..., Any]
    curvature: Curvature

    @staticmethod
    def of(sampler: Sampler, call: Call, found: Posterior | Curvature) -> LaplaceSampler | None:
        """With parameters that are still to be fitted; None where the model has no vectors, no numbers, or too many, or
        their curvature is dear.

        Args:
            found: a posterior, some particles of which tell what in the vectors has to do with what; or how their
                curvature is read, where that is known.

        Raises:
            KaynError: the model's density has no second derivatives.
        """
        guide = sampler.qem.guide
        sites = None if guide is None or sampler.qem.user_guide is not None else _parts(guide)
        if guide is None or sites is None or sampler.qem.request.strategy != "parallel":
            return None
        sizes = [sum(map(_size, own)) for own in sites]
        start = {LOC: np.zeros(sizes[0]), TRIL: np.eye(sizes[0]), BEGIN: np.zeros(sizes[1]), WIDTH: np.ones(())}
        params = {**sampler.qem.model_params, **_arrays(start)}
        try:
            made = _problem(sampler, guide, sites, params, call, found)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise KaynError(f"no second derivatives: {error}") from error
        if made is None:
            return None
        problem, curvature = made
        return LaplaceSampler(problem, sites, params, weighing(problem), curvature)

    def fitted_again(self, found: Posterior) -> LaplaceSampler:
        """The same guide, with the moments of weighed particles of all replicates of a posterior, which may be
        of another guide."""
        numbers, vectors = (_moments(found, own) for own in self.sites)
        normal = MultivariateNormal().from_moments(numbers)
        fitted = {LOC: normal["loc"], TRIL: normal["scale_tril"], BEGIN: vectors["mean"]}
        return replace(self, params={**self.params, **_arrays(fitted)})

    def wider(self, overdispersion: float, vectors: bool = False) -> LaplaceSampler:
        """The same guide made wider, as `Sampler.wider`.

        Args:
            vectors: only these.
        """
        return self._wider(0.0 if vectors else overdispersion, overdispersion)

    def _wider(self, numbers: float, vectors: float) -> LaplaceSampler:
        asked = ((TRIL, LOC, numbers), (WIDTH, BEGIN, vectors))
        wide = {n: self.params[n] * math.sqrt(wider_by(more, self.params[of].size)) for n, of, more in asked}
        return replace(self, params={**self.params, **wide})

    def posterior(self, call: Call, key: KeyArray, num_replicates: int) -> Posterior:
        """A posterior of so many replicates."""
        params = dict(self._wider(WIDER, OVERDISPERSION).params)
        keys = jax.random.split(key, num_replicates + -num_replicates % CHUNK)
        parts = [self.run(self.problem.numbers, params, keys[i : i + CHUNK]) for i in range(0, num_replicates, CHUNK)]
        log_evidences, weights, draws = jax.tree.map(lambda x: x[:num_replicates], concatenated(parts))
        if call.origin is not None:
            call = replace(
                call, origin=replace(call.origin, settings={**call.origin.settings, LAPLACE: self.curvature.settings})
            )
        return Posterior(self.problem, call, self.problem.numbers, params, draws, log_evidences, weights)


def _arrays(values: Mapping[str, Array]) -> dict[str, Array]:
    return {n: jnp.asarray(v, jnp.result_type(float)) for n, v in values.items()}


def _parts(guide: FactorisedGuide) -> tuple[list[GuideSite], list[GuideSite]] | None:
    """Sites of numbers, and of vectors: what is anywhere on the real line."""
    plain = all(isinstance(s.family, Gaussian) for s in guide.sites)
    if not plain or not guide.draws_together:
        return None
    line = [isinstance(gaussian(s).transform, IdentityTransform) for s in guide.sites]
    numbers, vectors = ([s for s, is_line in zip(guide.sites, line, strict=True) if is_line == own] for own in (0, 1))
    few = sum(map(_size, numbers)) <= LARGEST_BLOCK and sum(map(_size, vectors)) <= LONGEST
    return (numbers, vectors) if numbers and vectors and few else None


def _shape(site: GuideSite) -> tuple[int, ...]:
    """Of its coordinates."""
    return np.shape(site.start["loc"])


def _size(site: GuideSite) -> int:
    return math.prod(_shape(site))


def _problem(
    sampler: Sampler,
    guide: FactorisedGuide,
    sites: tuple[list[GuideSite], list[GuideSite]],
    params: Mapping[str, Array],
    call: Call,
    found: Posterior | Curvature,
) -> tuple[Problem, Curvature] | None:
    """The model under the guide that follows it, all latents on one axis, and how that reads curvature; None where it
    has too many coordinates, or a look at it would take long."""
    base, given = sampler.problem, sampler.qem.model_params
    numbers, vectors = ([Unconstrained(s.name, _shape(s), gaussian(s).transform) for s in own] for own in sites)

    def particles(curvature: Curvature) -> int | None:
        each = _operations(base, vectors, curvature)
        return next((k for k in PARTICLES if not dear(k * each)), None)

    if sum(v.size for v in vectors) < LONG and particles(WHOLE) is None:
        return None  # before anything is traced
    inspected = inspected_as_drawn(call.model, guide, call.args, call.kwargs, given)
    once, density = coordinate_density(guide, inspected, given)
    follows = LaplaceGuide(numbers, vectors, partial(density, once.numbers), params)
    curvature = _curvature(follows, sites, found) if isinstance(found, Posterior) else found
    count = None if curvature is None else particles(curvature)
    if curvature is None or count is None:
        return None
    follows = replace(follows, curvature=curvature)
    traced = trace_guide(follows, call.args, call.kwargs, params, inspected.sites)
    together = (tuple(s.name for s in guide.sites),)
    request = replace(sampler.qem.asked, num_particles=count, more=False, groups=together)
    layout = choose_layout(base.structure, request, traced.constraints)
    layout = replace(layout, operations=count * _operations(base, vectors, curvature))
    problem = Problem(
        base.model,
        evenly(traced, follows, call.args, call.kwargs, params),
        base.structure,
        layout,
        base.fn,
        base.denominator,
    )
    return problem, curvature


def _curvature(
    follows: LaplaceGuide, sites: tuple[list[GuideSite], list[GuideSite]], found: Posterior
) -> Curvature | None:
    """A band where most elements of long vectors have nothing to do with each other; None of more than fit into one
    block where there is none.

    What is zero for two particles is taken to be always: where it is not, the guide is a little off, and no weight.
    """
    size = sum(v.size for v in follows.vectors)
    if size < LONG:
        return WHOLE
    first = int(np.argmax(possible(found)))

    def coordinates(own: list[GuideSite]) -> dict[str, Array]:
        return {s.name: gaussian(s).unconstrained(jnp.asarray(found.draws.values[s.name])[first, :2]) for s in own}

    def pattern(numbers: Mapping[str, Array], u: Array) -> Array:
        return (jax.vmap(jax.hessian(follows.energy, argnums=1))(numbers, u) != 0).any(0)

    known, u = map(coordinates, sites)
    flat = jnp.concatenate([u[s.name].reshape((2, -1)) for s in sites[1]], 1)
    banded = Banded.of(np.asarray(QuickJit(pattern, options=once_options)(known, flat)))
    return WHOLE if banded is None and size <= LARGEST_BLOCK else banded


def _operations(problem: Problem, vectors: Sequence[Unconstrained], curvature: Curvature) -> float:
    """That one particle takes: each step of Newton's method has a gradient for every direction of the curvature, at
    twice the cost of the density, forwards again; what depends on numbers alone is the same for all of these."""
    names, size = {v.name for v in vectors}, sum(v.size for v in vectors)
    directions, root = curvature.derivatives(size)
    work = [own for output in problem.graph.outputs for own in output.work]
    moving = sum(n for latents, n in work if names & set(latents))
    once = sum(n for latents, n in work if not names & set(latents))
    return USUAL_STEPS * (once + (6 * directions + len(SHARES)) * moving + root)


def _moments(found: Posterior, sites: Sequence[GuideSite]) -> dict[str, np.ndarray]:
    """Mean [N], covariance [N, N] and noise of all coordinates of some sites; of those whose particles are weighed
    apart the covariance is zero."""
    ends = np.cumsum([_size(s) for s in sites])
    places = {s.name: np.arange(e - _size(s), e) for s, e in zip(sites, ends, strict=True)}
    mean, covariance, noise = np.zeros(ends[-1]), np.zeros((ends[-1], ends[-1])), 0.0
    for axis in found.problem.layout.axes:
        own = [s for s in sites if s.name in axis.latents]
        if own:
            where = np.concatenate([places[s.name] for s in own])
            u, weights = _weighed(found, own)
            # without plates all coordinates have the same weights
            moments = (
                Normal().unconstrained_moments(u, weights)
                if axis.scope
                else MultivariateNormal().unconstrained_moments(u, weights[:, :1])
            )
            mean[where] = moments["mean"]
            covariance[np.ix_(where, where)] = np.diag(moments["variance"]) if axis.scope else moments["covariance"]
            noise = max(noise, float(np.max(moments["noise"])))
    return {"mean": mean, "covariance": covariance, "noise": np.asarray(noise)}


def _weighed(found: Posterior, sites: Sequence[GuideSite]) -> tuple[Array, Array]:
    """Coordinates of sites on one axis, and the weights of each, which sum to one over particles: [P, N] both."""
    columns, shares = [], []
    for site in sites:
        values = np.asarray(found.draws.values[site.name])
        u = np.asarray(gaussian(site).unconstrained(values.reshape((-1, *values.shape[2:]))))
        own = np.asarray(found._pooled(site.name))
        own = own.reshape((*own.shape, *(1,) * (u.ndim - own.ndim)))
        columns.append(u.reshape(len(u), -1))
        shares.append(np.broadcast_to(own, u.shape).reshape(len(u), -1))
    weights = np.nan_to_num(np.concatenate(shares, 1))
    # what has no weight may be anywhere
    return np.where(weights > 0, np.concatenate(columns, 1), 0.0), weights / weights.sum(0)
