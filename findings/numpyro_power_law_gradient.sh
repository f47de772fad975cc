#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2, Python 3.11, CPU; float32.
#
# Behaviour: the derivatives of DoublyTruncatedPowerLaw's log density with respect to its ends `low` and `high` are
# wrong. Its custom derivative is that of the density, not of its logarithm, and has the wrong sign at `high`: a wider
# interval has a lower density, and the derivative says a higher one.
#
# One would guess: jax.grad agrees with a difference quotient, as it does for alpha.
#
# Output seen:
# high: jax.grad 0.603, difference quotient -0.410
# low: jax.grad 3.413, difference quotient 2.320
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import sys

import jax
import numpyro.distributions as dist

def log_density(low, high):
    return dist.DoublyTruncatedPowerLaw(-2.5, low, high, validate_args=False).log_prob(1.2)

by_high = float(jax.grad(log_density, 1)(1.0, 2.0)), float((log_density(1.0, 2.01) - log_density(1.0, 1.99)) / 0.02)
by_low = float(jax.grad(log_density, 0)(1.0, 2.0)), float((log_density(1.01, 2.0) - log_density(0.99, 2.0)) / 0.02)
for name, (gradient, quotient) in (("high", by_high), ("low", by_low)):
    print(f"{name}: jax.grad {gradient:.3f}, difference quotient {quotient:.3f}")
sys.exit(0 if by_high[0] > 0 > by_high[1] and abs(by_low[0] - by_low[1]) > 0.5 else 1)
PYTHON
