"""Where particles come from, by latent: what a user may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kayn.errors import KaynError
from kayn.guides.start import Conditional
from kayn.inference.mcmc.coordinates import Coordinates
from kayn.support.arrays import Array, PyTree
from kayn.support.names import in_model

LOCAL, PRIOR = "local", "prior"
WORDS = (
    "'local', 'prior', a NumPyro guide, the result of kayn.fit, or a mapping from latents to these ('' for the rest)"
)


@dataclass(frozen=True, eq=False)
class Proposals:
    """What was asked for.

    Attributes:
        kinds: "local", "prior" or "guide" by latent, "" for the rest.
        guide: what proposes or what chains start from, None where there is none.
        params: values of its parameters that came with it.
    """

    kinds: Mapping[str, str]
    guide: Callable | None = None
    params: Mapping[str, PyTree] = field(default_factory=dict)

    def by_latent(self, names: Sequence[str]) -> dict[str, str]:
        """The kind of every latent.

        Raises:
            KaynError: one is named that is no latent of the model, or one has none.
        """
        known = {in_model(n) for n in names}
        unknown = [n for n in self.kinds if n and n not in known]
        if unknown:
            raise KaynError(f"proposal names {unknown[0]!r}, which is no latent of the model; latents: {sorted(known)}")
        found = {n: self.kinds.get(in_model(n), self.kinds.get("")) for n in names}
        missing = [in_model(n) for n, kind in found.items() if kind is None]
        if missing:
            raise KaynError(
                f"proposal has nothing for latent {missing[0]!r}; name it, or give '' for the rest, as in "
                "proposal={..., '': 'local'}"
            )
        return {n: str(kind) for n, kind in found.items()}


def proposals_of(proposal: Any) -> Proposals:
    """What was asked for, checked.

    Raises:
        KaynError: it is nothing that may be asked for, or there are two guides.
    """
    asked = dict(proposal) if isinstance(proposal, Mapping) else {"": proposal}
    if not asked or not all(isinstance(n, str) for n in asked):
        raise KaynError(f"proposal={proposal!r} is none of {WORDS}")
    kinds, guides = {}, []
    for name, one in asked.items():
        if isinstance(one, str) and one in (LOCAL, PRIOR):
            kinds[name] = one
        elif callable(one) or _is_fit(one):
            kinds[name] = "guide"
            guides.append(one)
        else:
            where = f"proposal[{name!r}]" if isinstance(proposal, Mapping) else "proposal"
            raise KaynError(f"{where} is {one!r}; it must be {WORDS}")
    if len({id(g) for g in guides}) + (PRIOR in kinds.values()) > 1:
        raise KaynError(
            "proposal has several guides ('prior' counts as one); latents that are not local need one guide for all of "
            "them, since its sites may depend on each other"
        )
    if not guides:
        return Proposals(kinds)
    guide = guides[0]
    return Proposals(kinds, guide.guide, dict(guide.proposal)) if _is_fit(guide) else Proposals(kinds, guide)


def started_from(proposals: Proposals, start: Any) -> Proposals:
    """The same proposals, with a guide that chains start from.

    Raises:
        KaynError: it is no guide, or another guide proposes.
    """
    if start is None:
        return proposals
    if not (callable(start) or _is_fit(start)):
        raise KaynError(f"start is {start!r}; it must be a NumPyro guide, the result of kayn.fit, or None")
    if proposals.guide is not None or PRIOR in proposals.kinds.values():
        raise KaynError("start= is for chains whose proposals are all local; others start from the guide that proposes")
    if _is_fit(start):
        return Proposals(proposals.kinds, start.guide, dict(start.proposal))
    return Proposals(proposals.kinds, start)


def _is_fit(value: Any) -> bool:
    """Whether it is the result of `kayn.fit`, which knows of sampling and not the other way round."""
    return callable(getattr(value, "guide", None)) and isinstance(getattr(value, "proposal", None), Mapping)


@dataclass(frozen=True, eq=False)
class PriorGuide:
    """A model's prior as a guide: its latents as it draws them."""

    conditional: Conditional

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Run as a NumPyro guide."""
        self.conditional.run(args, kwargs, {})
        return {}


def prior_guide(model: Callable, names: Sequence[str]) -> PriorGuide:
    """The guide that draws a model's latents from their prior."""
    return PriorGuide(Conditional(model, tuple(names)))


def local_words(coordinates: Coordinates) -> str:
    """How particles of a latent that moves locally come about."""
    if coordinates.uniform:
        return "any value"
    return "local, by whole numbers" if coordinates.discrete else "local"
