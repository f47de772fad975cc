#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2, Python 3.11, CPU; float32 and float64.
#
# Behaviour: RightCensoredDistribution clips the distribution function at one minus the machine's epsilon, so no log
# survival is below -15.94 in float32 and -36.04 in float64. For an exponential law at 300 it should be -300; beyond
# the floor the gradient is zero.
#
# One would guess: -300, or a warning.
#
# Output seen:
# float32: log survival at 300 is -15.942, its derivative by the rate 0.000
# float64: log survival at 300 is -36.044, its derivative by the rate 0.000
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

same = True
for wide, floor in ((False, -15.942), (True, -36.044)):
    with jax.enable_x64(wide):
        def log_survival(rate):
            return dist.RightCensoredDistribution(dist.Exponential(rate), jnp.array(1)).log_prob(jnp.array(300.0))

        value, slope = jax.value_and_grad(log_survival)(1.0)
    print(f"float{64 if wide else 32}: log survival at 300 is {value:.3f}, its derivative by the rate {slope:.3f}")
    same &= abs(float(value) - floor) < 1e-2 and abs(float(slope)) < 1
sys.exit(0 if same else 1)
PYTHON
