"""Where graph, particles and contraction meet: the log-evidence estimate and the questions put to it."""

from kayn.evidence.draws import Draws, draw_particles
from kayn.evidence.problem import Problem
from kayn.evidence.weighed import Weighed
from kayn.evidence.weights import log_evidence, proposal_terms, weigh

__all__ = ["Draws", "Problem", "Weighed", "draw_particles", "log_evidence", "proposal_terms", "weigh"]
