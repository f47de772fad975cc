"""Static description of a probabilistic program: plates, latents, factors and the links between plates.

Everything here is hashable and holds no numbers; arrays live in `Program` (the traced model) and in particles.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kayn.densities.exponential.contract import Family
from kayn.programs.outputs import OutputName, Part

MIXED = "mixed"
"""A factor reads several elements of a plate at once, in a way that was not resolved."""


class Kind(Enum):
    """What a traced output is."""

    PRIOR = "prior"
    LIKELIHOOD = "likelihood"
    VALUE = "value"


@dataclass(frozen=True)
class Plate:
    """A plate of conditionally independent elements.

    `size` is the number of elements present, `full_size` the number they stand for (larger when subsampled). `implicit`
    plates are batch dimensions of a site that no `numpyro.plate` declares. `steps` are those of a loop: each may depend
    on the one before, so they are no plate over whose elements a log evidence is a sum.
    """

    name: str
    size: int
    full_size: int
    implicit: bool = False
    steps: bool = False

    @property
    def scale(self) -> float:
        """How many elements each present one stands for: N / M of a subsampled plate, otherwise one."""
        return self.full_size / self.size


@dataclass(frozen=True)
class Latent:
    """A latent sample site. `plates` pairs a plate name with the dimension of the value that runs over it; `endless`
    says whether it may be any real number, or a vector of these."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    batch_ndim: int
    plates: tuple[tuple[str, int], ...]
    discrete: bool
    support_size: int | None = None
    parents: tuple[str, ...] = ()
    endless: bool = True

    @property
    def enumerated(self) -> bool:
        """Whether all its values are summed over, so that it has no particles."""
        return self.support_size is not None

    @property
    def plate_names(self) -> tuple[str, ...]:
        """Names of its plates."""
        return tuple(name for name, _ in self.plates)


@dataclass(frozen=True)
class AliasOf:
    """A chain latent at another step, as an input of its own: `lag` steps earlier, or (`end`) before the last step.

    `time` is the plate of the steps.
    """

    latent: Latent
    base: str
    lag: int
    end: bool
    time: str


@dataclass(frozen=True)
class Link:
    """Row i of plate `source` reads element `index[i]` of plate `target`; `key` finds the index vector."""

    source: str
    target: str
    key: int


@dataclass(frozen=True)
class Read:
    """How one output reads one latent: for every plate of the latent the same plate, a `Link`, or `MIXED`."""

    latent: str
    through: tuple[tuple[str, str | Link], ...]

    def of(self, plate: str) -> str | Link:
        """The plate's own name (aligned), a `Link`, or `MIXED`."""
        return dict(self.through)[plate]


@dataclass(frozen=True)
class Argument:
    """An argument of an exponential-family density: its name, its shape [*outer, *core],
    and the latents it depends on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    latents: tuple[str, ...]


@dataclass(frozen=True)
class Density:
    """A log probability as a function of a value and parameters that the traced program also gives.

    The last `event_ndim` outer dimensions of its arguments are summed; those before are the output's own.

    Attributes:
        terms: sets of latents, if the family's predictor (`Family.predictor`) is a sum with a
            term for each.
    """

    family: Family
    event_ndim: int
    arguments: tuple[Argument, ...]
    terms: tuple[tuple[str, ...], ...] = ()

    def argument(self, name: str) -> Argument | None:
        """The argument of this name, or None."""
        return next((a for a in self.arguments if a.name == name), None)


@dataclass(frozen=True)
class Output:
    """A traced quantity: a site's log probability over `dims`, or a value (deterministic site, query).

    `dims` are plate names, one for each dimension of the array. `density` is known for exponential families. `work` is
    how many operations it takes for one particle of every latent, by the latents that they depend on; what joins the
    terms of a predictor is not among them, since these may be evaluated one by one.
    """

    name: str
    kind: Kind
    dims: tuple[str, ...]
    reads: tuple[Read, ...]
    density: Density | None = None
    work: tuple[tuple[tuple[str, ...], float], ...] = ()

    @property
    def traced(self) -> OutputName:
        """Its name in the program that it was found in."""
        return (Part.VALUE if self.kind is Kind.VALUE else Part.DENSITY).of(self.name)

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latents that it reads, aliases among them."""
        return tuple(read.latent for read in self.reads)


@dataclass(frozen=True)
class Graph:
    """The factor graph of a model, without numbers."""

    plates: tuple[Plate, ...]
    latents: tuple[Latent, ...]
    outputs: tuple[Output, ...]
    aliases: tuple[AliasOf, ...] = ()

    def plate(self, name: str) -> Plate:
        """The plate of this name.

        Raises:
            StopIteration: there is none.
        """
        return next(p for p in self.plates if p.name == name)

    def latent(self, name: str) -> Latent:
        """The latent of this name, a chain's at another step included.

        Raises:
            StopIteration: there is none.
        """
        return next(z for z in (*self.latents, *(a.latent for a in self.aliases)) if z.name == name)

    def alias(self, name: str) -> AliasOf | None:
        """What a name stands for, if it is a chain latent at another step."""
        return next((a for a in self.aliases if a.latent.name == name), None)

    def output(self, name: str) -> Output:
        """The output of this name.

        Raises:
            StopIteration: there is none.
        """
        return next(o for o in self.outputs if o.name == name)

    @property
    def factors(self) -> tuple[Output, ...]:
        """Outputs that are log factors: priors and likelihoods, but no values."""
        return tuple(o for o in self.outputs if o.kind is not Kind.VALUE)

    @property
    def latent_names(self) -> tuple[str, ...]:
        """Names of all latents, without aliases."""
        return tuple(z.name for z in self.latents)
