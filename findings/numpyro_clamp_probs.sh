#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2, Python 3.11, CPU; float32.
#
# Behaviour: clamp_probs, through which Bernoulli and Categorical take their probabilities, raises a zero to the
# smallest normal number but lowers a one to one minus the spacing of floats there. What cannot happen beside a
# probability of one has a log density of -15.9, what cannot happen because its own is zero -87.3.
#
# One would guess: the same log density, -inf, whichever way the law is written; at least one that is the same under
# a change of what is called success.
#
# Output seen:
# a failure where success is certain: -15.9; a success where failure is certain: -87.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import sys

import numpyro.distributions as dist

failure = float(dist.Bernoulli(1.0).log_prob(0))
success = float(dist.Bernoulli(0.0).log_prob(1))
print(f"a failure where success is certain: {failure:.1f}; a success where failure is certain: {success:.1f}")
sys.exit(0 if abs(failure + 15.9) < 0.1 and abs(success + 87.3) < 0.1 else 1)
PYTHON
