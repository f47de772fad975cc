#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2, Python 3.11, CPU, float32.
#
# Behaviour: under jit, `(x / c) ** 2` of a scalar x and a literal c is computed as `x ** 2 * (1 / c ** 2)`. With c =
# 1e-20 or 1e20 the square of the constant is no float32, and the result is NaN, although x / c is 2 and its square 4.
# Without jit it is 4.
#
# One would guess: the same number with and without jit. A log density Normal(0, 1e-20) of a scalar is NaN for the
# same reason.
#
# Output seen:
# c = 1e-20: 4.0 without jit, nan with jit
# c = 1e+20: 4.0 without jit, nan with jit
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

same = True
for c in (1e-20, 1e20):
    x = jnp.float32(2 * c)
    plain = float(jnp.square(x / c))
    compiled = float(jax.jit(lambda x, c=c: jnp.square(x / c))(x))
    print(f"c = {c:g}: {plain} without jit, {compiled} with jit")
    same &= plain == 4.0 and compiled != compiled
sys.exit(0 if same else 1)
PYTHON
