"""Steps that can be done as one.

Where the result of a sum is only added to factors of its own variables and summed again, all can be added before the
first sum. That is one pass instead of several, each with kernels of its own to compile, and rounds once. Draws walk
back along the plan as it was: one variable at a time is quicker to pick than a combination.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from kayn.contraction.plan import Plan, Step


@lru_cache(maxsize=256)
def joined(plan: Plan) -> Plan:
    """The same sum in fewer steps."""
    uses = Counter([*plan.results, *(slot for step in plan.steps for slot in step.read)])
    steps: dict[int, Step] = {}
    for step in plan.steps:
        for slot in step.read:
            before = steps.get(slot) if uses[slot] == 1 else None
            both = None if before is None else step.together(plan, before)
            if both is not None:
                del steps[slot]
                step = both
                break
        steps[step.out] = step
    return replace(plan, steps=tuple(steps.values()))
