"""What no density can be, named: the factor, where in it, and at which values.

A log density of +inf at a value that has been seen, or a probability above one, comes from a pole of a density or from
digits that a float does not hold. One such entry would be all of the evidence; it is left out, and said here.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from kayn.axes.types import proposal_name
from kayn.contraction.steps.sliced import made_in_parts
from kayn.errors import NumericsWarning, warn
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem, model_inputs
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import unsound_in_parts
from kayn.factors.elementwise import evaluate, of_one_particle, sound
from kayn.factors.task import Operands, Task
from kayn.programs.outputs import Part
from kayn.support.arrays import Array
from kayn.support.names import whole
from kayn.xla.compilation import is_traced

LOOKED_AT = 2**20
"""Entries of a factor that are looked at for an example."""
FEW = 2
"""Replicates of which factors that are made part by part, too large to be kept, are made once more to be looked at."""
REMEDY = (
    "Take float64 (jax.config.update('jax_enable_x64', True)), keep the prior from where the density is computed "
    "wrongly, or move data off a pole"
)
WHAT = "a log density of +inf, or a probability above one"


def unsound(problem: Problem, numbers: Mapping, params: Mapping, draws: Draws) -> Iterator[str]:
    """Sentences about the factors of replicates' particles that are no densities, each with an example."""
    noticed = dict(draws.unsound)
    if made_in_parts(problem.layout.plan) and noticed:
        few = jax.tree.map(lambda x: x[:FEW], replace(draws, unsound={}))
        look = jax.jit(lambda numbers, few: jax.lax.map(lambda d: unsound_in_parts(problem, numbers, d, params), few))
        noticed |= look(numbers, few)
    for name, found in noticed.items():
        flags = np.asarray(found)
        if flags.any():
            yield _sentence(problem, numbers, params, draws, name, flags)


def warn_of_factors(found: Mapping[str, Array], where: str = "the posterior's draws") -> None:
    """Warn of sites of which some log density was none.

    Args:
        found: flags by site, of any shape; nothing is said while they are traced.
        where: what the densities were taken at.
    """
    for site, flags in found.items():
        if not isinstance(flags, jax.core.Tracer) and np.asarray(flags).any():
            warn(
                f"site {whole(site)!r} has {WHAT} at some of {where}, which count as impossible. {REMEDY}",
                NumericsWarning,
            )


def telling(weighed: Weighed) -> Weighed:
    """The same, for losses: warns of the model's factors that are no log densities, unless numbers are being traced.

    Compiled losses say nothing; the posterior that their guide gives does.
    """
    sites = weighed.problem.model.sites
    warn_of_factors({n: f for n, f in weighed.unsound.items() if n in sites}, "the loss's particles")
    return weighed


def warn_of_steps(steps: Sequence[Mapping[str, Array]], sites: Container[str]) -> None:
    """As `warn_of_factors`, of the flags of several steps, for these sites alone."""
    names = [n for n in (steps[0] if steps else ()) if n in sites]
    warn_of_factors({n: jnp.stack([s[n].any() for s in steps]) for n in names}, "the steps' particles")


def settled(scores: Mapping[str, Array]) -> dict[str, Array]:
    """Pointwise log densities by site [S, *rows], nats, -inf where they are none; warns of these."""
    if is_traced(scores):
        return {n: sound(found) for n, found in scores.items()}
    # on the host, where another number of draws is nothing to compile
    known = {n: np.asarray(found) for n, found in scores.items()}
    warn_of_factors({n: np.isposinf(found) for n, found in known.items()})
    return {
        n: jax.device_put(np.where(np.isposinf(found), -np.inf, found).astype(found.dtype))
        for n, found in known.items()
    }


def _sentence(problem: Problem, numbers: Mapping, params: Mapping, draws: Draws, name: str, flags: np.ndarray) -> str:
    often = f"in {int(flags.sum())} of {flags.size} replicates"
    axis = next((a for a in problem.layout.axes if proposal_name(a) == name), None)
    if axis is not None:
        who = ", ".join(map(repr, axis.latents))
        return (
            f"the guide's log density of {who} is infinite at particles of its own {often}; they are left out. {REMEDY}"
        )
    site = problem.model.sites.get(name)
    kind = "observed site" if site is not None and site.observed else "latent"
    family = f" ({site.family})" if site is not None and not site.follows(dist.Unit) else ""
    one = jax.tree.map(lambda x: x[int(flags.argmax())], replace(draws, unsound={}))
    where = _example(problem, numbers, params, one, name)
    return (
        f"{kind} {whole(name)!r}{family} has {WHAT}{where}, {often}; such combinations of particles count as "
        f"impossible. {REMEDY}"
    )


def _example(problem: Problem, numbers: Mapping, params: Mapping, draws: Draws, name: str) -> str:
    """The first entry of a factor that is +inf, in words; empty if it is not among those looked at."""
    program, output = problem.model, problem.graph.output(name)
    inputs = model_inputs(problem, numbers, params, draws.subsample)
    term = next(t for t in problem.layout.plan.terms if t.name == name)
    axes = problem.layout.axes_of(term)
    rows = math.prod(program.aval(output.traced).shape)
    most = max(1, int((LOOKED_AT / max(rows, 1)) ** (1 / max(len(axes), 1))))
    small = tuple(replace(a, size=min(a.size, most)) for a in axes)
    cut = {n: v[: min(v.shape[0], most)] for n, v in draws.values.items()}
    task = Task(output, small, problem.layout.plan, (), program)
    array = np.asarray(jax.jit(lambda v: evaluate(task, Operands(v, inputs)))(cut))
    found = np.argwhere(array == np.inf)
    if not found.size:
        return ""
    plates = [d for d in output.dims if d]
    row, chosen = tuple(int(i) for i in found[0][: len(plates)]), found[0][len(plates) :]
    words = [*_datum(problem, inputs, name, row)]
    for axis, k in zip(small, chosen, strict=True):
        words += [f"{n} = {_short(cut[n][int(k)])}" for n in axis.latents if n in cut]
    at = f" at index {row}" if row else ""
    return f"{at} ({', '.join(words)})" if words else at


def _datum(problem: Problem, inputs: Sequence[Array], name: str, row: tuple[int, ...]) -> list[str]:
    program = problem.model
    data = Part.DATA.of(name)
    if data not in program.outputs or not problem.model.sites[name].observed:
        return []
    run = of_one_particle(program, [data], {}, inputs)
    try:
        value = np.asarray(run({})[0])
        return [f"value {_short(value[row] if value.ndim >= len(row) else value)}"] if value.size else []
    except (KeyError, IndexError):  # data that depend on latents
        return []


def _short(value: Array) -> str:
    array = np.asarray(jnp.asarray(value))
    return f"{array.item():.6g}" if array.size == 1 else f"an array {array.shape}"
