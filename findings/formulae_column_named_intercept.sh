#!/usr/bin/env bash
# formulae 0.9.0, pandas 3.1.1, Python 3.11.
#
# Behaviour: a numeric column called `Intercept`, used as a predictor, takes the place of the constant: the design
# matrix has one column instead of two, and nothing is said.
#
# One would guess: a constant and a slope, as with any other name, or an error (patsy raises one for the same table).
#
# Output seen:
# y ~ Intercept -> terms ['Intercept'], matrix [[1.0], [4.0], [9.0], [16.0]]
# y ~ x         -> terms ['Intercept', 'x'], matrix [[1.0, 1.0], [1.0, 4.0], [1.0, 9.0], [1.0, 16.0]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip formulae==0.9.0 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PYTHON'
import sys

import pandas as pd
from formulae import design_matrices

table = pd.DataFrame({"y": [1.0, 3, 2, 5], "x": [1.0, 4, 9, 16], "Intercept": [1.0, 4, 9, 16]})
found = {}
for formula in ("y ~ Intercept", "y ~ x"):
    common = design_matrices(formula, table).common
    found[formula] = common.design_matrix
    print(f"{formula:13} -> terms {list(common.terms)}, matrix {common.design_matrix.tolist()}")
shapes = [m.shape for m in found.values()]
sys.exit(0 if shapes == [(4, 1), (4, 2)] and list(found["y ~ Intercept"][:, 0]) == list(table["x"]) else 1)
PYTHON
