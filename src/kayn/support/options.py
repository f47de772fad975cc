"""Options that several entry points share: what each may be. `kayn.support.validate` reads these annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import optax
from numpyro.infer import ELBO

from kayn.errors import GuideError, ModelError, QueryError, StructureError
from kayn.support.keys import as_key
from kayn.support.memory import memory_budget
from kayn.support.validate import Count, Rule, Text, parameter_values

Model = Annotated[Callable, Rule("a function; models and guides are NumPyro programs", error=ModelError)]
Guide = Model
Key = Annotated[Any, as_key]
"""A key of kayn's generator, from an int seed or a key of any."""
Params = Annotated[Mapping[str, Any] | None, parameter_values]
"""Values of `numpyro.param` sites by name."""


def _once(names: str | Sequence[str]) -> bool:
    """Whether there is a name, and none twice."""
    return isinstance(names, str) or 0 < len(set(names)) == len(names)


Particles = Annotated[
    Count | Mapping[str, Count],
    Rule(
        "a whole number, at least 1 and below 2**31, or a mapping from latents to such numbers ('' for the rest), "
        "which is not empty",
        lambda counts: counts != {},
        StructureError,
    ),
]
Strategy = Annotated[
    Literal["parallel", "global", "local"],
    Rule("one of 'parallel', 'global', 'local'; groups= sets axes by hand", error=StructureError),
]
Groups = Annotated[
    Sequence[Sequence[Text]],
    Rule(
        "a list of groups of latents, e.g. groups=[('mu', 'alpha')], none of them empty or with a latent twice; () "
        "for none",
        lambda groups: all(map(_once, groups)),
        StructureError,
    ),
]
Couple = Annotated[
    Mapping[str, Text | Sequence[Text]] | None,
    Rule(
        "a mapping from latents to plates, e.g. couple={'alpha': 'counties'}, each with a plate and none twice, or "
        "None",
        lambda couple: couple is None or all(map(_once, couple.values())),
        StructureError,
    ),
]
Drawing = Literal["even", "independent"]
"""How particles of one set are drawn together, see `kayn.axes.request.Request`."""
Denominator = Annotated[Literal["mixture", "paired"], Rule("one of 'mixture', 'paired'", error=GuideError)]
Elements = Annotated[int, Rule("a whole number of entries, at least 1", lambda n: n >= 1, StructureError)]


def _allowed(memory: Any) -> Any:
    memory_budget(memory)
    return memory


Memory = Annotated[int | str | None, _allowed]
"""Bytes, or a text such as "2GB"; None is half of what the device has."""

Name = Annotated[str, Rule("the name of a site, a text", error=QueryError)]
Names = Annotated[
    Text | Sequence[Text] | None, Rule("the name of a site, a list of names, or None for all latents", error=QueryError)
]
Mass = Annotated[float, Rule("a probability between 0 and 1", lambda p: 0 < p < 1, QueryError)]
Level = Annotated[float, Rule("a number from 0 to 1", lambda q: 0 <= q <= 1, QueryError)]
Levels = Annotated[Level | Sequence[Level], Rule("a number from 0 to 1, or a list of such", error=QueryError)]
Samples = Annotated[Count, Rule("a whole number, at least 1 and below 2**31", error=QueryError)]
Coords = Annotated[
    Mapping[str, Any] | None,
    Rule("a mapping from dimension to labels, e.g. {'county': names}, or None", error=QueryError),
]
Plates = Annotated[Text | Sequence[Text], Rule("the name of a plate, or a list of names of plates", error=QueryError)]
PathName = Annotated[Text | os.PathLike, Rule("a path")]
PathOption = Annotated[Text | os.PathLike | None, Rule("a path, or None")]
Arguments = Annotated[list | tuple, Rule("a tuple of the model's arguments, e.g. args=(x, y)")]
Named = Annotated[
    Mapping[str, Any] | None, Rule("a mapping from names to the model's keyword arguments, e.g. {'y': y}, or None")
]
Loss = Annotated[ELBO, Rule("a loss, e.g. kayn.RWS(10), or another numpyro.infer.ELBO")]
Optimizer = Annotated[optax.GradientTransformation, Rule("an optax transformation, e.g. optax.adam(1e-3)")]
