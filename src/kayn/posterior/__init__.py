"""What comes back: pooled particles and every question that a posterior answers."""

from kayn.posterior.posterior import Posterior

__all__ = ["Posterior"]
