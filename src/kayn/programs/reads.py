"""Programs whose rows read their groups' values apart from what they compute of them.

XLA's newer kernels for CPUs fuse a gather into the arithmetic that uses it and then compute one row at a time, six
times as slow as rows that were read before. kayn compiles what it runs itself in the older way (`kayn.xla.jit`); what
others compile, such as `numpyro.infer.MCMC`, is kept from that fusion here. Values are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive, Var

from kayn.programs.trace import Program

LONG = 2**6
"""Rows from which a read is worth an array of its own."""


def with_reads_apart(program: Program) -> Program:
    """The same program, its long reads kept from what comes after them."""
    return replace(program, jaxpr=_apart(program.jaxpr))


def _apart(jaxpr: Jaxpr) -> Jaxpr:
    return jaxpr.replace(eqns=[new for eqn in jaxpr.eqns for new in _of(eqn)])


def _of(eqn: JaxprEqn) -> Iterable[JaxprEqn]:
    name = eqn.primitive.name
    if name == "gather" and math.prod(eqn.outvars[0].aval.shape) >= LONG:
        (out,) = eqn.outvars
        read = Var(out.aval)
        barrier = eqn.replace(primitive=_barrier(), invars=[read], outvars=[out], params={})
        return eqn.replace(outvars=[read]), barrier
    if name in ("jit", "pjit"):
        inner = eqn.params["jaxpr"]
        return (eqn.replace(params={**eqn.params, "jaxpr": ClosedJaxpr(_apart(inner.jaxpr), inner.consts)}),)
    return (eqn,)


@cache
def _barrier() -> Primitive:
    return jax.make_jaxpr(jax.lax.optimization_barrier)(0.0).jaxpr.eqns[0].primitive
