"""What an exponential-family density is a function of: its value and its parameters, each as an output of its own.

The traced program already computes these; naming them lets `kayn.factors` evaluate each on its own particle axes.
Dimensions are aligned: the *outer* ones are those of the log probability followed by the event dimensions that are a
sum of independent elements, the *core* ones belong to one element (D of a vector, D x D of its Cholesky factor).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.densities.exponential.members import family_of
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import mask_of


def density_arguments(fn: dist.Distribution, value: Array, scale: Array | None) -> dict[str, Array]:
    """The arguments of a log density that is an exponential family under masks, expansions and event dimensions.

    Args:
        fn: the site's distribution.
        scale: the factor of `handlers.scale` on its log probability, None for one.

    Returns:
        Arrays [*outer, *core], outer dimensions of size one where an argument does not vary: the value, the parameters,
        `inside` (whether the value lies in the support), and where there are any `mask` and `scale`. Empty where the
        family is not supported or the shapes do not fit the distribution's own.
    """
    masks, base = [], fn
    while isinstance(base, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        if isinstance(base, dist.MaskedDistribution) and mask_of(base) is not True:
            masks.append((mask_of(base), base.event_dim))
        base = base.base_dist
    element, family = base, family_of(base)
    if family is None or isinstance(value, list | tuple) or jnp.shape(value) != fn.shape():
        return {}
    event_ndim = fn.event_dim - element.event_dim
    outer = len(fn.batch_shape) + event_ndim

    def aligned(array: Array, core: int) -> Array:
        array = jnp.asarray(array)
        return array.reshape((1,) * (outer + core - array.ndim) + array.shape)

    parameters = family.laws[type(element)](element)
    value = jnp.asarray(value)
    given = {"value": value, **parameters}
    out = {name: aligned(array, family.core_ndim.get(name, 0)) for name, array in given.items()}
    out["inside"] = aligned(element.support(value), 0)
    if masks:
        out["mask"] = jnp.ones((1,) * outer, bool)
        for mask, ndim in masks:
            mask = jnp.asarray(mask)
            out["mask"] = out["mask"] & aligned(mask.reshape(mask.shape + (1,) * (ndim - element.event_dim)), 0)
    if scale is not None:
        out["scale_factor"] = aligned(jnp.asarray(scale).reshape(jnp.shape(scale) + (1,) * event_ndim), 0)
    return out
