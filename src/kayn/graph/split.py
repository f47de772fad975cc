"""Sums of logs are products: a log density that is a sum over rows becomes factors over these rows.

Users add up log densities themselves (`numpyro.factor("target", lp.sum())`), and so do distributions over their events.
Such a sum reads all groups at once, so that these would share one particle; the rows of it read one group each. Sums
are only taken apart where that gives a latent elements of its own; all other programs stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from kayn.graph.bodies import run_equations
from kayn.graph.discover import Structure, discover
from kayn.graph.parts import keeps_plates, parts_of
from kayn.graph.summands import Sum, candidates, chosen_terms, varying
from kayn.graph.totals import run_flat
from kayn.graph.types import MIXED, Graph
from kayn.programs.outputs import Part
from kayn.programs.sites import Site
from kayn.programs.slices import slice_outputs, without_dead
from kayn.programs.trace import Outputs, Program
from kayn.support.arrays import Array
from kayn.support.names import RESERVED
from kayn.xla.compilation import is_traced

Pairs = frozenset[tuple[str, str]]
"""Latents and their plates."""
Known = Callable[[Program], Sequence[Array]]
"""Values of a program's constants and inputs, None or tracers where unknown."""
CANDIDATE = f"{RESERVED}candidate"


def split_sums(program: Program, structure: Structure, known: Known) -> tuple[Program, Structure]:
    """A model with log densities that are sums taken apart, and its structure: the same where nothing is gained."""
    mixing = _mixed(structure.graph)
    if not mixing:
        return program, structure
    wanted = Pairs().union(*mixing.values())
    names = list(mixing)
    flat = _flat(program, names)
    mixed, in_a_row = _mixed_by(program, flat, names, known)
    found = _choose(program, flat, names, mixed, wanted)
    found = {n: f for n, f in found.items() if keeps_plates(program, n, f[0], in_a_row)}
    gained = wanted - Pairs().union(*(found[n][1] if n in found else own for n, own in mixing.items()))
    if not gained:
        return program, structure
    if gained != wanted:  # no further than it helps
        found = {n: f for n, f in _choose(program, flat, names, mixed, gained).items() if n in found}
    sums = {n: s for n, (s, _) in found.items() if mixing[n] & gained}
    split = _with_parts(program, flat, sums, in_a_row)
    return split, discover(split, known(split))


def _mixed(graph: Graph) -> dict[str, Pairs]:
    """What every factor mixes, for those that do."""
    factors = {o.name: ((r, p, how) for r in o.reads for p, how in r.through) for o in graph.factors}
    found = {n: Pairs((r.latent, p) for r, p, how in reads if how == MIXED) for n, reads in factors.items()}
    return {n: pairs for n, pairs in found.items() if pairs}


def _flat(program: Program, names: Sequence[str]) -> ClosedJaxpr:
    """The part of a program that computes some outputs, without calls: inputs are the program's constants and its."""
    jaxpr = program.jaxpr
    variables = (*jaxpr.constvars, *jaxpr.invars)
    outvars = [jaxpr.outvars[program.outputs.index(Part.DENSITY.of(n))] for n in names]
    cut = without_dead(Jaxpr([], list(variables), outvars, jaxpr.eqns, jaxpr.effects, jaxpr.debug_info))
    return jax.make_jaxpr(lambda *x: run_flat(cut, x))(*(v.aval for v in variables))


def _varies(program: Program, flat: ClosedJaxpr) -> set[Any]:
    first = len(program.consts)
    return varying(flat.jaxpr, flat.jaxpr.invars[first : first + len(program.inputs)])


def _choose(
    program: Program, flat: ClosedJaxpr, names: Sequence[str], mixed: Mapping[Any, Pairs], wanted: Pairs
) -> dict[str, tuple[Sum, Pairs]]:
    """How every output is taken apart, and what its terms still mix of what is wanted."""
    varies = _varies(program, flat)
    return {
        n: chosen_terms(flat.jaxpr, out, varies, lambda v: mixed[v] & wanted)
        for n, out in zip(names, flat.jaxpr.outvars, strict=True)
    }


def _mixed_by(
    program: Program, flat: ClosedJaxpr, names: Sequence[str], known: Known
) -> tuple[dict[Any, Pairs], frozenset[Any]]:
    """What values of a flat program mix that outputs may be sums of, each taken for a factor of its own.

    Returns:
        that, and the values that mix less when all their entries stand in a row. A single one is the row's twice: what
        has no dimension has none along which an index could lie.
    """
    varies = _varies(program, flat)
    asked = dict.fromkeys(v for out in flat.jaxpr.outvars for v in candidates(flat.jaxpr, out, varies))
    rows = {f"{CANDIDATE} {i} in a row": v for i, v in enumerate(asked) if sum(n > 1 for n in v.aval.shape) != 1}
    numbered = {f"{CANDIDATE} {i}": v for i, v in enumerate(asked)} | rows
    shapes = {n: (max(v.aval.size, 2),) if n in rows else v.aval.shape for n, v in numbered.items()}

    def run(*inputs: Array) -> Outputs:
        env = run_equations(flat.jaxpr, [*flat.consts, *program.consts, *inputs])
        arrays = {n: jnp.broadcast_to(env[v].ravel(), shapes[n]) if n in rows else env[v] for n, v in numbered.items()}
        return {Part.DENSITY.of(n): array for n, array in arrays.items()}

    sites = {n: s for n, s in program.sites.items() if s.kind != "sample" or not s.observed}
    sites |= {n: Site(n, "sample", shape, batch_shape=shape, observed=True) for n, shape in shapes.items()}
    traced = _retraced(program, run, sites)
    found = _mixed(discover(traced, known(traced)).graph)
    whole = {v: found.get(n, Pairs()) for n, v in numbered.items() if n not in rows}
    less = {v: found.get(n, Pairs()) for n, v in rows.items() if found.get(n, Pairs()) < whole[v]}
    return whole | less, frozenset(less)


def _retraced(program: Program, run: Callable[..., Outputs], sites: Mapping[str, Site]) -> Program:
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars]
    closed, found = jax.make_jaxpr(run, return_shape=True)(*shapes)
    outputs = tuple(sorted(found))
    return replace(
        program, jaxpr=without_dead(closed.jaxpr), consts=tuple(closed.consts), outputs=outputs, sites=dict(sites)
    )


def _with_parts(program: Program, flat: ClosedJaxpr, sums: Mapping[str, Sum], in_a_row: frozenset[Any]) -> Program:
    """The program with sums in the place of some outputs."""
    weights = _numbers(program, flat, sums)
    parts = {n: parts_of(program, n, s, weights[n], in_a_row) for n, s in sums.items()}
    changed = {n for n, found in parts.items() if not found.keeps_density}
    gone = {o for o in program.outputs if o.site in {Part.DENSITY: sums, Part.ARGUMENT: changed}.get(o.part, ())}
    kept = {n: v for n, v in zip(program.outputs, program.jaxpr.outvars, strict=True) if n not in gone}
    rest = without_dead(program.jaxpr.replace(outvars=list(kept.values())))

    def run(*inputs: Array) -> Outputs:
        given = [*program.consts, *inputs]
        out = dict(zip(kept, jaxpr_as_fun(ClosedJaxpr(rest, program.consts))(*inputs), strict=True))
        env = run_equations(flat.jaxpr, [*flat.consts, *given])
        for found in parts.values():
            out |= found.values(env)
        return out

    rows = {n: s for found in parts.values() for n, s in found.sites.items()}
    sites = {**{n: s for n, s in rows.items() if n not in program.sites}, **program.sites}
    return replace(_retraced(program, run, sites), rows=rows, plain=program.plain or program)


def _numbers(program: Program, flat: ClosedJaxpr, sums: Mapping[str, Sum]) -> dict[str, list[np.ndarray | None]]:
    """The weights of the terms of every sum, None for those that are not known now."""

    def run(*inputs: Array) -> list[list[Array]]:
        env = run_equations(flat.jaxpr, [*flat.consts, *inputs])
        return [s.weights(env) for s in sums.values()]

    closed = jax.make_jaxpr(run)(*(v.aval for v in flat.jaxpr.invars))
    given = [*closed.consts, *program.consts]
    found: list[np.ndarray | None] = []
    for position in range(len(closed.jaxpr.outvars)):
        compute, used = slice_outputs(closed.jaxpr, [position])
        if any(i >= len(given) for i in used) or is_traced([given[i] for i in used]):
            found.append(None)
            continue
        with jax.ensure_compile_time_eval():
            found.append(np.asarray(compute(*(given[i] for i in used))[0]))
    numbers = iter(found)
    return {n: [next(numbers) for _ in s.terms] for n, s in sums.items()}
