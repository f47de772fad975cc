"""Random models as problems of kayn, with particles, beside their enumeration."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import assume

from kayn.axes.request import make_request
from kayn.errors import StructureError
from kayn.evidence.draws import Draws, draws_from_runs
from kayn.evidence.problem import Problem, build_problem
from tests.laws.oracle import BruteForce, elements_read
from tests.laws.programs import Spec
from tests.laws.strategies import EVENTS, MAX_COMBINATIONS
from tests.laws.structures import DISCRETE, INTEGERS, SiteSpec


def build(spec: Spec) -> tuple[Problem, BruteForce]:
    request = make_request(dict(counts(spec)), spec.strategy, named_groups(spec))
    try:
        problem = build_problem(spec.model, spec.guide, (), {}, spec.params(), request, spec.denominator)
    except StructureError as error:
        # an enumerated latent cannot be coupled; whatever else is refused is a fault
        assert "is enumerated" in str(error)
        assume(False)
    oracle = BruteForce(problem, spec.clean_model, spec.guide, masks=used(spec), subsample=spec.subsample())
    assume(oracle.combinations <= MAX_COMBINATIONS)
    return problem, oracle


def counts(spec: Spec) -> list[tuple[str, int]]:
    return [(spec.latent(spec.site(z)) if z else "", k) for z, k in spec.num_particles]


def named_groups(spec: Spec) -> list[tuple[str, ...]]:
    return [tuple(spec.latent(spec.site(z)) for z in group) for group in spec.groups]


def used(spec: Spec) -> dict[str, np.ndarray]:
    """Which elements of masked latents are in the model: those that count themselves, and those that others read."""
    masked = [s for s in spec.latents if s.wrap == "mask" and not s.fixed]
    counted = {spec.latent(s): spec.counted(s) for s in masked}
    if all(mask.all() for mask in counted.values()):
        return counted
    rng = np.random.default_rng([spec.seed, 80])
    values = {}
    for site in spec.latents:
        if not site.fixed:
            shape = spec.chain_shape(site) if site.steps else seen_shape(spec, site)
            some = numbers_of(rng, site.family, (5, *shape))
            # small ones among them: what saturates at large numbers does not tell whether it reads them
            small = np.array([1, 1, 1, 0, 0] if some.dtype.kind == "i" else [1, 0.5, 0.2, 0.1, 0.05], some.dtype)
            values[spec.latent(site)] = some * small.reshape((-1, *(1,) * len(shape)))
    read = elements_read(spec.clean_model, {**spec.params(), **spec.subsample()}, counted, values)
    return {name: counted[name] | read[name] for name in counted}


def seen_shape(spec: Spec, site: SiteSpec) -> tuple[int, ...]:
    """The shape of a latent's value, of the elements that a subsample has."""
    dims = {spec.plate(p).dim: spec.plate(p).size for p in site.home}
    shape = tuple(dims.get(d, 1) for d in range(min(dims, default=0), 0))
    return (*shape, 2) if site.family in EVENTS else shape


def numbers_of(rng: np.random.Generator, family: str, shape: tuple[int, ...]) -> np.ndarray:
    if family in DISCRETE:
        return rng.integers(0, INTEGERS[family], shape)
    return (rng.gamma(2.0, size=shape) if family == "gamma" else rng.normal(size=shape)).astype(np.float32)


def some_draws(spec: Spec, problem: Problem) -> Draws:
    """Particles of any law do for these tests; NumPy's cost no compilation."""
    rng = np.random.default_rng(spec.seed)
    families = {spec.latent(s): s.family for s in spec.latents}
    runs = {}
    for name in problem.guide.names:
        site = problem.guide.density.sites[name]
        values = numbers_of(rng, families.get(name, "normal"), (problem.num_runs, *site.shape))
        runs[name] = jnp.asarray(values, site.dtype)
    return draws_from_runs(problem, problem.numbers, spec.params(), runs, spec.subsample())
