#!/usr/bin/env bash
# formulae 0.6.2 and 0.9.0, pandas 2.3.3, Python 3.11.
#
# Behaviour: `bs(x, df=4)` makes other columns. In 0.6.2 they are a B-spline basis: none is negative, and with the first
# function of the basis, which is left out, they add up to one. In 0.9.0 every column has its mean taken off. Nothing
# warns.
#
# One would guess: the same columns, as in R's `splines::bs` and in patsy; a prior of the coefficients, the intercept's
# in particular, says something else in the two releases.
#
# Output seen:
# 0.6.2: means of columns [0.237, 0.238, 0.237, 0.144], least entry 0.000
# 0.9.0: means of columns [0.0, 0.0, 0.0, 0.0], least entry -0.519
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for release in 0.6.2 0.9.0; do
    python3 -m venv "$work/$release"
    "$work/$release/bin/pip" install --quiet --disable-pip-version-check \
        "formulae==$release" pandas==2.3.3 numpy==2.3.5 scipy==1.16.3
    "$work/$release/bin/python" - "$release" <<'PYTHON'
import sys

import numpy as np
import pandas as pd
from formulae import design_matrices

release = sys.argv[1]
x = np.linspace(0.0, 1.0, 21)
common = design_matrices("y ~ bs(x, df=4)", pd.DataFrame({"x": x, "y": x})).common
columns = np.asarray(common.design_matrix)[:, 1:]
means, least = columns.mean(0), columns.min()
print(f"{release}: means of columns {np.abs(means.round(3)).tolist()}, least entry {least:.3f}")
basis, centred = least >= 0 and (means > 0.1).all(), least < -0.1 and np.allclose(means, 0.0, atol=1e-6)
sys.exit(0 if {"0.6.2": basis, "0.9.0": centred}[release] else 1)
PYTHON
done
