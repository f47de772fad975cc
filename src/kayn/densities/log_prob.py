"""Log densities in kayn's own forms, where NumPyro's is slow or loses its digits in float32.

On CPUs, XLA hands chains of arithmetic to vectorised kernels, but a selection (`jnp.where`) in the chain sends the
whole of it through scalar loops, which is an order of magnitude slower. Values are the same, those at infinite
arguments included.

Of a log probability above zero, or a log density of +inf, no sense can be made: both are +inf here, for
`kayn.factors.elementwise` to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints, discrete

from kayn.densities.bounded import (
    kumaraswamy,
    left_truncated_gamma,
    ordered_logistic,
    power_law,
    right_truncated_gamma,
    truncated_gamma,
)
from kayn.densities.censored import FAMILIES, interval_censored, left_censored, right_censored
from kayn.densities.counts import (
    beta,
    beta_binomial,
    beta_negative_binomial,
    binomial_logits,
    binomial_probs,
    dirichlet_multinomial,
    few_beta_binomial,
    few_gamma_poisson,
    few_negative_binomial_logits,
    few_negative_binomial_probs,
    gamma,
    gamma_poisson,
    inverse_gamma,
    multinomial_logits,
    multinomial_probs,
    negative_binomial_logits,
    negative_binomial_probs,
    poisson,
    student_t,
    von_mises,
)
from kayn.densities.special import log_sigmoid
from kayn.densities.tails import MASSES, left_truncated, right_truncated, truncated
from kayn.densities.vectors import (
    dirichlet,
    lkj_cholesky,
    multivariate_normal,
    multivariate_student,
)
from kayn.support.arrays import Array
from kayn.support.numpyro_internals import changed_parts, checks_values, is_numpyros_own, lies_within, without_checks

Form = Callable[[dist.Distribution, Array], Array]
"""Log density from a distribution and a value."""
ROUNDING = 0.01
"""How far above zero a log probability may be by rounding, in nats."""
EXTREME = 1e15
"""Parameters above this, or below its reciprocal, may not be folded into other constants; see `_kept_apart`."""


def _known(*names: str) -> tuple[type, ...]:
    """Those of NumPyro's classes that the installed release has, exported or not."""
    found = (getattr(dist, n, None) or getattr(discrete, n, None) for n in names)
    return tuple(cls for cls in found if cls is not None)


FORMS: Mapping[type, Form] = {
    dist.Poisson: poisson,
    dist.BinomialProbs: binomial_probs,
    dist.BinomialLogits: binomial_logits,
    dist.GammaPoisson: gamma_poisson,
    dist.NegativeBinomial2: gamma_poisson,
    dist.NegativeBinomialProbs: negative_binomial_probs,
    dist.NegativeBinomialLogits: negative_binomial_logits,
    dist.BetaBinomial: beta_binomial,
    dist.BetaNegativeBinomial: beta_negative_binomial,
    dist.DirichletMultinomial: dirichlet_multinomial,
    dist.MultinomialProbs: multinomial_probs,
    dist.MultinomialLogits: multinomial_logits,
    dist.StudentT: student_t,
    dist.VonMises: von_mises,
    dist.Gamma: gamma,
    dist.Chi2: gamma,
    dist.InverseGamma: inverse_gamma,
    dist.Beta: beta,
    dist.BetaProportion: beta,
    dist.Dirichlet: dirichlet,
    dist.MultivariateNormal: multivariate_normal,
    dist.MultivariateStudentT: multivariate_student,
    dist.LKJCholesky: lkj_cholesky,
    dist.Kumaraswamy: kumaraswamy,
    dist.DoublyTruncatedPowerLaw: power_law,
    dist.OrderedLogistic: ordered_logistic,
    **dict.fromkeys(_known("LeftTruncatedGamma"), left_truncated_gamma),
    **dict.fromkeys(_known("RightTruncatedGamma"), right_truncated_gamma),
    **dict.fromkeys(_known("TwoSidedTruncatedGamma"), truncated_gamma),
    dist.LeftTruncatedDistribution: left_truncated,
    dist.RightTruncatedDistribution: right_truncated,
    dist.TwoSidedTruncatedDistribution: truncated,
    dist.LeftCensoredDistribution: left_censored,
    dist.RightCensoredDistribution: right_censored,
    dist.IntervalCensoredDistribution: interval_censored,
}
"""Stable forms by class of distribution."""
BASES: Mapping[type, Mapping[type, Any]] = {
    **dict.fromkeys(
        (dist.LeftTruncatedDistribution, dist.RightTruncatedDistribution, dist.TwoSidedTruncatedDistribution),
        MASSES,
    ),
    **dict.fromkeys(
        (dist.LeftCensoredDistribution, dist.RightCensoredDistribution, dist.IntervalCensoredDistribution),
        FAMILIES,
    ),
}
"""What such a form knows about the distribution that is cut or censored, where it is one of these."""
SMALL = 200
"""Counts up to here have log factorials whose rounding does not matter, and NumPyro's forms are quicker."""
IF_SMALL: Mapping[type, tuple[str | None, Form | None]] = {
    dist.Poisson: (None, None),
    dist.BinomialProbs: ("total_count", None),
    dist.BinomialLogits: ("total_count", None),
    dist.MultinomialProbs: ("total_count", None),
    dist.MultinomialLogits: ("total_count", None),
    dist.GammaPoisson: (None, few_gamma_poisson),
    dist.NegativeBinomial2: (None, few_gamma_poisson),
    dist.NegativeBinomialProbs: (None, few_negative_binomial_probs),
    dist.NegativeBinomialLogits: (None, few_negative_binomial_logits),
    dist.BetaBinomial: ("total_count", few_beta_binomial),
}
"""Families of which a quicker form is as good while an attribute is small, or the value itself (None): kayn's,
or the family's own (None)."""
SHARES = (
    dist.BernoulliLogits,
    dist.BernoulliProbs,
    dist.CategoricalLogits,
    dist.CategoricalProbs,
    dist.Delta,
    dist.Unit,
)
"""Laws whose log probabilities are logarithms of a share, which no rounding lifts above zero,
or that are no probabilities."""
MADE_OF = (
    dist.MaskedDistribution,
    dist.ExpandedDistribution,
    dist.Independent,
    *_known("ZeroInflatedProbs", "HurdleProbs"),
    dist.MixtureSameFamily,
    dist.MixtureGeneral,
    dist.TransformedDistribution,
)
"""Distributions that are made of others (`changed_parts`)."""


def log_density(fn: dist.Distribution, value: Array) -> Array:
    """The log density in the form of `dependable`: value [*sample, *batch, *event] to [*sample, *batch], nats."""
    return dependable(fn, value).log_prob(value)


def dependable(fn: dist.Distribution, value: Array) -> dist.Distribution:
    """The distribution with its innermost log densities in forms without selections and without loss of digits,
    where there are such.

    Args:
        value: where the density will be taken; data that are concrete numbers make for a simpler form.
    """
    fn = _kept_apart(fn)
    if type(fn) is dist.BernoulliLogits:
        return (_Binary if _is_binary(value) else _Fractional)(fn.logits, validate_args=False)
    form = _form(fn, value)
    if form is not None:
        return _Rewritten(fn, form)
    if isinstance(fn, MADE_OF):
        # what a transformed variable's base is asked for is another value
        given = 0.5 if isinstance(fn, dist.TransformedDistribution) else value
        fn = changed_parts(fn, lambda part: dependable(part, given))
    if checks_values(fn) and fn.support in (constraints.real, constraints.real_vector):
        # NumPyro replaces log densities outside of the support; here that is at infinity and NaN,
        # which have none anyway
        fn = without_checks(fn)
    return fn


def _kept_apart(fn: dist.Distribution) -> dist.Distribution:
    """With extreme parameters out of the sight of compilers, which turn `(x / c) ** 2` into `x ** 2 * (1 / c ** 2)`.

    For c = 1e-20 that is NaN at x = 0, and for c = 1e20 at x = c: the square of the constant is no float.
    """
    if not is_numpyros_own(fn):
        return fn
    leaves, form = jax.tree.flatten(fn)
    if not any(map(_is_extreme, leaves)):
        return fn
    return jax.tree.unflatten(
        form, [jax.lax.optimization_barrier(jnp.asarray(x)) if _is_extreme(x) else x for x in leaves]
    )


def _is_extreme(leaf: Array) -> bool:
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return False
    size = np.abs(np.asarray(leaf, np.float64))
    return bool(np.any((size > EXTREME) & np.isfinite(size) | (size < 1 / EXTREME) & (size > 0)))


def _form(fn: dist.Distribution, value: Array) -> Form | None:
    """What gives a distribution's log density, if that is not its own method."""
    kind = type(fn)
    known = kind in FORMS and (kind not in BASES or type(fn.base_dist) in BASES[kind])
    form: Form | None
    if kind in IF_SMALL and _is_small(fn, value, IF_SMALL[kind][0]):
        form = IF_SMALL[kind][1]
    elif known and not getattr(fn, "is_sparse", False):
        form = FORMS[kind]
    elif isinstance(fn, (*MADE_OF, *SHARES)) or not _is_discrete(fn):
        form = None
    else:
        form = _own
    return _noticed(form) if form is not None and _is_discrete(fn) else form


def _own(fn: dist.Distribution, value: Array) -> Array:
    return fn.log_prob(value)


def _noticed(form: Form) -> Form:
    """With +inf for a log probability above zero."""

    def log_prob(fn: dist.Distribution, value: Array) -> Array:
        found = form(fn, value)
        return jnp.where(found > ROUNDING, jnp.inf, found)

    return log_prob


def _is_discrete(fn: dist.Distribution) -> bool:
    return bool(getattr(fn.support, "is_discrete", False))


def _is_small(fn: dist.Distribution, value: Array, name: str | None) -> bool:
    """Whether counts, the value or an attribute, are known to be small."""
    counts = value if name is None else getattr(fn, name)
    return not isinstance(counts, jax.core.Tracer) and bool(np.all(np.asarray(counts) <= SMALL))


class _Rewritten(dist.Distribution):
    """A distribution with another form of its log density."""

    def __init__(self, base_dist: dist.Distribution, form: Form):
        self.base_dist, self.form = base_dist, form
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def log_prob(self, value: Array) -> Array:
        fn = self.base_dist
        found = self.form(fn, value)
        if not checks_values(fn) or fn.support is constraints.real or self.form is _own:
            return found
        return jnp.where(lies_within(fn, value), found, -jnp.inf)


class _Binary(dist.BernoulliLogits):
    def log_prob(self, value: Array) -> Array:
        return log_sigmoid(self.logits * (2.0 * value - 1.0))


class _Fractional(dist.BernoulliLogits):
    """Data that are only known when the program runs may lie between 0 and 1."""

    def log_prob(self, value: Array) -> Array:
        # a clipped logit stands for an infinite one: the log density is exactly 0,
        # or so low that it counts as impossible
        far = jnp.finfo(jnp.result_type(self.logits, float)).max / 1e4
        logits = jnp.clip(self.logits, -far, far)
        return value * logits + log_sigmoid(-logits)


def _is_binary(value: Array) -> bool:
    """Whether a value is known to be 0 or 1."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return True
    return not isinstance(value, jax.core.Tracer) and bool(np.isin(np.asarray(value), (0.0, 1.0)).all())
