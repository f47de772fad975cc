"""A fast computation with an exact one in reserve, chosen at run time, in the gradient too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True)
class _Perturbed:
    """Which leaves are differentiated, as static data among the residuals."""

    flags: tuple[bool, ...]


jax.tree_util.register_dataclass(_Perturbed, [], ["flags"])


def guarded(
    prepare: Callable[[PyTree], tuple[PyTree, Array]],
    finish: Callable[[PyTree], Array],
    exact: Callable[[PyTree], Array],
    arguments: PyTree,
) -> Array:
    """`finish(prepared)` where that is safe, else `exact(arguments)`.

    Both are differentiated by computing them again, so that neither keeps anything for the gradient, and what the path
    that was not taken would have made of the arguments (NaN, say) never reaches it.

    Args:
        prepare: arguments to (what `finish` needs, whether it can be trusted: a boolean scalar).
        exact: arguments to an array of the shape of `finish`'s.
    """

    @jax.custom_vjp
    def compute(arguments: PyTree) -> Array:
        return choose(arguments)[0]

    def choose(arguments: PyTree) -> tuple[Array, Array]:
        prepared, safe = prepare(arguments)
        # outside of the condition, where it is fused with what it is made of, and computed in its own shape
        finished = finish(prepared)
        # flat, because both branches must agree on a memory layout and XLA would transpose the fast one's
        flat = jax.lax.cond(safe, lambda: finished.ravel(), lambda: exact(arguments).ravel())
        return flat.reshape(finished.shape), safe

    def forward(primals: PyTree) -> tuple[Array, PyTree]:
        leaves, tree = jax.tree.flatten(primals, is_leaf=lambda leaf: isinstance(leaf, CustomVJPPrimal))
        values = jax.tree.unflatten(tree, [leaf.value for leaf in leaves])
        result, safe = choose(values)
        return result, (values, safe, _Perturbed(tuple(bool(leaf.perturbed) for leaf in leaves)))

    def backward(saved: PyTree, cotangent: Array) -> tuple[PyTree]:
        values, safe, perturbed = saved
        leaves, tree = jax.tree.flatten(values)
        moving = [
            i
            for i, (leaf, flag) in enumerate(zip(leaves, perturbed.flags, strict=True))
            if flag and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        ]
        if isinstance(cotangent, SymbolicZero) or not moving:
            return (jax.tree.unflatten(tree, [None] * len(leaves)),)

        def pull(function: Callable[[PyTree], Array]) -> list[Array]:
            def of_moving(floats: list[Array]) -> Array:
                given = dict(zip(moving, floats, strict=True))
                return function(jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)]))

            return jax.vjp(of_moving, [leaves[i] for i in moving])[1](cotangent)[0]

        found = jax.lax.cond(safe, lambda: pull(lambda a: finish(prepare(a)[0])), lambda: pull(exact))
        given = dict(zip(moving, found, strict=True))
        return (jax.tree.unflatten(tree, [given.get(i) for i in range(len(leaves))]),)

    compute.defvjp(forward, backward, symbolic_zeros=True)
    return compute(arguments)
