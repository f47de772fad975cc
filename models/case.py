"""What every model of this folder is: a NumPyro model with the arguments that it is run with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

Case = tuple[Callable[..., None], tuple[Any, ...]]


def vector(name: str, size: int, sd: float = 1.0) -> Any:
    """A latent of `size` independent Normals: one event."""
    return numpyro.sample(name, dist.Normal(jnp.zeros(size), sd).to_event(1))
