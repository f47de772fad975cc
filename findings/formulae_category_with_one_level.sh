#!/usr/bin/env bash
# formulae 0.9.0, pandas 3.1.1, Python 3.11.
#
# Behaviour: a predictor of text that has one value in all rows becomes a term without columns; there is no error and no
# warning, and a model made of the matrices has no effect of it.
#
# One would guess: an error, as R's `model.matrix`, and with it lme4 and brms, which share the grammar, refuse factors
# with fewer than two levels; it happens where a table was filtered to one country.
#
# Output seen:
# y ~ x + place -> terms ['Intercept', 'x', 'place'], columns 2, levels of place []
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip formulae==0.9.0 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import pandas as pd
from formulae import design_matrices

warnings.simplefilter("error")
table = pd.DataFrame({"y": [1.0, 3, 2, 5], "x": [1.0, 4, 9, 16], "place": "here"})
common = design_matrices("y ~ x + place", table).common
levels = [*common.terms["place"].levels]
columns = common.design_matrix.shape[1]
print(f"y ~ x + place -> terms {list(common.terms)}, columns {columns}, levels of place {levels}")
sys.exit(0 if columns == 2 and not levels and "place" in common.terms else 1)
PYTHON
