"""Draws of a model's sites before any data are seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from numpyro import handlers

from kayn.errors import QueryError
from kayn.posterior.replay import BATCH, Condition, drawn_sites
from kayn.programs.given import Given
from kayn.programs.seeding import seeded
from kayn.programs.tables import as_arguments
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.options import Arguments, Key, Model, Named, Params, Samples
from kayn.support.validate import checked
from kayn.xla.compilation import seldom_options
from kayn.xla.jit import QuickJit


@checked(QueryError)
def prior_predictive(
    model: Model,
    args: Arguments = (),
    kwargs: Named = None,
    rng_key: Key = 0,
    num_samples: Samples = 1000,
    params: Params = None,
) -> dict[str, Array]:
    """Draws of all sites of a model, data included, from its prior: [S, *shape].

    Args:
        args, kwargs: arguments of the model; observed values among them only give shapes.
        params: values of `numpyro.param` sites.

    Raises:
        QueryError: a latent has an improper prior, so that nothing can be drawn.
    """
    own_args, own_kwargs, _ = as_arguments(model, tuple(args), dict(kwargs or {}))
    return prior_draws(model, own_args, own_kwargs, as_key(rng_key), num_samples, dict(params or {}))


def prior_draws(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], key: KeyArray, num_samples: int, params: PyTree
) -> dict[str, Array]:
    """See `prior_predictive`."""

    def one(key: KeyArray) -> dict[str, Array]:
        program = Condition(Given(model, params=params), {}, (), observe=False)
        return drawn_sites(handlers.trace(seeded(program, key)).get_trace(*args, **kwargs))

    try:
        forms = jax.eval_shape(one, key)
        refuse_too_many("num_samples", num_samples, sum(math.prod(f.shape) for f in forms.values()), QueryError)
    except NotImplementedError as error:
        raise QueryError(
            f"nothing can be drawn from the prior ({error or 'a distribution without a sampler'}); give every latent a "
            "proper prior"
        ) from error
    drawn = QuickJit(lambda keys: jax.lax.map(one, keys, batch_size=BATCH), options=seldom_options)
    return drawn(jax.random.split(key, num_samples))
