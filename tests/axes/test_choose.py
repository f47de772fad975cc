"""Each rule by which axes are coupled, on graphs written down by hand; strategies; the order of rules."""

import typing

import pytest

from kayn.axes import choose
from kayn.axes.choose import choose_layout, factor_by_factor, kept_layout, settled
from kayn.axes.request import make_request
from kayn.axes.rules.by_guide import several_elements, there_and_back
from kayn.axes.rules.by_order import no_order
from kayn.axes.rules.by_reads import unlike_reads
from kayn.axes.rules.by_size import (
    MAX_MERGED_COORDINATES,
    large_contraction,
    large_factor,
    large_particles,
    large_step,
    much_work,
)
from kayn.axes.state import Case, State, TooLarge
from kayn.axes.strategies import STRATEGIES, Strategy, proposed
from kayn.axes.types import Constraint
from kayn.errors import StructureError
from kayn.graph.lost import Lost
from kayn.graph.types import MIXED, Link
from kayn.support import options
from tests.axes.graphs import PLATES, apply, state, structure, told

SEQUENCE = structure(
    {"i": 4, "t": 5, "u": 1}, {"m": "", "a": "i", "s": "it", "z": "it", "o": "u"}, {}, steps="t", enumerated="z"
)


# -- what is proposed


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("parallel", {"m": "", "a": "i", "s": "it", "z": "it", "o": ""}),
        ("global", {"maso": "", "z": "it"}),
        ("local", {"mo": "", "as": "i", "z": "it"}),
    ],
)
def test_strategies(strategy, expected):
    """Enumerated latents keep axes of their own; plates of one element are none."""
    proposal = state(SEQUENCE, strategy=strategy)
    assert {"".join(a.latents): "".join(a.scope) for a in proposal.axes} == expected
    assert [a.size for a in proposal.axes if a.enumerated] == [3]


def test_strategies_are_those_that_can_be_asked_for():
    assert set(STRATEGIES) == set(typing.get_args(typing.get_args(options.Strategy)[0]))


def test_a_strategy_is_an_entry(monkeypatch):
    """Two by two, without plates."""

    def twos(case):
        names = [z.name for z in case.graph.latents]
        return [tuple(names[i : i + 2]) for i in range(0, len(names), 2)]

    monkeypatch.setitem(STRATEGIES, "twos", Strategy(twos, lambda case, plates: frozenset()))
    request = make_request()
    found = choose_layout(structure(PLATES, dict.fromkeys("abc", "i"), {}), request.__class__(5, "twos"))
    assert [(a.latents, a.scope, a.size) for a in found.axes] == [(("a", "b"), (), 5), (("c",), (), 5)]


def test_a_plate_of_one_element_that_stands_for_others_is_one():
    assert state(structure({"u": 1}, {"o": "u"}, {}, full={"u": 9})).axes[0].scope == ("u",)


def test_the_guide_and_the_user_join_and_couple():
    """Groups that overlap are one; what is asked for is reported as that."""
    found = structure(PLATES, {"a": "i", "b": "i", "c": "ij", "d": "ij"}, {})
    case = Case(found, make_request(groups=[("a", "b")], couple={"d": "j"}))
    proposal = proposed(case, [Constraint(("b", "c"), (("c", 0),), "drawn jointly")])
    assert {"".join(a.latents): "".join(a.scope) for a in proposal.axes} == {"abc": "", "d": "i"}
    assert [str(c) for c in proposal.couplings] == [
        "a, b, c: share one particle axis (drawn jointly)",
        "a, b, c: one particle index over i (drawn jointly)",
        "d: one particle index over j (asked for)",
    ]


def test_axes_that_cannot_be_shared():
    with pytest.raises(StructureError, match="'z' is enumerated, so it cannot share"):
        state(SEQUENCE, ["az"])
    with pytest.raises(StructureError, match=r"ask for \[2, 30\] particles"):
        state(SEQUENCE, ["am"], num_particles={"a": 2})


# -- what the guide demands


TWO = structure(PLATES, {"a": "i", "b": "i", "c": "i"}, {})


def test_several_elements():
    parents = {"a": {}, "b": {"a": frozenset()}, "c": {"b": frozenset("i")}}
    found = apply(several_elements, state(TWO, ["ab"], parents))
    reason = "the guide draws b from several elements of a"
    assert told(found) == ({"ab": "", "c": "i"}, f"a, b: one particle index over i ({reason})")
    assert apply(several_elements, found) is None
    assert apply(several_elements, state(TWO, ["bc"], parents)) is None  # element by element
    assert apply(several_elements, state(TWO, [], parents)) is None  # on axes of their own


def test_there_and_back():
    parents = {"a": {}, "b": {"a": frozenset("i")}, "c": {"b": frozenset("i")}}
    found = apply(there_and_back, state(TWO, ["ac"], parents))
    reason = "the guide goes from one to the other and back"
    assert told(found) == ({"acb": "i"}, f"a, c, b: share one particle axis ({reason})")
    assert len(found.couplings) == 1
    assert apply(there_and_back, found) is None
    assert apply(there_and_back, state(TWO, ["ab"], parents)) is None
    assert apply(there_and_back, state(TWO, ["ac"], {"a": {}, "b": {}, "c": {"b": frozenset("i")}})) is None


def test_there_and_back_through_an_auxiliary_site():
    parents = {"a": {}, "u": {"a": frozenset()}, "b": {"u": frozenset()}, "c": {"b": frozenset()}}
    assert told(apply(there_and_back, state(TWO, ["ac"], parents)))[0] == {"acb": "i"}


# -- what reads demand


ROWS = {"h": 9, "i": 4, "j": 5}


def test_mixed_elements():
    found = structure(PLATES, {"a": "i", "b": ""}, {"y": ("", {"a": {"i": MIXED}, "b": {}})})
    changed = apply(unlike_reads, state(found), "y")
    assert told(changed) == (
        {"a": "", "b": ""},
        "a: one particle index over i (y reads several elements of a at once)",
    )
    assert apply(unlike_reads, changed, "y") is None
    found.nodes.lost["a", "i"] = Lost("line 7")
    assert str(apply(unlike_reads, state(found), "y").couplings[-1]).endswith("at once, by line 7)")


@pytest.mark.parametrize(("counts", "coupled"), [({"a": 9, "b": 8}, "b"), ({"a": 8, "b": 9}, "a")])
def test_different_indices(counts, coupled):
    """The axis with fewer particles gives up fewer combinations."""
    first, second = Link("h", "i", 0), Link("h", "i", 1)
    found = structure(ROWS, {"a": "i", "b": "i"}, {"y": ("h", {"a": {"i": first}, "b": {"i": second}})})
    changed = apply(unlike_reads, state(found, num_particles=counts), "y")
    reason = "y reads a and b through different indices into i"
    assert str(changed.couplings[-1]) == f"{coupled}: one particle index over i ({reason})"
    same = structure(ROWS, {"a": "i", "b": "i"}, {"y": ("h", {"a": {"i": first}, "b": {"i": first}})})
    assert apply(unlike_reads, state(same), "y") is None


def test_enumerated_latents_are_not_coupled():
    found = structure(PLATES, {"z": "i"}, {"y": ("", {"z": {"i": MIXED}})}, enumerated="z")
    with pytest.raises(
        StructureError, match="'z' is enumerated, but it cannot keep an index of its own over plate 'i'"
    ):
        unlike_reads(state(found), found.graph.output("y"))


# -- what an order demands


def test_crossed_plates():
    found = structure(PLATES, {"a": "i", "b": "j"}, {"y": ("ij", {"a": {}, "b": {}})})
    changed = apply(no_order, state(found))
    # one index over i instead of four gives up three, one over j instead of five four
    assert told(changed) == ({"a": "", "b": "j"}, "a: one particle index over i (its groups cross those of b)")
    assert apply(no_order, changed) is None


# -- what size demands


def readers(names, *factors, plates="", **options):
    return structure(
        PLATES, dict.fromkeys(names, plates), {f: (plates, {z: {} for z in f}) for f in factors}, **options
    )


def test_much_work():
    found = readers("abc", "abc")
    merged = apply(much_work, state(found, num_particles=10, target_elements=999), "abc")
    assert told(merged) == ({"ab": "", "c": ""}, "a, b: share one particle axis (abc would have 1e+03 entries)")
    assert apply(much_work, state(found, num_particles=10, target_elements=1000), "abc") is None
    again = apply(much_work, State(merged.case, merged.axes, merged.couplings), "abc")
    assert again is None  # 100 entries


def test_much_work_is_no_reason_to_merge_plates_or_long_vectors():
    options = {"num_particles": 10, "target_elements": 1}
    assert apply(much_work, state(readers("ab", "ab", plates="i"), **options), "ab") is None
    long = readers("ab", "ab", events={"a": MAX_MERGED_COORDINATES})
    assert apply(much_work, state(long, **options), "ab") is None
    short = readers("ab", "ab", events={"a": MAX_MERGED_COORDINATES - 1})
    assert apply(much_work, state(short, **options), "ab") is not None


def test_large_factor():
    """Any axes are merged, those without plates first; one without plates can be gone through one by one."""
    found = structure(PLATES, {"a": "i", "b": "i", "c": ""}, {"y": ("i", {z: {} for z in "abc"})})
    merged = apply(large_factor, state(found, num_particles=10, memory=4 * 4 * 400 - 1), "y")
    assert told(merged) == ({"ab": "i", "c": ""}, "a, b: share one particle axis (y would have 4e+03 entries)")
    assert apply(large_factor, state(found, num_particles=10, memory=4 * 4 * 400), "y") is None


def test_a_factor_that_nothing_makes_smaller():
    found = readers("z", "z", plates="i", enumerated="z")
    change = apply(large_factor, state(found, memory=100), "z")
    assert change == TooLarge("factor 'z' would have 12 entries (48 B)")


PAIRS = readers("abcd", "ab", "ac", "ad", "bc", "bd", "cd")


def test_large_contraction():
    """No factor has more than a hundred entries, but summing over any latent leaves three that meet."""
    merged = apply(large_contraction, state(PAIRS, num_particles=10, target_elements=999))
    axes, coupling = told(merged)
    assert sorted(map(len, axes)) == [1, 1, 2]
    assert coupling.endswith("share one particle axis (the contraction would form 1e+03 entries)")
    assert apply(large_contraction, state(PAIRS, num_particles=10, target_elements=1000)) is None


def test_large_particles():
    assert apply(large_particles, state(PAIRS)) is None
    change = apply(large_particles, state(PAIRS, parameters=1000, memory=1000))
    assert change.what.startswith("particles and guide alone would take about")


def test_large_step():
    """Axes of the largest array are merged, unless parts help."""
    roomy = state(readers("abcd", "ab", "bc", "cd", "da", plates="i"), num_particles=10)
    assert apply(large_step, roomy) is None
    small = state(readers("abcd", "ab", "bc", "cd", "da", plates="i"), num_particles=10, memory=20_000)
    merged = apply(large_step, small)
    assert len(merged.axes) == 3
    assert str(merged.couplings[-1]).endswith("B)")
    assert "a step would take about" in merged.couplings[-1].reason
    change = apply(large_step, state(readers("z", "z", plates="i", enumerated="z"), memory=1))
    assert isinstance(change, TooLarge)


# -- all together


def test_rules_look_at_one_factor_after_the_other():
    """The size of the first is looked at before the reads of the second."""
    found = structure(
        PLATES, {"a": "", "b": "", "c": "i"}, {"x": ("", {"a": {}, "b": {}}), "y": ("", {"c": {"i": MIXED}})}
    )
    start = state(found, num_particles=10, target_elements=50)
    reasons = [c.reason for c in settled(start).couplings]
    assert reasons == ["x would have 1e+02 entries", "y reads several elements of c at once"]
    rule = factor_by_factor(unlike_reads, much_work)
    assert [c.reason for c in apply(rule, start).couplings] == reasons[:1]


def test_the_order_of_rules():
    """The guide, then factors, then the plan."""
    found = structure(
        PLATES,
        {"a": "i", "b": "j", "c": "i", "d": "i", "e": "i"},
        {"x": ("", {"c": {"i": MIXED}}), "y": ("ij", {"a": {}, "b": {}})},
    )
    parents = {"d": {}, "e": {"d": frozenset()}}
    reasons = [c.reason for c in settled(state(found, ["de"], parents)).couplings]
    assert reasons == [
        "the guide draws e from several elements of d",
        "x reads several elements of c at once",
        "its groups cross those of b",
    ]


def test_a_rule_is_a_function(monkeypatch):
    """No axis may have an index over plate j."""

    def not_over_j(found):
        axis = next((a for a in found.axes if "j" in a.scope), None)
        return None if axis is None else found.dropped(axis, ("j",), "j is elsewhere")

    monkeypatch.setattr(choose, "RULES", (not_over_j, *choose.RULES))
    found = choose_layout(structure(PLATES, {"a": "ij", "b": "j"}, {}), make_request(3))
    assert [a.scope for a in found.axes] == [("i",), ()]
    assert {c.reason for c in found.couplings} == {"j is elsewhere"}


def test_what_would_fit_is_said():
    found = readers("abz", "abz", plates="i", enumerated="z")
    with pytest.raises(StructureError, match=r"over memory=2 kB; num_particles=\d+ would fit") as error:
        choose_layout(found, make_request(1000, memory=2000))
    fits = int(str(error.value).split("num_particles=")[1].split()[0])
    choose_layout(found, make_request(fits, memory=2000))
    with pytest.raises(StructureError):
        choose_layout(found, make_request(fits + 1, memory=2000))
    with pytest.raises(StructureError, match="not even one particle of every latent would fit"):
        choose_layout(found, make_request(1000, memory=10))


def test_kept_axes():
    """Further factors over the same axes; None where these would need others."""
    layout = choose_layout(structure(PLATES, {"a": "i", "b": "j"}, {"a": ("i", {"a": {}})}), make_request(3))

    def kept(**more):
        return kept_layout(structure(PLATES, {"a": "i", "b": "j"}, {"a": ("i", {"a": {}}), **more}), layout)

    found = kept(y=("j", {"b": {}}))
    assert found.axes == layout.axes
    assert "y" in [t.name for t in found.plan.terms]
    assert kept(y=("", {"a": {"i": MIXED}})) is None
    assert kept(y=("ij", {"a": {}, "b": {}})) is None
