"""What a traced program puts out, by name: a part of a site.

A name is a key and nothing else: which site an output belongs to and what of it that is are fields, and nothing is read
out of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kayn.support.names import RESERVED


class Part(Enum):
    """What of a site a traced output is."""

    DENSITY = "density"
    """The log probability of a sample site."""
    ARGUMENT = "argument"
    """An argument of that density (`kayn.programs.density_arguments`)."""
    VALUE = "value"
    """The value of a deterministic site, or what a query asks for."""
    DATA = "data"
    """Observed data."""
    INSIDE = "inside"
    """Whether data lie in their likelihood's support."""
    MASK = "mask"
    """Which elements masks let count."""
    UNMASKED = "unmasked"
    """What a masked latent's density would be without its masks."""
    ABSENT = "absent"
    """Which elements of a masked latent are in no factor at all (`kayn.graph.absent`)."""
    SUPPORT = "support"
    """All values of a latent that can be enumerated."""
    LOWER = "lower"
    """The lower end of a latent's support, where it is computed."""
    UPPER = "upper"
    """The upper end."""
    POINT = "point"
    """Where a point mass of a guide is."""
    ROWS = "rows"
    """Indices of a plate that a handler has set."""
    FACTORISATION = "factorisation"
    """A result on the way to a density, given out for once (`kayn.factors.shared`)."""

    def of(self, site: str, argument: str = "") -> OutputName:
        """The name of this part of a site.

        Args:
            argument: which argument of a density, for `ARGUMENT`.
        """
        return OutputName(self, site, argument)


@dataclass(frozen=True)
class OutputName:
    """The name of a traced output: hashable, and ordered as JAX asks of keys of dictionaries.

    Densities come in the order of their sites, and all other outputs where a site called `kayn:` would.
    """

    part: Part
    site: str
    argument: str = ""

    def __lt__(self, other: OutputName) -> bool:
        """Whether it comes before another one."""
        return self._place < other._place

    @property
    def _place(self) -> str:
        if self.part is Part.DENSITY:
            return self.site
        return RESERVED + ":".join(filter(None, (self.part.value, self.argument, self.site)))
