"""`jax.jit` for programs of hundreds of kernels that run for seconds,
where users wait for the compiler more than for the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced, quick_options, within_transformation
from kayn.xla.shared import Kept, shared

LONG_SCATTER = 1000
"""Updates of one scatter from which XLA's older way, which writes a loop over them, is slower than its newer."""
MOST = 16
"""Programs that one function knows, for arguments of so many types; others are found again by what they compute."""


class QuickJit:
    """A compiled function of arrays; on CPUs, XLA writes its kernels in the older of its two ways.

    That takes a third to a half less time, and what it writes is as quick for the factors, contractions and gradients
    of a fit. It is not for everything: long scatters and some loops that update an array where it is are several times
    slower. A program with a long scatter is therefore compiled as usual, like any on other devices or within another
    transformation, where whoever compiles the whole chooses.

    Programs that compute the same share what is compiled, whoever made them (`kayn.xla.shared`).

    Args:
        function: it must not close over values that are being transformed.
        open_consts: whether arrays that it closes over are data, which the program need not be compiled for.
        options: gives what the compiler is told, `quick_options` by default. `seldom_options` are for what runs a few
            times only, as for a question to a posterior, `once_options` for what runs once, for less long than it takes
            to compile.
    """

    def __init__(
        self,
        function: Callable,
        static_argnums: Sequence[int] = (),
        open_consts: bool = False,
        options: Callable[[], dict[str, Any] | None] | None = None,
    ):
        self._static = frozenset(static_argnums)
        self._usual = jax.jit(function, static_argnums=tuple(static_argnums))
        self._open, self._options = open_consts, options or quick_options
        self._found = Kept(MOST)

    def __call__(self, *args: Any) -> Any:
        """Run the function, compiled for the shapes and types of these arguments."""
        if is_traced(args) or within_transformation():
            return self._usual(*args)
        traced = self._usual.trace(*args)
        out = self._for(traced.jaxpr)(*self._leaves(args))
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), out)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Trace and lower what a call of known numbers runs, as the function of the same name of `jax.jit`."""
        run = self._for(self._usual.trace(*args).jaxpr)
        consts = run.args if isinstance(run, partial) else ()
        return getattr(run, "func", run).lower(*consts, *self._leaves(args))

    def _leaves(self, args: tuple) -> list[Array]:
        return jax.tree.leaves([a for i, a in enumerate(args) if i not in self._static])

    def _for(self, closed: ClosedJaxpr) -> Any:
        def make() -> Callable:
            short = longest_scatter(closed.jaxpr) < LONG_SCATTER
            return shared(closed, self._options() if short else None, self._open)

        # JAX gives the same object again for arguments of the same types
        return self._found.get(id(closed), make, closed)


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
