"""`jax.jit` for programs of hundreds of kernels that run for seconds, where users wait for the compiler more than for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from kayn.xla.compilation import is_traced, quick_options, within_transformation

LONG_SCATTER = 1000
"""Updates of one scatter from which XLA's older way, which writes a loop over them, is slower than its newer."""


class QuickJit:
    """A compiled function of arrays; on CPUs, XLA writes its kernels in the older of its two ways.

    That takes a third to a half less time, and what it writes is as quick for the factors, contractions and gradients of a fit. It is
    not for everything: long scatters and some loops that update an array where it is are several times slower. A program with a
    long scatter is therefore compiled as usual, like any on other devices or within another transformation, where whoever
    compiles the whole chooses.

    Args:
        function: it must not close over values that are being transformed.
    """

    def __init__(self, function: Callable, static_argnums: Sequence[int] = ()):
        self._function, self._static = function, tuple(static_argnums)
        self._usual = jax.jit(function, static_argnums=self._static)
        self._chosen: Callable | None = None

    def __call__(self, *args: Any) -> Any:
        """Run the function, compiled for the shapes and types of these arguments."""
        return self._for(args)(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Trace and lower, as the function of the same name of `jax.jit`."""
        return self._for(args).lower(*args)

    def _for(self, args: tuple) -> Any:
        if is_traced(args) or within_transformation():
            return self._usual
        if self._chosen is None:
            short = longest_scatter(self._usual.trace(*args).jaxpr.jaxpr) < LONG_SCATTER
            options = quick_options() if short else None
            self._chosen = jax.jit(self._function, static_argnums=self._static, compiler_options=options)
        return self._chosen


def longest_scatter(jaxpr: Jaxpr) -> int:
    """The largest number of updates of any scatter in a program."""
    mine = (math.prod(e.invars[1].aval.shape[:-1]) for e in jaxpr.eqns if e.primitive.name.startswith("scatter"))
    within = (longest_scatter(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn))
    return max((*mine, *within), default=0)


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Programs within an equation."""
    found = [
        v.jaxpr if isinstance(v, ClosedJaxpr) else v
        for p in eqn.params.values()
        for v in (p if isinstance(p, tuple) else (p,))
    ]
    return [v for v in found if isinstance(v, Jaxpr)]
