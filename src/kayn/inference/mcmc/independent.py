"""Independent proposals: particles from a guide, among which the current value takes the place of one.

Which place it takes is drawn: with what probability each run's parents would have given it. Only then does dividing by
the mixture over parents leave the posterior as it is; with a place drawn evenly it would not, from K = 3 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from numpyro import handlers

from kayn.axes.types import Axis
from kayn.errors import GuideError
from kayn.evidence.problem import Problem, guide_inputs
from kayn.particles.density import log_density
from kayn.particles.guide_program import GuideProgram
from kayn.programs.given import Given
from kayn.programs.roles import Fixed
from kayn.programs.seeding import InvertedDraws, seeded
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.names import in_model


def refuse_unkept(guide: GuideProgram, guided: Sequence[str]) -> None:
    """Refuse a guide among whose particles the current value cannot be put.

    Raises:
        GuideError: it draws a latent as a function of another site, or asks for random keys of its own.
    """
    sites = guide.density.sites
    points = [n for n in guided if sites[n].delta]
    if points:
        raise GuideError(
            f"the guide draws latent {in_model(points[0])!r} as a function of an auxiliary site, so that its current "
            "value has no place among the particles; use a guide that draws each latent itself, such as AutoNormal or "
            "a fit of kayn's"
        )
    paths = [a.base for a in guide.density.aliases if a.base in guided]
    if paths:
        raise GuideError(
            f"the guide draws the steps of {in_model(paths[0])!r} given earlier ones; its current path has no place "
            "among the particles. Use proposal='local' for it, or a guide with independent steps"
        )
    keys = [n for n, s in sites.items() if s.kind == "key"]
    if keys and guided:
        raise GuideError(
            "the guide asks for random keys (numpyro.prng_key), which cannot be held while a latent is drawn given "
            "others; draw what it needs by numpyro.sample with infer={'is_auxiliary': True}"
        )


def order_of(guide: GuideProgram, guided: Sequence[str], axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Guide sites that are drawn together, parents first: axes of latents, and auxiliary sites one by one.

    Raises:
        GuideError: axes that share latents leave no order.
    """
    groups = [tuple(n for n in a.latents if n in guided) for a in axes]
    waiting = [g for g in groups if g] + [(n,) for n in _auxiliary_above(guide, guided)]
    out: list[tuple[str, ...]] = []
    while waiting:
        open_names = {n for g in waiting for n in g}
        ready = [g for g in waiting if not any(p in open_names - set(g) for n in g for p in guide.parents[n])]
        if not ready:
            raise GuideError(
                f"latents that share a particle axis, {waiting[0]}, depend in the guide on others that depend on them; "
                "put all of them in one group with groups="
            )
        out += ready
        waiting = [g for g in waiting if g not in ready]
    return out


def _auxiliary_above(guide: GuideProgram, names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    stack = [p for n in names for p in guide.parents[n]]
    while stack:
        name = stack.pop()
        if name in guide.auxiliary and name not in found:
            found[name] = None
            stack += guide.parents[name]
    return list(found)


def slot_logits(problem: Problem, axis: Axis, runs: Mapping[str, Array], inputs: Sequence[Array]) -> Array | None:
    """Log of what each place of an axis would have given its current values, up to a constant: [*scope, K].

    None where all are alike, since the guide draws them whatever the others are.

    Args:
        axis: with the latents alone that the guide draws.
        runs: guide values, [K, *shape]; for the axis's own latents the current values, K times over.
    """
    guide = problem.guide
    if not {p for n in axis.latents for p in guide.parents[n]} - set(axis.latents):
        return None
    # one current value against the K parents: every run is weighed as a pair
    return log_density(guide, problem.graph, axis, runs, inputs, {}, "paired")


def draw_sites(
    guide_fn: PyTree, args: tuple, kwargs: Mapping, params: Mapping, names: Sequence[str], count: int
) -> partial:
    """A function of a key and of known values [K, *shape] that gives `count` draws of some sites of a guide."""

    def one(key: KeyArray, known: Mapping[str, Array], params: Mapping[str, PyTree]) -> dict[str, Array]:
        program = seeded(InvertedDraws(Given(Fixed(guide_fn), params=params, latents=known)), key)
        trace = handlers.trace(program).get_trace(*args, **kwargs)
        return {n: jnp.asarray(trace[n]["value"]) for n in names}

    def draw(params: Mapping[str, PyTree], key: KeyArray, known: Mapping[str, Array]) -> dict[str, Array]:
        return jax.vmap(partial(one, params=params))(jax.random.split(key, count), dict(known))

    return partial(draw, dict(params))


def only(axis: Axis, guided: Sequence[str]) -> Axis:
    """An axis with those of its latents that the guide draws."""
    return replace(axis, latents=tuple(n for n in axis.latents if n in guided))


def inputs_of(problem: Problem, params: Mapping[str, PyTree]) -> list[Array]:
    """What the guide's densities take besides values."""
    return guide_inputs(problem, problem.numbers, params, {})
