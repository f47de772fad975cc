"""Cut a plan into parts: some particles of a variable, or some elements of a plate, at a time.

Arrays with that axis are then never held whole.
"""

from __future__ import annotations

from dataclasses import replace

from kayn.contraction.plan import Plan, Term
from kayn.contraction.steps.product import products, settling
from kayn.contraction.steps.sliced import Sliced, in_parts


def sliceable(plan: Plan) -> dict[str, int]:
    """Variables without plates whose sum can be cut, with the slot that is left: those that are no chain's states."""
    aliases = {v for s in plan.steps for v in s.aliases}
    return {
        v: s.out for s in plan.steps for v in s.summed if not plan.scope[v] and v not in aliases and plan.size[v] > 1
    }


def divisible(plan: Plan) -> dict[int, str]:
    """Plates that are multiplied out after sums within their elements, by the slot that is left.

    Left out are plates that rows are linked to or through, and plates that all variables have an index over, whose
    elements `by_element` asks for.
    """
    linked = {p for links in plan.links for link in links for p in (link.source, link.target)}
    outer = set.intersection(*(set(scope) for _, scope in plan.scopes)) if plan.scopes else set()
    settled = settling(plan)
    return {
        s.out: s.plate
        for s in products(plan)
        if s.out not in settled and s.plate not in linked | outer and plan.size[s.plate] > 1
    }


def sliced(plan: Plan, out: int, axis: str, parts: int) -> Plan:
    """The same sum, with the steps that lead to one slot in parts.

    Args:
        out: what is left when the axis has vanished.
        axis: a variable or plate; see `sliceable` and `divisible`.
        parts: a divisor of its size.

    Raises:
        ValueError: it is none.
    """
    size = plan.size[axis]
    if size % parts:
        raise ValueError(f"{axis} has {size} elements, which {parts} parts do not divide")
    # of a variable, factors are made part by part, so that their plates are multiplied out inside; of a plate they are
    # made whole, and what comes in parts already is not made twice
    outside = set() if axis in plan.scope else settling(plan) | {s.out for s in in_parts(plan)}
    last = next(s for s in plan.steps if s.out == out)
    inside, wanted = [last], set(last.read)
    for step in reversed(plan.steps[: plan.steps.index(last)]):
        if step.out in wanted - outside and axis in plan.axes[step.out]:
            inside.insert(0, step)
            wanted |= set(step.read)
    made = {s.out for s in inside}
    sources = tuple(dict.fromkeys(slot for s in inside for slot in s.read if slot not in made))
    number = {slot: i for i, slot in enumerate((*sources, *(s.out for s in inside)))}
    names = [plan.terms[s].name if s < len(plan.terms) else f"slot {s}" for s in sources]
    body = Plan(
        tuple(Term(name, plan.axes[s], plan.links[s]) for name, s in zip(names, sources, strict=True)),
        tuple(s.renumbered(number) for s in inside),
        tuple(plan.axes[s] for s in number),
        tuple(plan.links[s] for s in number),
        (number[out],),
        plan.sizes,
        plan.scopes,
    )
    whole = Sliced(sources, out, axis, parts, body.resized(axis, size // parts))
    return replace(plan, steps=tuple(whole if s is last else s for s in plan.steps if s is last or s.out not in made))
