"""Names: what kayn adds to a user's program lives under a prefix that no site of a model may have.

Parameters of kayn's own guides, outputs of traced programs, particle axes, chains at other steps and factors of
held-out data are all kept by name, in dictionaries that also hold the user's sites. Names are therefore made here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from kayn.errors import UNBOUNDED, ModelError

RESERVED = "kayn:"
"""How every name begins that kayn makes."""
_SUMMAND = f"{RESERVED}summand "


def parameter(latent: str, parameter: str) -> str:
    """The `numpyro.param` site that holds a parameter of kayn's own guide, e.g. `kayn:alpha:loc`."""
    return f"{RESERVED}{in_model(latent)}:{parameter}"


def unbounded(latent: str) -> str:
    """The latent in unconstrained space that stands for one whose support depends on others."""
    return UNBOUNDED + latent


def in_model(name: str) -> str:
    """The latent of the user's model that a latent is, or stands for."""
    return name.removeprefix(UNBOUNDED)


def joined(names: Iterable[str]) -> str:
    """Several names as one, `a+b`; no other names give the same."""
    return "+".join(n.replace("\\", "\\\\").replace("+", "\\+") for n in names)


def shown(name: str) -> str:
    """A name, or a text of names, as messages and tables show it, where what kind of thing each is can be seen."""
    return name.replace(UNBOUNDED, "").replace(RESERVED, "")


def summand(site: str, number: int) -> str:
    """A factor that a site's log density has been taken apart into, one of a sum: the first has the site's name."""
    return f"{_SUMMAND}{number + 1}:{site}" if number else site


def whole(factor: str) -> str:
    """The site whose log density a factor is, or is a part of."""
    return in_model(factor.removeprefix(_SUMMAND).partition(":")[2] if factor.startswith(_SUMMAND) else factor)


def fresh(name: str, taken: Container[str]) -> str:
    """The name, or where it is taken the first of `name_2`, `name_3`, ... that is not."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def refuse_reserved(kinds: Mapping[str, Any]) -> None:
    """Refuse a model's sites under kayn's prefix.

    Args:
        kinds: sites by name, with their `kind`.

    Raises:
        ModelError: a site's name begins with `kayn:`.
    """
    for name, site in kinds.items():
        if name.startswith(RESERVED) and not (getattr(site, "added", False) or getattr(site, "unbounded", False)):
            raise ModelError(
                f"the model has a {site.kind} site {name!r}, but names that begin with {RESERVED!r} are kept for "
                "what kayn adds; rename the site"
            )
