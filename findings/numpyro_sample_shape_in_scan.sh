#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2, Python 3.11, CPU; float32.
#
# Behaviour: numpyro.sample(..., sample_shape=(N,)) within numpyro.contrib.control_flow.scan of T steps draws values
# [T, N], but the site that the loop tells of keeps laws of batch shape [T]. Where N is T, log_density takes the law of
# step t for draw number t of every step; no error or warning.
#
# One would guess: the density of N draws of each step, as with .expand([N]), or as within a plate, where sample_shape
# becomes part of the batch.
#
# Output seen (three steps with means 0, 10 and 20, three draws of each at its mean):
# expanded: -8.3; by sample_shape: -608.3; right: -8.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import math
import sys

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

N = T = 3
means = 10.0 * jnp.arange(T)


def model(expand):
    def step(carry, mean):
        if expand:
            numpyro.sample("z", dist.Normal(mean, 1.0).expand([N]))
        else:
            numpyro.sample("z", dist.Normal(mean, 1.0), sample_shape=(N,))
        return carry, None

    scan(step, 0.0, means)


values = {"z": jnp.repeat(means[:, None], N, 1)}
expanded, repeated = (float(log_density(model, (way,), {}, values)[0]) for way in (True, False))
right = -N * T * math.log(2 * math.pi) / 2
print(f"expanded: {expanded:.1f}; by sample_shape: {repeated:.1f}; right: {right:.1f}")
sys.exit(0 if abs(expanded - right) < 0.1 and abs(repeated + 608.3) < 0.1 else 1)
PYTHON
