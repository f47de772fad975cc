"""What is asked of the particles: strategy, numbers, groups, couplings, bounds, and how they are drawn."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from kayn.errors import StructureError
from kayn.support.memory import memory_budget
from kayn.support.names import unbounded
from kayn.support.options import Couple, Drawing, Elements, Groups, Memory, Particles, Strategy
from kayn.support.validate import checked

TARGET_ELEMENTS = 2**20
"""Default number of entries above which latents without plates are put on one axis, which costs little accuracy."""
USUAL, MORE = 30, 100
"""Particles where a number is not given, and where more are affordable (`kayn.axes.more`)."""


@dataclass(frozen=True)
class Request:
    """What the user asks of the particle axes, and an entry point of the draws.

    Attributes:
        num_particles: K, for all latents or by latent name (others get the default under "").
        strategy: "parallel", "global" or "local".
        groups: latents that share an axis, on top of the strategy.
        couple: plates over which a latent gives up its own index;
            replaces the automatic choice where groups are crossed.
        target_elements: where a factor or an intermediate array has more entries, latents without plates share an axis.
        memory: bytes that a step may take; where it would take more, any axes are merged.
        draws: "independent", one run of the guide for each particle, as in the literature of the losses for SVI; or
            "even", noise of Normal sites that is drawn for all particles together and fills the quantiles
            (`kayn.particles.shared_noise`). Each particle has the guide's law either way. Entry points say which in
            their attribute `draws`; everything else asks here.
        more: whether axes may get more particles, since the user gave no number.
    """

    num_particles: int | tuple[tuple[str, int], ...] = USUAL
    strategy: Strategy = "parallel"
    groups: tuple[tuple[str, ...], ...] = ()
    couple: tuple[tuple[str, tuple[str, ...]], ...] = ()
    target_elements: Elements = TARGET_ELEMENTS
    memory: int = 2**32
    draws: Drawing = "independent"
    more: bool = False

    def about(self, latents: Container[str]) -> Request:
        """The same request about latents some of which stand for those of the user's model."""

        def named(name: str) -> str:
            return unbounded(name) if unbounded(name) in latents else name

        counts = self.num_particles
        return replace(
            self,
            num_particles=counts if isinstance(counts, int) else tuple((named(n), k) for n, k in counts),
            groups=tuple(tuple(map(named, g)) for g in self.groups),
            couple=tuple((named(n), plates) for n, plates in self.couple),
        )

    def particles_of(self, latent: str) -> int:
        """K of a latent: its own number, else that under the empty name, else `USUAL`."""
        if isinstance(self.num_particles, int):
            return self.num_particles
        table = dict(self.num_particles)
        return table.get(latent, table.get("", USUAL))


@checked(StructureError)
def make_request(
    num_particles: Particles | None = None,
    strategy: Strategy = "parallel",
    groups: Groups = (),
    couple: Couple = None,
    target_elements: Elements = TARGET_ELEMENTS,
    memory: Memory = None,
    draws: Drawing = "independent",
) -> Request:
    """Check and freeze what the user asks for; without a number of particles, it is chosen (`USUAL`, `MORE`).

    Raises:
        StructureError: an option is none of what it may be.
    """
    given = USUAL if num_particles is None else num_particles
    counts = dict(given) if isinstance(given, Mapping) else {"": given}
    frozen = tuple(
        (name, (plates,) if isinstance(plates, str) else tuple(plates)) for name, plates in (couple or {}).items()
    )
    single = set(counts) == {""}
    return Request(
        int(counts[""]) if single else tuple((n, int(c)) for n, c in counts.items()),
        strategy,
        tuple(tuple(g) for g in groups),
        frozen,
        target_elements,
        memory_budget(memory),
        draws,
        num_particles is None,
    )
