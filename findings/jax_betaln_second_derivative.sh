#!/usr/bin/env bash
# jax 0.10.2, numpyro 0.22.0, scipy 1.17.1, Python 3.11, CPU, float64.
#
# Behaviour: `jax.scipy.special.betaln(a, b)` has right values and first derivatives, and right second derivatives
# unless a and b are the same number: there it orders its arguments by a minimum and a maximum, neither of which has a
# second derivative. At a = b = 2 it gives .039 for .361. NumPyro's NegativeBinomial2 inherits that where the
# concentration is the count plus one, whole numbers as people write them: the curvature of its log probability at a
# count of 1 and a concentration of 2 is .29 for -.03. JAX 0.12.0 has the right ones.
#
# One would guess: that a smooth function has its second derivative everywhere.
#
# Output seen:
# betaln at (2.0, 2.0): 0.038644, exact 0.361111
# betaln at (2.001, 2.0): 0.360787, exact 0.360787
# log probability of 1 from NegativeBinomial2(3, 2): 0.292467, at a concentration of 2.001: -0.029928
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpyro==0.22.0 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu JAX_ENABLE_X64=1 "$work/venv/bin/python" - <<'PYTHON'
import sys

import jax
import numpyro.distributions as dist
from jax.scipy.special import betaln
from scipy.special import polygamma


def curvature(a):
    return float(jax.grad(jax.grad(lambda x: betaln(x, 2.0)))(a))


def of_counts(concentration):
    return float(jax.grad(jax.grad(lambda c: dist.NegativeBinomial2(3.0, c).log_prob(1)))(concentration))


wrong = []
for a in (2.0, 2.001):
    exact = float(polygamma(1, a) - polygamma(1, a + 2))
    print(f"betaln at ({a}, 2.0): {curvature(a):.6f}, exact {exact:.6f}")
    wrong.append(abs(curvature(a) - exact) > 0.1)
print(
    f"log probability of 1 from NegativeBinomial2(3, 2): {of_counts(2.0):.6f}, "
    f"at a concentration of 2.001: {of_counts(2.001):.6f}"
)
wrong.append(abs(of_counts(2.0) - of_counts(2.001)) > 0.1)
sys.exit(0 if wrong == [True, False, True] else 1)
PYTHON
