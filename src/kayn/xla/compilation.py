"""Compiled programs: how precise their matrix products are, when they are compiled,
and where they are kept between runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from kayn.errors import KaynError
from kayn.support.arrays import Array, PyTree
from kayn.support.validate import Rule, Text, checked
from kayn.xla.shared import shared_ahead

CACHE_VARIABLE = "KAYN_CACHE"
LANES = 8
"""Numbers that a CPU computes at a time. XLA unrolls loops of known length below twice as many, and then does not
vectorise them, unless they fit."""
LONG_ROW = 2**14
"""Entries of a row above which XLA's sum over rows is slow."""
QUICK = {"xla_cpu_use_fusion_emitters": False}
SELDOM = QUICK | {"xla_backend_optimization_level": 1}
ONCE = QUICK | {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def matmul_precision() -> jax.lax.Precision | None:
    """Full precision, unless the user sets another with `jax.default_matmul_precision` (None: what is set there holds).

    GPUs would otherwise round the operands of float32 products to 10 bits (tf32).
    """
    return None if jax.config.jax_default_matmul_precision is not None else jax.lax.Precision.HIGHEST


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is a tracer, so that its numbers are not known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def within_transformation() -> bool:
    """Whether operations that start here, on known numbers, are being traced."""
    return is_traced(jnp.zeros(()) + 0)


def quick_options() -> dict[str, Any] | None:
    """What to tell the compiler, so that it writes kernels for CPUs in the older of its two ways.

    None where that is not to be had. This takes a third to a half less time, see `kayn.xla.jit`.
    """
    return QUICK if _accepted(*QUICK.items()) else None


def seldom_options() -> dict[str, Any] | None:
    """The same for programs that run a few times, on much: a little less is made of them."""
    return SELDOM if _accepted(*SELDOM.items()) else quick_options()


def once_options() -> dict[str, Any] | None:
    """The same for programs that run once, on little: they are compiled fast rather than made fast."""
    return ONCE if _accepted(*ONCE.items()) else quick_options()


@cache
def _accepted(*options: tuple[str, Any]) -> bool:
    """Whether the default device is a CPU whose compiler knows some options."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def ahead(function: Callable, *args: Any) -> Callable[[], PyTree]:
    """Compile in the background: traces now, and gives a function that waits for the program and runs it once on
    `args`.

    Within a transformation of the user's (`jax.jit`, `vmap`, `grad`) there is nothing to compile ahead: the function
    becomes a part of whatever is being traced.
    """
    if is_traced(args) or within_transformation():
        return cache(lambda: function(*args))
    traced = _alone(function, args)
    if traced is None:
        return cache(lambda: function(*args))
    run = shared_ahead(traced.jaxpr, quick_options(), jax.tree.leaves(args))
    form = jax.tree.structure(traced.out_info)
    return cache(lambda: jax.tree.unflatten(form, run()))


def compiled_now(function: Callable, *args: Any) -> Callable | None:
    """A program for a look at known numbers of the shapes of `args`: it runs at once, also while something is traced.

    `jax.ensure_compile_time_eval` does that one operation after the other, each compiled on its own, within
    `jax.jit` too.

    Returns:
        None if the numbers are not known: some are being transformed, or the function closes over such ones.
    """
    traced = None if is_traced(args) else _alone(function, args)
    if traced is None:
        return None
    if not jax.config.jax_disable_jit:
        return traced.lower().compile(once_options())

    def one_by_one(*args: Any) -> PyTree:
        with jax.ensure_compile_time_eval():
            return function(*args)

    return one_by_one


def _alone(function: Callable, args: tuple) -> jax.stages.Traced | None:
    """None if the function closes over numbers that are being transformed, which JAX makes arguments of it."""
    traced = jax.jit(function).trace(*args)
    closes = len(traced.jaxpr.jaxpr.invars) != len(jax.tree.leaves(args)) or is_traced(traced.jaxpr.consts)
    return None if closes else traced


def apart(array: Array, witness: Array) -> Array:
    """The same array, on CPUs computed on its own in its own order.

    XLA fuses what makes an array into what uses it, in the order in which that uses it. Where the last dimension there
    is short, CPUs then compute one entry at a time; on its own, over long rows, eight at a time. No fusion crosses a
    condition.

    Args:
        witness: any number that only the run knows.
    """
    if jax.default_backend() != "cpu":
        return array
    # two ways to say the same, which compilers do not see through
    return jax.lax.cond(
        jnp.asarray(witness, float) < 0, lambda x: jnp.where(x == 1, jnp.ones_like(x), x), lambda x: x, array
    )


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def sum_of_rows(array: Array, axis: int) -> Array:
    """`jnp.sum(array, axis)`, on CPUs as a product with ones where what is summed are long rows.

    There XLA's own sum over a leading dimension takes 9 ns an entry, forty times as long. Behind others it is quick,
    and a product would have to be transposed.
    """
    before, after = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    if before > 1 or after < LONG_ROW or jax.default_backend() != "cpu":
        return jnp.sum(array, axis)
    ones = jnp.ones(array.shape[axis], array.dtype)
    return jnp.tensordot(ones, jnp.moveaxis(array, axis, 0), 1, precision=jax.lax.Precision.HIGHEST)


@sum_of_rows.defjvp
def _(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # the way back is a broadcast, not a product with ones
    return sum_of_rows(primals[0], axis), jnp.sum(tangents[0], axis)


@checked()
def cache_compilation(directory: Annotated[Text | os.PathLike | None, Rule("a path, or None")] = None) -> Path:
    """Keep compiled programs on disk, so that the same model on data of the same shape compiles once and not in every
    session.

    Args:
        directory: by default the environment's `KAYN_CACHE`, else `kayn/programs` in the user's cache directory.

    Returns:
        The directory.

    Raises:
        KaynError: it cannot be made.
    """
    chosen = directory or os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(chosen) if chosen else base / "kayn" / "programs"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KaynError(f"directory {path} cannot be made ({error.strerror}); give another one") from error
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
