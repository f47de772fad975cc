"""A model under its arguments, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from kayn.errors import DataError, IndexRangeError, StructureWarning, warn
from kayn.evidence.missing import argument_of, is_broken, refuse_missing, refuse_missing_groups
from kayn.graph.absent import with_absences
from kayn.graph.discover import Structure, discover
from kayn.graph.split import split_sums
from kayn.graph.work import with_work
from kayn.graph.written_in_sums import with_running_sums
from kayn.programs.sites import Inspected
from kayn.programs.trace import Program, trace_program
from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True, eq=False)
class Read:
    """What is known of a model under its arguments: everything else is computed of this, and the model not run for it.

    A user's model runs twice to be read: once abstractly for its sites (`Inspected`), since a trace has to know its
    inputs beforehand, and once to be traced. Besides, it runs

    - for draws from its prior, which a guide of kayn's own starts from, or which show whether missing data matter;
    - abstractly once more if it has a loop, whose reads of earlier steps are inputs too, or a support that is computed;
    - once given posterior draws, for each question about predictions, whatever their number.

    Attributes:
        sites: those of its program, as the guide leaves them.
        program: its densities, as functions of one particle.
        structure: its factor graph. Data and indices have been looked at.
    """

    inspected: Inspected
    program: Program
    structure: Structure

    @property
    def sites(self) -> Mapping[str, Any]:
        """By name."""
        return self.inspected.sites


def read_model(inspected: Inspected) -> Read:
    """Trace a model and find its structure, which refuses data and indices that are out of range."""
    fn, args, kwargs, params = inspected.fn, inspected.args, inspected.kwargs, inspected.params
    program = trace_program(fn, args, kwargs, params, inspected.sites)
    try:
        read = structured(inspected, program)
    except IndexRangeError as error:
        name = None if error.values is None else argument_of(error.values, fn, args, kwargs)
        raise DataError(f"argument {name!r}: {error}" if name else str(error)) from None
    refuse_missing_groups(read.structure.nodes.wrapped, fn, args, kwargs)
    refuse_missing(read.program, fn, args, kwargs, params)
    return read


def structured(inspected: Inspected, program: Program) -> Read:
    """A traced model with its structure."""
    program = with_absences(with_running_sums(program))
    for why in program.not_markov:
        warn(f"{why}; its particles are whole paths", StructureWarning)

    def known(program: Program) -> list[Array | None]:
        return [*program.consts, *program.leaves({}, inspected.params, {})]

    program, structure = split_sums(program, discover(program, known(program)), known)
    return Read(inspected, program, with_work(structure, program))


def refuse_broken_arguments(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], params: Mapping[str, PyTree]
) -> None:
    """Read a model for its data alone if any argument holds NaN or infinite values:
    within a compiled loss they cannot be looked at.

    Raises:
        DataError: they reach a density.
    """
    if any(map(is_broken, jax.tree.leaves((args, kwargs)))):
        read_model(Inspected.of(model, args, kwargs, params))
