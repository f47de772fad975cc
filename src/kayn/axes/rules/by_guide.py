"""What a guide with dependent sites demands, where densities are mixtures over guide parents.

The mixture over an axis's guide parents is the law of its particles only if no parent descends from the axis. So two
axes become one if the guide goes from one to the other and back (a -> b -> c with a and c on one axis), and latents
that share an axis may depend on each other within one plate element only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from kayn.axes.state import State


def several_elements(state: State) -> State | None:
    """Latents that share an axis give up plates over which one is drawn from several elements of another."""
    for axis in (a for a in state.axes if len(a.latents) > 1):
        for name in axis.latents:
            for parent, aligned in state.case.guide_parents.get(name, {}).items():
                gone = tuple(p for p in axis.scope if parent in axis.latents and p not in aligned)
                if gone:
                    return state.dropped(axis, gone, f"the guide draws {name} from several elements of {parent}")
    return None


def there_and_back(state: State) -> State | None:
    """Two axes become one if the guide goes from one to the other and back."""
    if all(len(a.latents) == 1 for a in state.axes):
        return None
    parents = _on_cycles(_parents(state))
    for first in (a for a in state.axes if a in parents):
        for second in (a for a in state.axes if a in parents[first]):
            if _descends(second, first, parents):
                return state.merged(first, second, "the guide goes from one to the other and back")
    return None


Parents = Mapping[Hashable, set[Hashable]]
"""By axis, or site that is on none, those it is drawn given."""


def _parents(state: State) -> Parents:
    sites = state.case.guide_parents
    node: dict[str, Hashable] = {n: n for n in sites} | {n: a for a in state.axes for n in a.latents}
    parents: dict[Hashable, set[Hashable]] = {node[n]: set() for n in sites}
    for name, names in sites.items():
        parents[node[name]] |= {node[p] for p in names} - {node[name]}
    return parents


def _on_cycles(parents: Parents) -> Parents:
    """Without what has no parents, or no children, and is on no cycle therefore."""
    children = set[Hashable]().union(*parents.values())
    left = {n: p for n, p in parents.items() if p and n in children}
    if len(left) == len(parents):
        return parents
    return _on_cycles({n: p & left.keys() for n, p in left.items()})


def _descends(node: Hashable, ancestor: Hashable, parents: Parents) -> bool:
    seen, todo = {node}, [node]
    while todo:
        new = parents[todo.pop()] - seen
        seen |= new
        todo.extend(new)
    return ancestor in seen
