"""A kernel for `numpyro.infer.MCMC` whose sweeps choose among all combinations of K particles of every latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from kayn.axes.request import TARGET_ELEMENTS
from kayn.errors import KaynError
from kayn.inference.mcmc.passes import Passes
from kayn.inference.mcmc.prepare import Prepared, prepared
from kayn.inference.mcmc.state import GibbsState
from kayn.inference.mcmc.telling import News, tell, watch
from kayn.programs.tables import as_arguments
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.options import Elements, Groups, Memory, Model, Params
from kayn.support.validate import Rule, checked
from kayn.xla.compilation import is_traced

USUAL = 5
"""Particles of a latent where no number is given."""

Several = Annotated[
    int, Rule("a whole number, at least 2 and below 2**31: the current value is one of them", lambda n: 2 <= n < 2**31)
]


class MPGibbs(MCMCKernel):
    """Massively parallel Gibbs sampling, a kernel for `numpyro.infer.MCMC`.

    In every sweep each element of each latent gets K particles, of which one is its current value; then one combination
    of all K^n is drawn by its weight, exactly. This leaves the posterior as it is for any K, so that the chain needs no
    accept step. Where groupings cross, latents are updated in turn (`passes`).

    Args:
        model: an ordinary NumPyro model.
        num_particles: K, at least 2; None for 5.
        proposal: where the other particles come from. "local": about the current value, in unconstrained space, with
            steps that are learnt in warm-up. "prior": the model's prior. A NumPyro guide, or the result of `kayn.fit`:
            independent draws from it. Or a mapping from latents to these ("" for the rest), with one guide at most.
            Discrete latents of few values that the guide does not draw are drawn from their exact conditional.
        start: a NumPyro guide, or the result of `kayn.fit`, that chains start from where all proposals are local; None
            for the prior's quantiles.
        groups: latents that share a particle axis.
        params: values of `numpyro.param` sites in model and guide.
        target_elements, memory: as in `kayn.Importance`.

    Raises:
        KaynError: an argument is none of what it may be.
    """

    sample_field = "z"

    @checked()
    def __init__(
        self,
        model: Model,
        num_particles: Several | None = None,
        proposal: Any = "local",
        *,
        start: Any = None,
        groups: Groups = (),
        params: Params = None,
        target_elements: Elements = TARGET_ELEMENTS,
        memory: Memory = None,
    ):
        self._model = model
        self.num_particles = USUAL if num_particles is None else num_particles
        self.proposal, self.start, self.params = proposal, start, dict(params or {})
        self.options = {"groups": groups, "target_elements": target_elements, "memory": memory}
        self._known: tuple[Any, Prepared] | None = None

    @property
    def model(self) -> Any:
        """The NumPyro model."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        """What `MCMC` collects."""
        return ("z",)

    def passes(self, *args: Any, **kwargs: Any) -> Passes:
        """What moves at once, and how, for the model's arguments; `print` it. Nothing is sampled."""
        return self.prepared(args, kwargs).passes

    def init(
        self,
        rng_key: KeyArray,
        num_warmup: int,
        init_params: Mapping[str, Array] | None,
        model_args: tuple,
        model_kwargs: Mapping[str, Any] | None,
    ) -> GibbsState:
        """The state of one chain, or of as many as there are keys.

        Args:
            init_params: values to start from, unconstrained as NumPyro's own kernels take them; of some latents or all.

        Raises:
            KaynError: the model has a site that no kernel supports, or no start has any weight.
        """
        ready = self.prepared(model_args, model_kwargs or {})
        given = ready.given(init_params)

        many = not is_prng_key(rng_key)
        state = ready.begin(many)(rng_key, given, jnp.asarray(num_warmup, jnp.int32))
        if not is_traced(state.log_weight):
            ready.refuse_impossible(state.log_weight)
        return state

    def sample(self, state: GibbsState, model_args: tuple, model_kwargs: Mapping[str, Any]) -> GibbsState:
        """The state after one sweep, of one chain or of several."""
        if is_traced((model_args, model_kwargs)):
            raise KaynError(
                "MPGibbs reads its model for the arguments that it is given, so that they must be known: leave out "
                "jit_model_args=True of numpyro.infer.MCMC"
            )
        ready = self.prepared(model_args, model_kwargs or {})

        def one(state: GibbsState) -> tuple[GibbsState, News]:
            rest, own = jax.random.split(state.rng_key)
            learning = state.i < state.num_warmup
            z, tuning, told = ready.kernel.sweep(state.z, state.tuning, as_key(own), state.i, learning)
            still = {n: jnp.where(told.moved[n] > 0, 0, k + 1).astype(k.dtype) for n, k in state.still.items()}
            seen, news = watch(state.told, told, still, learning)
            fields = {"z": z, "tuning": tuning, "moved": told.moved, "still": still, "told": seen}
            return state._replace(i=state.i + 1, log_weight=told.log_weight, rng_key=rest, **fields), news

        if is_prng_key(state.rng_key):
            new, news = one(state)
        else:
            new, news = ready.kernel.for_all(one)(state)
            # what one chain has told, the others need not
            new = new._replace(told=jnp.broadcast_to(jnp.any(new.told, 0), new.told.shape))
        tell(ready.name, news)
        return new

    def postprocess_fn(self, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What makes values of latents and deterministic sites of a state's `z`."""
        return self.prepared(args, kwargs or {}).samples

    def get_diagnostics_str(self, state: GibbsState) -> str:
        """How many elements moved in the last sweep, for progress bars."""
        least = min((float(jnp.min(m)), n) for n, m in state.moved.items())
        return f"{self.num_particles} particles, least moved {least[1]} ({100 * least[0]:.0f} %)"

    def prepared(self, args: tuple, kwargs: Mapping[str, Any]) -> Prepared:
        """The model read for its arguments, once for the same ones."""
        leaves = jax.tree.leaves((args, dict(kwargs)))
        if self._known is None or not _same(self._known[0], leaves):
            own_args, own_kwargs, _ = as_arguments(self._model, tuple(args), dict(kwargs))
            asked = (self.num_particles, self.proposal, self.start, self.params, self.options)
            self._known = (leaves, prepared(self._model, own_args, own_kwargs, *asked))
        return self._known[1]


def _same(known: list[PyTree], leaves: list[PyTree]) -> bool:
    return len(known) == len(leaves) and all(a is b for a, b in zip(known, leaves, strict=True))
