"""What an order to contract in demands: no two crossed groupings."""

from __future__ import annotations

from kayn.axes.state import State


def no_order(state: State) -> State | None:
    """Where there is no order, the axis in the way that loses fewest combinations gives up its plates."""
    if state.stuck is None:
        return None
    by_name = {a.name: state.real(a) for a in state.batched}
    options = [(by_name[v], tuple(sorted(p))) for v, p in state.stuck.blocked]
    axis, plates = min(options, key=lambda o: (state.loss(*o), o[0].name))
    rivals = ", ".join(dict.fromkeys(n for a, _ in options if a is not axis for n in a.latents))
    reason = f"its groups cross those of {rivals}" if rivals else "its plates leave no elimination order"
    return state.dropped(axis, plates, reason)
