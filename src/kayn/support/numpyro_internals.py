"""What kayn uses of NumPyro beyond its documented interface; no other module looks at its private names, the marks
in its messages or the wording of its errors.

Every entry says what is relied on, and `tests/support/test_numpyro_internals.py` checks it with the installed release.
Private modules are imported when they are needed, so that a release without them fails where they are used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from kayn.support.arrays import Array

_SCAN_INDEX = "_scan_current_index"
_PARTS = ("base_dist", "_component_distribution", "_component_distributions")

# messages: dictionaries that every handler sees, their keys are not documented


def is_scan(msg: Mapping[str, Any]) -> bool:
    """Whether a message is a loop over steps: its `fn` is `scan_wrapper`, called with (f, init, xs, length, reverse)
    and `rng_key`, `substitute_stack`, `history` by name, and returns ((length, key, carry), (trace, ys))."""
    from numpyro.contrib.control_flow.scan import scan_wrapper

    return msg["type"] == "control_flow" and msg["fn"] is scan_wrapper


def is_in_scan(site: Mapping[str, Any]) -> bool:
    """Whether a sample site stands in a loop: the body's sites have the step in `infer`, also when the loop tells of
    them after its end."""
    return _SCAN_INDEX in site["infer"]


def is_told_afterwards(msg: Mapping[str, Any]) -> bool:
    """Whether a message is a site of a loop that is over, which the loop tells to the handlers around it."""
    return bool(msg.get("_control_flow_done", False))


def substitutions(msg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What handlers around a loop or branch put into its sites, to be added to: pairs of "substitute" or "condition"
    and a dictionary or function."""
    return msg["kwargs"]["substitute_stack"]


def at_step(body: Callable, step: Array) -> Callable:
    """A loop's body whose sites know their step, as `is_in_scan` asks."""
    return handlers.infer_config(body, config_fn=lambda msg: {_SCAN_INDEX: step})


def value_at_step(table: Any, step: Array, steps: int, site: Mapping[str, Any]) -> Array | None:
    """The value that an entry of `substitutions` has for a site of a loop's body, None where it has none."""
    from numpyro.contrib.control_flow.scan import _subs_wrapper

    return _subs_wrapper(table, step, steps, site)


def as_pytree(trace: Mapping[str, Any]) -> Any:
    """A trace that goes through JAX's transformations, as loops return it; `.trace` is the dictionary again."""
    from numpyro.ops.pytree import PytreeTrace

    return PytreeTrace(trace)


def align_steps(trace: Mapping[str, Any]) -> None:
    """Give distributions and values of a loop's sites their shapes after the loop, steps in front: as `scan` does."""
    from numpyro.contrib.control_flow.scan import _promote_scanned_value_shapes
    from numpyro.distributions.batch_util import promote_batch_shape

    for site in trace.values():
        if site["type"] == "sample":
            site["fn"] = promote_batch_shape(site["fn"])
            site["value"] = _promote_scanned_value_shapes(site["value"], site["fn"])


# distributions


def mask_of(fn: dist.MaskedDistribution) -> Array | bool:
    """What `fn.mask(...)` was given: bool or bool [*batch], which no public attribute tells."""
    return fn._mask


def checks_values(fn: dist.Distribution) -> bool:
    """Whether a log density is to be -inf outside of the support, or warn there: by `validate_args=` or
    `numpyro.enable_validation`."""
    return bool(fn._validate_args)


def without_checks(fn: dist.Distribution) -> dist.Distribution:
    """The same law with `validate_args=False`."""
    fn = copy.copy(fn)
    fn._validate_args = False
    return fn


def lies_within(fn: dist.Distribution, value: Array) -> Array:
    """What a distribution that checks its values finds: whether they lie in its support, bool [*batch]; it warns of
    known values outside."""
    return fn._validate_sample(value)


def is_of_numpyro(fn: dist.Distribution) -> bool:
    """Whether a distribution, and all that it is made of, is of a class that NumPyro has."""
    found = [getattr(fn, n) for n in (*_PARTS, "_mixing_distribution") if hasattr(fn, n)]
    parts = [d for own in found for d in (own if isinstance(own, list | tuple) else [own])]
    return type(fn).__module__.split(".")[0] == numpyro.__name__ and all(map(is_of_numpyro, parts))


def changed_parts(fn: dist.Distribution, change: Callable[[dist.Distribution], dist.Distribution]) -> dist.Distribution:
    """A distribution that is made of others, with these changed: wrappers, transformed and zero-inflated laws keep them
    in `base_dist`, mixtures of one family and of several in a private attribute that nothing else sets."""
    name = next(n for n in _PARTS if hasattr(fn, n))
    old = getattr(fn, name)
    new = [change(d) for d in old] if isinstance(old, list | tuple) else change(old)
    if new is old:
        return fn
    outer = copy.copy(fn)
    setattr(outer, name, new)
    return outer


def as_asymmetric_laplace(fn: dist.AsymmetricLaplaceQuantile) -> dist.AsymmetricLaplace:
    """The law in the parameters (loc, scale, asymmetry)."""
    return fn._ald


def is_numpyros_own(fn: dist.Distribution) -> bool:
    """Whether the class is NumPyro's, whose leaves as a pytree are all of its parameters; a user's need not be."""
    return type(fn).__module__.partition(".")[0] == "numpyro"


# errors, which are told apart by their text alone


def is_duplicate_name(error: AssertionError) -> bool:
    """Whether a trace met two sites of one name."""
    return "unique names" in str(error)


def is_loop_in_plate(error: NotImplementedError) -> bool:
    """Whether a loop or branch stands in a plate."""
    return "control flow" in str(error)


def mispaired(error: RuntimeError) -> tuple[str, str] | None:
    """The name that is another kind of site in the guide than in the model, and whether it is a "plate" or a "latent"
    there; None for other errors of `SVI.init`."""
    told, kinds = str(error), {"must be a plate in trace": "plate", "must be sampled in trace": "latent"}
    kind = next((kinds[words] for words in kinds if words in told), None)
    return None if kind is None else (told.split()[1], kind)
