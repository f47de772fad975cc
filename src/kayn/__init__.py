"""kayn ("K to the n"): massively parallel Bayesian inference for NumPyro models."""

from kayn.analysis import Analysis, analyze
from kayn.compare import Comparison, compare
from kayn.errors import (
    DataError,
    DataWarning,
    GuideError,
    KaynError,
    KaynWarning,
    ModelError,
    NumericsWarning,
    PoorFitWarning,
    QueryError,
    StructureError,
    StructureWarning,
)
from kayn.fit import Fit, fit
from kayn.formulas.formula import Formula, formula
from kayn.guides.factorised import FactorisedGuide
from kayn.inference.importance import Importance
from kayn.inference.mcmc.kernel import MPGibbs
from kayn.inference.qem import QEM
from kayn.inference.training import Phase, Training, by_parameter, train
from kayn.objectives.relax import REBAR, RELAX
from kayn.objectives.relaxed import Concrete, ConcreteHardPrior, lookup
from kayn.objectives.rws import RWS
from kayn.objectives.score import VIMCO, Reinforce
from kayn.objectives.sleep import Sleep
from kayn.objectives.vi import STL, VI, DReG
from kayn.posterior.chains import Chains
from kayn.posterior.posterior import Posterior
from kayn.posterior.prior import prior_predictive
from kayn.saved import load
from kayn.xla.compilation import cache_compilation
from kayn.xla.threads import ask_for_threads

ask_for_threads()

__version__ = "0.1.0"

__all__ = [
    "QEM",
    "REBAR",
    "RELAX",
    "RWS",
    "STL",
    "VI",
    "VIMCO",
    "Analysis",
    "Chains",
    "Comparison",
    "Concrete",
    "ConcreteHardPrior",
    "DReG",
    "DataError",
    "DataWarning",
    "FactorisedGuide",
    "Fit",
    "Formula",
    "GuideError",
    "Importance",
    "KaynError",
    "KaynWarning",
    "MPGibbs",
    "ModelError",
    "NumericsWarning",
    "Phase",
    "PoorFitWarning",
    "Posterior",
    "QueryError",
    "Reinforce",
    "Sleep",
    "StructureError",
    "StructureWarning",
    "Training",
    "analyze",
    "by_parameter",
    "cache_compilation",
    "compare",
    "fit",
    "formula",
    "load",
    "lookup",
    "prior_predictive",
    "train",
]
