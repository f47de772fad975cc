"""Elements of latents that are in no factor: a mask takes them out of their prior, and nothing else reads them.

NumPyro writes them so for what is observed in part (`obs_mask=`) and for padded steps, models for objects that may not
be there. Such an element has density one in the model whatever its value, so it has none to be divided by either. An
element that is masked but read elsewhere (a second site that scores it, a likelihood that uses it) is an ordinary one
with a flat prior: its particles are divided by what they were drawn from, as always.

Where other latents decide whether an element is absent, its proposal cannot say it. It keeps its unmasked prior there
instead: this integrates to one, so that no other latent's law and no evidence is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from kayn.errors import StructureWarning, warn
from kayn.graph.bodies import Influence, Look, Origin, Source, is_whole, run_equations
from kayn.graph.influence import influences
from kayn.graph.reads import either
from kayn.programs.outputs import OutputName, Part
from kayn.programs.slices import slice_outputs
from kayn.programs.trace import Outputs, Program
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced


def with_absences(program: Program) -> Program:
    """A model whose masked latents say which of their elements are absent; the others stay as they are."""
    masked = [n for n in program.latents if Part.MASK.of(n) in program.outputs]
    if not masked:
        return program
    uncertain = {n for n in masked if _reads_latents(program, Part.MASK.of(n))}
    dropped = {n for n in program.outputs if n.part is Part.UNMASKED}
    dropped |= {n for n in program.outputs if n.part is Part.ARGUMENT and n.site in uncertain}

    looks: dict[str, Look] = {}

    def run(*inputs: Array) -> Outputs:
        given = [*program.consts, *inputs]
        env = run_equations(program.jaxpr, given)
        outvars = dict(zip(program.outputs, program.jaxpr.outvars, strict=True))
        values = {n: v.val if isinstance(v, Literal) else env[v] for n, v in outvars.items()}
        out = {n: v for n, v in values.items() if n not in dropped}
        for name in masked:
            look = Look(Source.CONTINUOUS, Source.DISCRETE) if name in uncertain else Look()
            absent = _absent(program, name, given, values, look)
            if look.unresolved:
                looks[name] = look
            if absent is None:
                continue
            out[Part.ABSENT.of(name)] = absent
            if name in uncertain:
                kept = jnp.where(absent, values[Part.UNMASKED.of(name)], 0.0)
                density = Part.DENSITY.of(name)
                out[density] = out[density] + kept.sum(tuple(range(values[density].ndim, kept.ndim)))
        return out

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars]
    closed, found = jax.make_jaxpr(run, return_shape=True)(*shapes)
    outputs = tuple(sorted(found))
    traced = replace(program, jaxpr=closed.jaxpr, consts=tuple(closed.consts), outputs=outputs, plain=program)
    for name, look in looks.items():
        _warn_if_unsure(program, name, look)
    return traced


def _warn_if_unsure(program: Program, name: str, look: Look) -> None:
    """Warn where it matters whether an operation without a rule reads elements that a mask takes out of their prior."""

    def unsure(*inputs: Array) -> Array:
        first = len(program.consts)
        outputs = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, inputs[:first]))(*inputs[first:])
        values = dict(zip(program.outputs, outputs, strict=True))
        absent = _absent(program, name, inputs, values, replace(look, unresolved=[]))
        trusting = _absent(program, name, inputs, values, replace(look, unresolved=[], trusting=True))
        return jnp.any(trusting if absent is None else trusting & ~absent)

    closed = jax.make_jaxpr(unsure)(*(v.aval for v in (*program.jaxpr.constvars, *program.jaxpr.invars)))
    run, used = slice_outputs(closed.jaxpr, [0])
    known = [*closed.consts, *program.consts]
    if any(i >= len(known) for i in used) or is_traced([known[i] for i in used]):
        return  # not known here
    with jax.ensure_compile_time_eval():
        if not np.asarray(run(*(known[i] for i in used))[0]):
            return
    told = dict.fromkeys(look.unresolved)
    lines = ", ".join(f"{operation} ({line})" if line else operation for operation, line in told)
    warn(
        f"masked elements of latent {name!r} are given to {lines}, of which kayn does not know which elements it "
        "reads. All count as read, with a flat prior; if that is not so, the log evidence is off by the guide's log "
        f"density of the others. Leave them out before: jnp.where(mask, {name}, 0)",
        StructureWarning,
    )


def absences(program: Program, inputs: Sequence[Array]) -> dict[str, Array]:
    """Which elements of masked latents are absent, whatever the other latents are: bool [*batch, *inner] by latent.

    Args:
        inputs: the jaxpr's constants and inputs, anything in the places of latents.
    """
    names = [
        n
        for n in program.latents
        if Part.ABSENT.of(n) in program.outputs and not _reads_latents(program, Part.ABSENT.of(n))
    ]
    if not names:
        return {}
    run, used = program.sliced([Part.ABSENT.of(n) for n in names])
    return dict(zip(names, run(*(inputs[i] for i in used)), strict=True))


def _reads_latents(program: Program, output: OutputName) -> bool:
    used = program.sliced([output])[1]
    first = len(program.consts)
    return any(first <= i < first + len(program.inputs) for i in used)


def _absent(
    program: Program, name: str, given: Sequence[Array], values: Mapping[OutputName, Array], look: Look
) -> Array | None:
    """Elements that are masked and in no other factor: bool in the mask's shape; None where there is none."""
    own = Part.DENSITY.of(name)
    others = [n for n in program.outputs if n.part is Part.DENSITY and n != own]
    read = _read(program, name, given, {n: _counts(values, n) for n in others}, look)
    if program.aliases:
        read = either(read, _read_elsewhere(program, name, given, {own: _counts(values, own)}, look))
    mask = values[Part.MASK.of(name)]
    if read is True:
        return None
    if read is False:
        return ~mask
    return ~mask & ~jnp.any(read, tuple(range(mask.ndim, read.ndim)))


def _counts(values: Mapping[OutputName, Array], density: OutputName) -> Influence:
    """The elements of a site's log density that masks do not set to zero."""
    mask = values.get(Part.MASK.of(density.site))
    if mask is None:
        return True
    shape = values[density].shape
    return jnp.broadcast_to(jnp.any(mask, tuple(range(len(shape), mask.ndim))), shape)


def _inputs_read(
    program: Program, given: Sequence[Array], wanted: Mapping[OutputName, Influence], look: Look
) -> dict[str, Influence]:
    latents = dict(enumerate(program.inputs, len(program.consts)))

    def origin(position: int) -> Origin:
        whole = is_whole(jnp.asarray(given[position]))
        if position not in latents:
            return Origin(Source.KNOWN, whole)
        discrete = program.sites[bases.get(latents[position], latents[position])].discrete
        return Origin(Source.DISCRETE if discrete else Source.CONTINUOUS, discrete)

    bases = {a.name: a.base for a in program.aliases}
    origins = [origin(i) for i in range(len(given))]
    found = influences(program.jaxpr, given, origins, [wanted.get(n, False) for n in program.outputs], look)
    return {n: found[i] for i, n in latents.items()}


def _read(
    program: Program, name: str, given: Sequence[Array], wanted: Mapping[OutputName, Influence], look: Look
) -> Influence:
    found = _inputs_read(program, given, wanted, look)
    return either(found[name], _moved(program, name, found))


def _read_elsewhere(
    program: Program, name: str, given: Sequence[Array], wanted: Mapping[OutputName, Influence], look: Look
) -> Influence:
    """What a chain's own density reads of its other steps."""
    return _moved(program, name, _inputs_read(program, given, wanted, look))


def _moved(program: Program, name: str, found: Mapping[str, Influence]) -> Influence:
    """The elements of a chain that are read as its values at other steps."""
    out: Influence = False
    shape = program.sites[name].shape
    for alias in program.aliases:
        influence = found[alias.name]
        if alias.base != name or influence is False:
            continue
        if influence is True:
            return True
        _, back = jax.vjp(lambda x, alias=alias: alias.move(x, 0), jnp.zeros(shape, jnp.float32))
        out = either(out, back(influence.astype(jnp.float32))[0] > 0)
    return out
