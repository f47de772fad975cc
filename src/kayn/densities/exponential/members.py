"""All exponential families, and which of them a distribution is. A family is added in the file of its kind, as one
`Family`; nothing else has to know of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpyro.distributions as dist

from kayn.densities.exponential import discrete, positive, scales
from kayn.densities.exponential.contract import Family

FAMILIES = tuple(f for module in (scales, positive, discrete) for f in vars(module).values() if isinstance(f, Family))
_BY_LAW: Mapping[type, Family] = {law: family for family in FAMILIES for law in family.laws}


def family_of(base: dist.Distribution) -> Family | None:
    """The exponential family of a distribution without wrappers, None if it is not supported."""
    return None if getattr(base, "is_sparse", False) else _BY_LAW.get(type(base))
