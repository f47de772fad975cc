"""Run a model again on draws of a posterior, on its own data or on others: what prediction,
scoring and export have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.axes.minibatches import read_plates
from kayn.errors import QueryError
from kayn.evidence.read import Read, read_model
from kayn.evidence.soundness import settled
from kayn.posterior.blocks import block_size, joined, keys_of, on_device, starts
from kayn.posterior.joint import JointDraws, entries
from kayn.posterior.pool import Pool
from kayn.posterior.scores import observed_scores, seen_rows
from kayn.posterior.states import owned_states, summed_out
from kayn.programs.dependent_supports import law_of
from kayn.programs.given import Given
from kayn.programs.outputs import Part
from kayn.programs.roles import Fixed
from kayn.programs.running import EARLIER, running
from kayn.programs.seeding import seeded
from kayn.programs.sites import Inspected, Site
from kayn.programs.trace import Program
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.names import in_model
from kayn.xla.compilation import is_traced, seldom_options
from kayn.xla.jit import QuickJit

BATCH = 100
"""Draws handled at a time."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the model is run on.

    Attributes:
        observe: keep observed sites; otherwise they are drawn too.
        new_plates: plates whose elements are all new.
        whole: indices of subsampled plates that are taken whole.
        own: whether the arguments are the posterior's own, so that subsampled plates with latents hold the elements of
            the draw.
    """

    args: tuple
    kwargs: Mapping[str, Any]
    observe: bool
    new_plates: tuple[str, ...] = ()
    whole: Mapping[str, Array] = field(default_factory=dict)
    own: bool = False


class Condition(Messenger):
    """Gives latents the values of one posterior draw; plate elements that the draw lacks are sampled from the model.

    Args:
        values: the draw.
        new_plates: plates whose elements are all new.
        observe: keep observed sites; otherwise they are drawn too.
    """

    def __init__(self, fn: Callable, values: Mapping[str, Array], new_plates: tuple[str, ...], observe: bool):
        super().__init__(fn)
        self.values, self.new_plates, self.observe = values, new_plates, observe

    def process_message(self, msg: dict[str, Any]) -> None:
        """Have data drawn, or scored as one each."""
        if msg["type"] == "sample" and isinstance(law_of(msg["fn"]), dist.ImproperUniform) and msg["value"] is None:
            self._place_improper(msg)
        if self.observe:
            if msg["type"] == "sample" and msg["is_observed"]:
                msg["scale"] = None  # a datum is scored as one
            return
        if msg["type"] == "control_flow":
            # a loop tells of its sites only when it is over
            body, *rest = msg["args"]
            msg["args"] = (Condition(body, {}, (), observe=False), *rest)
        elif msg["type"] == "sample" and msg["is_observed"] and not isinstance(innermost(msg["fn"]), dist.Unit):
            msg["is_observed"], msg["value"] = False, None

    def _place_improper(self, msg: dict[str, Any]) -> None:
        """Give a latent that nothing can be drawn from its value at once."""
        if not self.values:
            return  # read, not run
        drawn = self.values.get(msg["name"])
        new = [f.name for f in msg["cond_indep_stack"] if f.name in self.new_plates]
        if new or drawn is None or jnp.shape(drawn) != msg["fn"].shape():
            raise QueryError(
                f"latent {msg['name']!r} has an improper prior (ImproperUniform), so new elements of it cannot be "
                "drawn; keep the elements of the posterior, or give it a proper prior"
            )
        msg["value"] = drawn

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Put in the draw's value."""
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] not in self.values:
            return
        msg["value"] = self._merge(msg["name"], msg["value"], self.values[msg["name"]], msg)

    def _merge(self, name: str, fresh: Array, drawn: Array, msg: Mapping[str, Any]) -> Array:
        new_steps = {f.name for f in msg["cond_indep_stack"]} & set(self.new_plates)
        if EARLIER in msg["infer"] and set(msg["infer"][EARLIER].plates) & set(self.new_plates):
            return fresh
        if (sums := running(msg["fn"])) and not new_steps and fresh.size > drawn.size:
            return sums.coordinates.carried_on(drawn, fresh)
        walk = isinstance(innermost(msg["fn"]), dist.GaussianRandomWalk)
        if walk and fresh.shape[:-1] == drawn.shape[:-1] and fresh.shape[-1] > drawn.shape[-1]:
            return _carried_on(fresh, drawn)
        rank = len(msg["fn"].batch_shape)
        plates = {rank + f.dim: f.name for f in msg["cond_indep_stack"]}
        if jnp.ndim(fresh) != jnp.ndim(drawn):
            raise QueryError(
                f"latent {name!r} has {jnp.ndim(fresh)} dimensions under the new arguments, {jnp.ndim(drawn)} in the "
                "posterior"
            )
        keep = []
        for dim, (new, old) in enumerate(zip(jnp.shape(fresh), jnp.shape(drawn), strict=True)):
            if plates.get(dim) in self.new_plates:
                return fresh
            if new < old or (new > old and dim not in plates):
                where = f"plate {plates[dim]!r}" if dim in plates else f"dimension {dim}"
                raise QueryError(
                    f"latent {name!r} has {old} elements along {where} in the posterior but {new} under the new "
                    "arguments; keep the known elements first and append new ones, or name the plate in new_plates= "
                    "if all its elements are new"
                )
            keep.append(slice(0, old))
        return jnp.asarray(fresh).at[tuple(keep)].set(drawn) if keep else drawn


def _carried_on(fresh: Array, drawn: Array) -> Array:
    """A walk whose later steps are those of a fresh one, moved to where the draw ends."""
    steps = drawn.shape[-1]
    moved = drawn[..., -1:] + fresh[..., steps:] - fresh[..., steps - 1 : steps]
    return jnp.concatenate([drawn, moved], -1)


def checked(posterior: Pool, setting: Setting) -> tuple[Setting, Read]:
    """The setting with its whole plates, if its arguments can be used, and the model under these.

    Raises:
        KaynError: indices are out of range, data that are scored are NaN or impossible, time series get shorter, or
            latents of a subsample meet other data.
    """
    args, kwargs, new_plates = setting.args, setting.kwargs, setting.new_plates
    model = Condition(posterior.problem.fn, {}, (), setting.observe)
    read = read_model(Inspected.of(model, args, kwargs, posterior.params))
    sites = read.sites
    for name, old in _chains(posterior).items():
        if name not in sites or {f[0] for f in old.frames} & set(new_plates):
            continue
        new = sites[name]
        dim = old.step_dim
        others = [s.shape[:dim] + s.shape[dim + 1 :] for s in (new, old)]
        if new.shape[dim] < old.shape[dim] or others[0] != others[1]:
            raise QueryError(
                f"time series {name!r} has shape {old.shape} in the posterior but {new.shape} under the new "
                "arguments; it may get more steps, after those of the training data, but no new elements of other "
                "plates, unless all are new (new_plates=)"
            )
    return replace(setting, whole=_whole_plates(posterior, read.program, setting)), read


def own_data(posterior: Pool, observe: bool) -> Setting:
    """The arguments that the posterior was conditioned on."""
    setting = Setting(posterior.call.args, posterior.call.kwargs, observe, own=True)
    return replace(setting, whole=_whole_plates(posterior, posterior.problem.model, setting))


def _whole_plates(posterior: Pool, program: Program, setting: Setting) -> dict[str, Array]:
    """Indices of subsampled plates to be taken whole: those that the model reads rows by,
    and over which it has no latents that are known.

    Args:
        program: the model under the setting's arguments.

    Raises:
        QueryError: latents of a subsample meet other arguments.
    """
    # what a handler has set stays so
    read = [n for n in read_plates(program) if not program.sites[n].fixed]
    held = {p: z.name for z in posterior.problem.graph.latents for p in z.plate_names if p not in setting.new_plates}
    for plate in read:
        if plate in held and not setting.own:
            raise QueryError(
                f"latent {held[plate]!r} runs over plate {plate!r}, which is subsampled, so the posterior knows some "
                "of its elements only; name the plate in new_plates= to draw all of them anew, or fit without "
                "subsample_size"
            )
    return {n: jnp.arange(program.sites[n].batch_shape[0]) for n in read if n not in held}


def _chains(posterior: Pool) -> dict[str, Site]:
    sites = posterior.problem.model.sites
    return {n: sites[n] for n in posterior.drawn_names if sites[n].steps is not None}


def run_model(posterior: Pool, setting: Setting, key: KeyArray, draw: JointDraws) -> dict[str, Any]:
    """The trace of the model on one joint draw, sites by name.

    Args:
        setting: on which data, of which plates all elements are new, and whether data are observed or drawn.
        key: for what the draw does not hold: new elements, and data that are drawn.
        draw: one draw of every latent, without leading dimensions.
    """
    values, chains, new_plates = draw.values, _chains(posterior), setting.new_plates
    all_new = {n for n, s in chains.items() if {f[0] for f in s.frames} & set(new_plates)}
    # NumPyro itself carries on the path of a scan where the draw ends
    paths = {n: values[n] for n, s in chains.items() if not s.walk and n not in all_new}
    known = {n: values[n] for n in posterior.drawn_names if n not in (paths.keys() | all_new)}
    rows = {**(draw.subsample if setting.own else {}), **setting.whole}
    # inside the conditioning, so that it records the draw's values
    # what handlers have set is data, as in the posterior; predictions keep it
    model = Fixed(posterior.problem.fn) if setting.observe else posterior.problem.fn
    program = handlers.trace(Given(model, params=posterior.params, latents=paths, subsample=rows))
    seeded(Condition(program, known, new_plates, setting.observe), key)(*setting.args, **setting.kwargs)
    return program.trace


def drawn_sites(trace: Mapping[str, Any]) -> dict[str, Array]:
    """Values of all sample and deterministic sites of the user's model in a trace, but for factors."""
    kinds = ("sample", "deterministic")
    own = [(n, s) for n, s in trace.items() if s["type"] in kinds and in_model(n) == n]
    return {n: s["value"] for n, s in own if s["type"] == kinds[1] or not isinstance(innermost(s["fn"]), dist.Unit)}


def scorer(
    posterior: Pool, setting: Setting
) -> Callable[[KeyArray, JointDraws], tuple[dict[str, Array], dict[str, Array]]]:
    """What gives the log density of every datum under a draw, and whether it is seen.

    Of the posterior's own data, states that rows own are summed out (`kayn.posterior.states`).
    """
    owned = owned_states(posterior.problem) if setting.own else {}

    def one(key: KeyArray, draw: JointDraws) -> tuple[dict[str, Array], dict[str, Array]]:
        trace = run_model(posterior, setting, key, draw)
        scores = observed_scores(trace)
        if not scores:
            raise QueryError(
                "the model has no observed site under these arguments; pass the data (e.g. y=...) as when fitting"
            )
        seen = seen_rows(trace, scores)

        def again(states: Mapping[str, Array]) -> dict[str, Array]:
            return run_model(posterior, setting, key, replace(draw, values={**draw.values, **states}))

        summed = summed_out(owned, trace, scores, again)
        return {n: jnp.where(seen[n], v, scores[n]) for n, v in summed.items()}, seen

    return one


def scored_data(posterior: Pool, key: KeyArray, draws: JointDraws) -> tuple[dict[str, Array], ...]:
    """What the posterior was conditioned on, by observed site, for draws of it.

    Returns:
        Log likelihood and whether any of a row is hidden by no mask: [S, *rows]; the data, and whether they are data in
        all draws and not latents: [*shape].
    """
    setting, program = own_data(posterior, observe=True), posterior.problem.model
    scores, seen = over_draws(posterior, key, draws, scorer(posterior, setting))
    scores = settled(scores)

    def values(key: KeyArray, draw: JointDraws) -> dict[str, Array]:
        trace = run_model(posterior, setting, key, draw)
        return {n: trace[n]["value"] for n in scores}

    latents = range(len(program.consts), len(program.consts) + len(program.inputs))
    fixed = not set(program.sliced([Part.DATA.of(n) for n in scores])[1]) & set(latents)
    found = over_draws(posterior, key, jax.tree.map(lambda v: v[:1], draws) if fixed else draws, values)
    return (
        scores,
        seen,
        {n: v[0] for n, v in found.items()},
        {n: ((v == v[0]) | ((v != v) & (v[0] != v[0]))).all(0) for n, v in found.items()},
    )


def over_draws(
    posterior: Pool, key: KeyArray, draws: JointDraws, one: Callable[[KeyArray, JointDraws], PyTree]
) -> PyTree:
    """What `one` gives for every draw [S], with keys from `key`; results are stacked along a leading S."""
    num = len(next(iter(draws.values.values())))

    def block(key: KeyArray, start: Array, draws: JointDraws) -> PyTree:
        return jax.vmap(one)(keys_of(key, start, size), draws)

    size = block_size(num, BATCH, entries(posterior.problem))
    run = QuickJit(block, open_consts=True, options=seldom_options)
    parts = [run(key, start, block_of(draws, start, size)) for start in starts(num, size)]
    return on_device(joined(parts, num))


def block_of(draws: JointDraws, start: Any, size: int) -> JointDraws:
    """[size] draws from `start` on; behind the last, the last again."""
    last = len(next(iter(draws.values.values()))) - 1
    rows = np.minimum(np.arange(start, start + size), last)
    return jax.tree.map(lambda v: v[rows] if is_traced(v) else np.asarray(v)[rows], draws)
