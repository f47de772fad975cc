"""Sums over one variable after the other, done as one.

Where the result of a sum is only added to factors of its own variables and summed again, all can be added before the first sum. That is one pass
instead of several, each with kernels of its own to compile, and rounds once. Draws walk back along the plan as it was: one variable at a
time is quicker to pick than a combination.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache

from kayn.contraction.plan import Combine, Plan, Step

LARGEST = 2**20
"""Entries of a sum up to which others join it: every factor that is added costs a pass over them on the way back."""


@lru_cache(maxsize=256)
def joined(plan: Plan) -> Plan:
    """The same sum in fewer steps."""
    uses = Counter([*plan.results, *(slot for step in plan.steps for slot in step.read)])
    steps: dict[int, Step] = {}
    for step in plan.steps:
        if isinstance(step, Combine):
            for mine, other in ((step.left, step.right), (step.right, step.left)):
                before = steps.get(mine) if mine is not None and uses[mine] == 1 else None
                if isinstance(before, Combine) and _joins(plan, before, other):
                    del steps[before.out]
                    step = replace(
                        before,
                        out=step.out,
                        eliminated=(*before.eliminated, *step.eliminated),
                        norm=before.norm + step.norm,
                        more=before.more if other is None else (*before.more, other),
                    )
                    break
        steps[step.out] = step
    return replace(plan, steps=tuple(steps.values()))


def _joins(plan: Plan, before: Combine, other: int | None) -> bool:
    """Whether a sum over what `before` leaves and another array can be done together with it."""
    fits = other is None or set(plan.axes[other]) <= set(plan.axes[before.out])
    entries = math.prod(plan.size[a] for a in plan.joint_axes(before))
    return bool(before.eliminated) and fits and entries <= LARGEST and not plan.is_matmul(before)
