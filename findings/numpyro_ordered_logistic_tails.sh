#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2, Python 3.11, CPU; float32 and float64 alike.
#
# Behaviour: OrderedLogistic takes differences of cumulative probabilities, which are 0 once both round to one. With a
# predictor of -40 and cutpoints -1 and 2, categories 1 and 2 have a log probability of -inf; they have -39.05 and
# -42. The mirrored case, a predictor of 41, is right.
#
# One would guess: finite log probabilities, as the formula has, symmetric under a change of sign.
#
# Output seen:
# float32: -inf at predictor -40, -39.051 at 41 (mirrored), right is -39.051
# float64: -inf at predictor -40, -39.051 at 41 (mirrored), right is -39.051
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from scipy.special import log_expit
import numpy as np

# log of expit(2 + 40) - expit(-1 + 40)
right = log_expit(42.0) + log_expit(-39.0) + np.log(-np.expm1(-3.0))
same = True
for wide in (False, True):
    with jax.enable_x64(wide):
        below = float(dist.OrderedLogistic(jnp.array(-40.0), jnp.array([-1.0, 2.0])).log_prob(1))
        above = float(dist.OrderedLogistic(jnp.array(41.0), jnp.array([-1.0, 2.0])).log_prob(1))
    bits = 64 if wide else 32
    print(f"float{bits}: {below:.3f} at predictor -40, {above:.3f} at 41 (mirrored), right is {right:.3f}")
    same &= below == -np.inf and abs(above - right) < 1e-3
sys.exit(0 if same else 1)
PYTHON
