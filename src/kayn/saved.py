"""Fits and posteriors read back from their files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem
from kayn.evidence.queries import weighted_draws
from kayn.fit import WEIGHED, Fit, restored
from kayn.guides.curvature import Banded
from kayn.inference import importance
from kayn.inference.laplace import LAPLACE, LaplaceSampler
from kayn.inference.mcmc.kernel import MPGibbs
from kayn.posterior.chains import Chains
from kayn.posterior.posterior import Posterior
from kayn.posterior.stored import Stored, read
from kayn.support.keys import as_key
from kayn.support.options import Guide, Model, PathName
from kayn.support.validate import checked


@checked()
def load(path: PathName, model: Model, guide: Guide | None = None) -> Fit | Posterior:
    """Read what `Fit.save` or `Posterior.save` has written: the same answers, to the bit.

    A file holds the arguments of the model, but not the model, which is code; nothing in a file is executed.

    Args:
        model: the model that was fitted.
        guide: the guide that was passed with it, if one was.

    Raises:
        KaynError: the file is damaged, something else, or of another model or guide; it says which.
    """
    stored = read(path, model, guide)
    if stored.kind == "fit":
        return restored(stored.call, stored)
    return _chains(stored) if stored.kind == "chains" else _posterior(stored)


def _posterior(stored: Stored) -> Posterior:
    call, params, log_evidences = stored.call, stored.found["params"], stored.found["log_evidences"]
    problem = _problem(stored)
    keys = jax.random.split(as_key(0), len(log_evidences))

    def drawn(numbers: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        found = jax.lax.map(partial(weighted_draws, problem, numbers, params), keys)
        return {"log_evidences": found[0], "axis_weights": found[1], "draws": vars(found[2])}

    forms = jax.eval_shape(drawn, problem.numbers, params)
    held = {name: stored.like(name, form) for name, form in forms.items()}
    draws, widened = Draws(**held["draws"]), stored.found.get("widened", False)
    return Posterior(
        problem, call, problem.numbers, params, draws, log_evidences, held["axis_weights"], widened=widened
    )


def _chains(stored: Stored) -> Chains:
    call, found = stored.call, stored.found
    fit = restored(call, None)
    fit.proposal.update(found["params"])
    problem = MPGibbs(call.model, start=fit).prepared(call.args, call.kwargs).held
    lead = next(iter(found["draws"].values())).shape[:2]
    latents = problem.graph.latents
    form = {z.name: jax.ShapeDtypeStruct((*lead, *z.shape), z.dtype) for z in latents}
    draws = stored.like("draws", form)
    told = {n: found[n] for n in ("evidence", "evidence_from", "reasons", "course") if n in found}
    return Chains.of(problem, call, found["params"], draws, **told)


def _problem(stored: Stored) -> Problem:
    call, params = stored.call, stored.found["params"]
    assert call.origin is not None
    if call.origin.entry == "importance":
        return importance.rebuilt(call, params)
    fit = restored(call, None)
    if LAPLACE in call.origin.settings and fit.sampler is not None:
        follows = LaplaceSampler.of(fit.sampler, call, Banded.read(call.origin.settings[LAPLACE]))
        assert follows is not None
        return follows.problem
    if fit.sampler is not None and WEIGHED not in call.origin.settings:
        return fit.sampler.problem
    fit.proposal.update(params)
    return fit.weigher(call.origin.settings[WEIGHED]).problem
