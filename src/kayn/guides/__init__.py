"""kayn's own guides and their families."""

from kayn.guides.factorised import FactorisedGuide

__all__ = ["FactorisedGuide"]
