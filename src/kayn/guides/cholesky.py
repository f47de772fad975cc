"""Cholesky factors as guide parameters: NumPyro's constraint,
whose unconstrained values can also be found within `jax.jit`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import LowerCholeskyTransform, biject_to

from kayn.support.arrays import Array


class LowerCholesky(type(constraints.lower_cholesky)):  # type: ignore[misc]
    """Lower triangular matrices with a positive diagonal.

    For NumPyro's own constraint, `SVI.init` looks the triangle's places up in a way that does not compile;
    compiled it is ten times quicker.
    """


class _Packed(LowerCholeskyTransform):
    def _inverse(self, y: Array) -> Array:
        rows, columns = np.tril_indices(y.shape[-1], -1)
        return jnp.concatenate([y[..., rows, columns], jnp.log(jnp.diagonal(y, axis1=-2, axis2=-1))], -1)


@biject_to.register(LowerCholesky)
def _packed(_: LowerCholesky) -> _Packed:
    return _Packed()


lower_cholesky = LowerCholesky()
