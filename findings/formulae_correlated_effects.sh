#!/usr/bin/env bash
# formulae 0.9.0, pandas 3.1.1, Python 3.11.
#
# Behaviour: `(1 + x | g)` and `(1 | g) + (0 + x | g)` give the same terms and the same design matrices, with nothing
# that tells them apart.
#
# One would guess: since the grammar is lme4's, that what stands in one pair of brackets stays together, as there it
# means intercepts and slopes that are correlated, and two pairs mean that they are not. A package that wants the
# difference has to read the text itself.
#
# Output seen:
# y ~ x + (1 + x | g)            -> ['1|g', 'x|g'], matrix (4, 4)
# y ~ x + (1 | g) + (0 + x | g)  -> ['1|g', 'x|g'], matrix (4, 4)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip formulae==0.9.0 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import pandas as pd
from formulae import design_matrices

table = pd.DataFrame({"y": [1.0, 2, 3, 4], "x": [0.0, 1, 2, 4], "g": list("aabb")})
found = []
for formula in ("y ~ x + (1 + x | g)", "y ~ x + (1 | g) + (0 + x | g)"):
    group = design_matrices(formula, table).group
    matrix = group.design_matrix.toarray()
    print(f"{formula:30} -> {list(group.terms)}, matrix {matrix.shape}")
    found.append((list(group.terms), [repr(t) for t in group.terms.values()], matrix))
(names, told, matrix), (others, also, again) = found
sys.exit(0 if names == others and told == also and np.array_equal(matrix, again) else 1)
PYTHON
