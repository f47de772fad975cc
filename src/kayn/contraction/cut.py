"""Cut a plan into parts: some particles of a variable, or some elements of a plate, at a time, so that arrays with that axis are never held whole."""

from __future__ import annotations

from dataclasses import replace

from kayn.contraction.plan import Chain, Combine, Plan, Product, Sliced, Step, Term, chain_aliases


def sliceable(plan: Plan) -> dict[str, int]:
    """Variables without plates whose sum can be cut, those that are no states of a chain, with the slot that is left."""
    aliases = {v for s in plan.steps if isinstance(s, Chain) for v in chain_aliases(s)}
    return {
        v: s.out
        for s in plan.steps
        if isinstance(s, Combine)
        for v in s.eliminated
        if not plan.scope[v] and v not in aliases and plan.size[v] > 1
    }


def divisible(plan: Plan) -> dict[int, str]:
    """Plates that are multiplied out after sums within their elements, by the slot that is left.

    Left out are plates that rows are linked to or through, and plates that all variables have an index over, whose elements
    `by_element` asks for.
    """
    linked = {p for links in plan.links for link in links for p in (link.source, link.target)}
    outer = set.intersection(*(set(scope) for _, scope in plan.scopes)) if plan.scopes else set()
    settling = _settling(plan)
    return {
        s.out: s.plate
        for s in plan.steps
        if isinstance(s, Product) and s.out not in settling and s.plate not in linked | outer and plan.size[s.plate] > 1
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
    # of a variable, factors are made part by part, so that their plates are multiplied out inside; of a plate they are made whole, and
    # what comes in parts already is not made twice
    outside = set() if axis in plan.scope else _settling(plan) | {s.out for s in plan.steps if isinstance(s, Sliced)}
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
        tuple(_renumbered(s, number) for s in inside),
        tuple(plan.axes[s] for s in number),
        tuple(plan.links[s] for s in number),
        (number[out],),
        plan.sizes,
        plan.scopes,
    )
    whole = Sliced(sources, out, axis, parts, _resized(body, axis, size // parts))
    return replace(plan, steps=tuple(whole if s is last else s for s in plan.steps if s is last or s.out not in made))


def _settling(plan: Plan) -> set[int]:
    """Slots of terms and of what plate products alone make of them."""
    slots = set(range(len(plan.terms)))
    for step in plan.steps:
        if isinstance(step, Product) and step.source in slots:
            slots.add(step.out)
    return slots


def _renumbered(step: Step, number: dict[int, int]) -> Step:
    if isinstance(step, Combine):
        right = None if step.right is None else number[step.right]
        return replace(step, left=number[step.left], right=right, out=number[step.out])
    if isinstance(step, Product):
        return replace(step, source=number[step.source], out=number[step.out])
    return replace(step, sources=tuple(number[s] for s in step.sources), out=number[step.out])


def _resized(plan: Plan, axis: str, size: int) -> Plan:
    sizes = tuple((a, size if a == axis else n) for a, n in plan.sizes)
    steps = tuple(
        replace(s, body=_resized(s.body, axis, size)) if isinstance(s, Chain | Sliced) else s for s in plan.steps
    )
    return replace(plan, sizes=sizes, steps=steps)
