"""Chains in the place of weighed particles that fail a check."""

from __future__ import annotations

from dataclasses import replace

import jax

from kayn.errors import KaynError
from kayn.inference.mcmc.kernel import MPGibbs
from kayn.inference.mcmc.run import run_until_mixed
from kayn.inference.sampler import Sampler
from kayn.posterior.call import Call
from kayn.posterior.chains import OF_DRAWS, Chains
from kayn.posterior.poor_fit import warn_of, warn_of_broken_sampler
from kayn.posterior.posterior import Posterior
from kayn.support.arrays import KeyArray


def escalated(
    kernel: MPGibbs,
    call: Call,
    weighed: Posterior,
    reasons: tuple[str, ...],
    sampler: Sampler | None,
    max_seconds: float,
    key: KeyArray,
) -> tuple[Chains | None, str]:
    """Chains until they meet their targets, and what became of them in words; None where nothing samples the model.

    Args:
        weighed: what failed.
        reasons: why.
        sampler: where there is one, it gives the log evidence anew, with the moments of the chains' draws.
        max_seconds: of sampling, compiling apart.
    """
    evidence = float(weighed.log_evidence), float(weighed.log_evidence_error)
    try:
        chains = replace(run_until_mixed(kernel, call, max_seconds, key), evidence=evidence, reasons=reasons)
        chains = chains if sampler is None else _with_evidence(chains, sampler, jax.random.fold_in(key, 1), call)
    except Exception as error:  # an answer that is warned of is better than none, whatever stopped the sampler
        if not isinstance(error, KaynError):
            warn_of_broken_sampler(error)
        return None, f"posterior() could not be sampled ({error}), though {reasons[0]}"
    met = "targets missed" if warn_of(chains.check()) else "targets met"
    return chains, f"posterior() sampled{chains.course}, {met}, since: {reasons[0]}"


def _with_evidence(chains: Chains, sampler: Sampler, key: KeyArray, call: Call) -> Chains:
    """The chains with the log evidence of weights that pass their checks, or that vary less than those that failed."""
    found = sampler.evidence_given(chains.draws.values, key, call)
    if found is None:
        return chains
    log_evidence, error, passed = found
    if not passed and not error < chains.evidence[1]:
        return chains
    return replace(
        chains, evidence=(log_evidence, error), evidence_from=OF_DRAWS + ("" if passed else ", which failed a check")
    )
