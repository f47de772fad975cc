"""Whether a call's arguments are those of an earlier call, so that what was read for these can be used again."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from kayn.graph.expressions import is_key
from kayn.xla.compilation import is_traced


def same(first: Any, second: Any) -> bool:
    """Whether two sets of arguments are known to be equal."""
    (a, form), (b, other) = jax.tree.flatten(first), jax.tree.flatten(second)
    return form == other and all(x is y or _equal(x, y) for x, y in zip(a, b, strict=True))


def _equal(x: Any, y: Any) -> bool:
    if is_traced((x, y)) or is_key(x) != is_key(y):
        return False
    x, y = (jax.random.key_data(v) if is_key(v) else v for v in (x, y))
    return np.array_equal(np.asarray(x), np.asarray(y))
