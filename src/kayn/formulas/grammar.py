"""A formula taken apart: outcome, common terms, and groups of terms that vary together.

The grammar is that of lme4, as the `formulae` library reads it. What stands in a bracket of its own, `(1 + x | g)`, is
told apart here: terms of one bracket are correlated, those of two are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kayn.errors import ModelError

OPEN, CLOSED = "([{", ")]}"


@dataclass(frozen=True)
class Group:
    """`(terms | by)`, or `(terms || by)` where terms are independent."""

    terms: str
    by: str
    correlated: bool


@dataclass(frozen=True)
class Grammar:
    """`outcome ~ common + (terms | by) + ...`."""

    text: str
    outcome: str
    common: str
    groups: tuple[Group, ...]

    @staticmethod
    def of(text: str) -> Grammar:
        """Take a formula apart.

        Raises:
            ModelError: it is none.
        """
        text = " ".join(text.split())
        sides = [*_split(text, "~", text)]
        if len(sides) != 2 or not all(sides):
            raise ModelError(f"formula {text!r} must read 'outcome ~ predictors', with one ~")
        common, groups = [], []
        for piece in _split(sides[1], "+", text):
            group = _group(piece, text)
            if group is None:
                if "|" in piece:
                    raise ModelError(
                        f"formula {text!r}: write what varies by group in brackets of its own, e.g. ... + (1 + x | g)"
                    )
                common.append(piece)
            else:
                groups.append(group)
        return Grammar(text, sides[0], " + ".join(common) or "1", tuple(groups))


def _split(text: str, mark: str, formula: str) -> Iterator[str]:
    """The pieces of a text between marks that stand in no bracket and no quotes."""
    depth, quote, start = 0, "", 0
    for i, c in enumerate(text):
        if quote or c in "'\"`":
            quote = "" if c == quote else quote or c
        elif c in OPEN:
            depth += 1
        elif c in CLOSED:
            depth -= 1
        elif c == "," and depth == 0:
            raise ModelError(f"formula {formula!r} has a comma outside of brackets")
        elif c == mark and depth == 0:
            yield text[start:i].strip()
            start = i + 1
        if depth < 0:
            break
    if depth or quote:
        raise ModelError(f"formula {formula!r} has a bracket or a quote without its other half")
    yield text[start:].strip()


def _group(piece: str, formula: str) -> Group | None:
    """What a piece of the sum says of groups; None where it speaks of none."""
    sides = [*_split(piece, "|", formula)]
    if len(sides) > 1:
        raise ModelError(f"formula {formula!r}: write what varies by group in brackets, e.g. (1 + x | group)")
    if not (piece.startswith("(") and piece.endswith(")")):
        return None
    try:
        sides = [*_split(piece[1:-1], "|", formula)]
    except ModelError:  # (a + b):(c + d)
        return None
    independent = len(sides) == 3 and not sides[1]
    if len(sides) == 1:
        return None
    if (len(sides) > 2 and not independent) or not (sides[0] and sides[-1]):
        raise ModelError(f"formula {formula!r}: {piece} must read (terms | group)")
    return Group(sides[0], sides[-1], not independent)
