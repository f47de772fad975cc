"""Factorised guides that respect plates: one exponential-family distribution for each plate element of each latent.

A `FactorisedGuide` is an ordinary NumPyro guide: it works with `numpyro.infer.SVI`, `kayn.Importance` and `kayn.QEM`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers

from kayn.axes.minibatches import assembled, blocks_of_rows, full_shape, subsampled_plates
from kayn.guides.choice import continuous_family
from kayn.guides.families import Categorical, Family
from kayn.guides.joint import JointPart, placed
from kayn.guides.normal import Gaussian
from kayn.guides.start import Conditional, Prior, prior
from kayn.guides.whole import between, discrete_family, discrete_start
from kayn.guides.written import site_start
from kayn.particles.lattice import counted, even_normal
from kayn.programs.given import FIXED, Given
from kayn.programs.seeding import draw
from kayn.programs.sites import Inspected, Site, inspect_sites, summed_out
from kayn.programs.tables import as_arguments
from kayn.support.arrays import Array
from kayn.support.keys import as_key
from kayn.support.names import in_model, parameter, refuse_reserved
from kayn.support.options import Arguments, Key, Model, Named, Params
from kayn.support.prints import Outlined
from kayn.support.validate import Count, checked


@dataclass(frozen=True, eq=False, repr=False)
class GuideSite(Outlined):
    """One latent of a factorised guide: its family, starting parameters and plates (name, dim, full size, size).

    Attributes:
        wide: other parameters to start from, as wide as the prior, where that is vague.
    """

    name: str
    family: Family
    start: Mapping[str, Array]
    plates: tuple[tuple[str, int, int, int], ...]
    wide: Mapping[str, Array] | None = None

    @property
    def batch_ndim(self) -> int:
        """Batch dimensions of the site, those over plates: what a starting parameter has besides its events."""
        name, value = next(iter(self.start.items()))
        return np.ndim(value) - _event_dim(self, name)

    @property
    def subsampled(self) -> dict[int, str]:
        """Subsampled plates by dimension; parameters are those of all their elements."""
        return {self.batch_ndim + dim: name for name, dim, full, size in self.plates if full != size}

    def sampled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a subsample of an array over all elements."""
        sizes = {self.batch_ndim + dim: size for _, dim, full, size in self.plates if full != size}
        return tuple(sizes.get(d, n) for d, n in enumerate(shape))


@dataclass(frozen=True, eq=False, repr=False)
class FactorisedGuide(Outlined):
    """A NumPyro guide with independent sites; parameters are called `kayn:<latent>:<parameter>`, e.g. `kayn:alpha:loc`.

    Attributes:
        rows: indices of subsampled plates that a handler has set in the guide that it was read from.
        below: latents that no data lie below (`kayn.evidence.dataless`): they follow their prior, given these sites.
    """

    sites: tuple[GuideSite, ...]
    rows: Mapping[str, Array] = field(default_factory=dict)
    below: Conditional | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Run as a NumPyro guide; returns a draw of every site by name. Arguments, the model's, are not looked at."""
        with handlers.substitute(data=dict(self.rows)):
            out = self._run()
        if self.below is not None:
            self.below.run(args, kwargs, out)
        return out

    @property
    def unbounded(self) -> tuple[str, ...]:
        """Latents of the model that are drawn in unconstrained space, given what their support depends on."""
        names = (*(s.name for s in self.sites), *(() if self.below is None else self.below.names))
        return tuple(in_model(n) for n in names if in_model(n) != n)

    def without(self, below: Conditional) -> FactorisedGuide:
        """The same guide with some of its sites left to their prior."""
        return replace(self, sites=tuple(s for s in self.sites if s.name not in below.names), below=below)

    def _run(self) -> dict[str, Array]:
        out: dict[str, Array] = {}
        noise: dict[str, Array] = {}
        for site in self.sites:
            part = site.family if isinstance(site.family, JointPart) else None
            # vectors of several elements of a plate are not where that plate is
            params = self._params(site) if part else {}
            with ExitStack() as stack:
                for name, dim, full, size in site.plates:
                    stack.enter_context(numpyro.plate(name, full, size if size != full else None, dim=dim))
                params = params or self._params(site)
                if part and part.earlier:
                    params = dict(part.conditional(params, jnp.concatenate([noise[n] for n in part.earlier], -1)))
                out[site.name] = numpyro.sample(site.name, site.family.distribution(params))
                if part and part.later:
                    noise[site.name] = part.noise(out[site.name], params)
        return out

    @staticmethod
    def _params(site: GuideSite) -> dict[str, Array]:
        def param(name: str, start: Array) -> Array:
            constraint = site.family.parameters[name]
            return numpyro.param(
                parameter(site.name, name), start, constraint=constraint, event_dim=_event_dim(site, name)
            )

        return {p: param(p, start) for p, start in site.start.items()}

    @checked()
    def draw_particles(self, key: Any, num: Count | Mapping[str, Count], params: Mapping[str, Any]) -> dict[str, Array]:
        """`num` particles of every site, or so many of each: [num, *shape]; those of Normal families fill the
        quantiles evenly.

        Every single particle still has its site's law, which is all that an unbiased evidence estimate needs, and
        averages over particles are far less noisy than with independent draws.
        """
        by_site, counts = self.split({**self.start, **params}), counted(num, [s.name for s in self.sites])
        others = [s for s in self.sites if not isinstance(s.family, Gaussian)]
        # the key itself is for Normal sites
        out = {
            s.name: draw(s.family.distribution(by_site[s.name]), jax.random.fold_in(key, n), (counts[s.name],))
            for n, s in enumerate(others, 1)
        }
        normal = [s.name for s in self.sites if isinstance(s.family, Gaussian)]
        for place, count in enumerate(sorted({counts[n] for n in normal}, reverse=True)):
            own = jax.random.fold_in(key, len(others) + place) if place else key
            out |= self._placed(own, count, [n for n in normal if counts[n] == count], by_site)
        return out

    def _placed(self, key: Any, num: int, names: Sequence[str], by_site: Mapping[str, dict]) -> dict[str, Array]:
        """Even particles of some sites of Normal families, from one draw for all of them: far less to compile."""
        normal = [(s, s.family) for s in self.sites if s.name in names and isinstance(s.family, Gaussian)]
        alone = [(s, family) for s, family in normal if not isinstance(family, JointPart)]
        joint = {family.block: family.coordinates.batch for _, family in normal if isinstance(family, JointPart)}
        locs = [jnp.shape(by_site[s.name]["loc"]) for s, _ in alone]
        shapes = [_vectors(shape, family) for shape, (_, family) in zip(locs, alone, strict=True)]
        shapes += [(math.prod(batch), sum(p.coordinates.length for p in self.parts(b))) for b, batch in joint.items()]
        noise = even_normal(key, num, shapes, jnp.result_type(float))
        pieces = iter(jnp.split(noise, np.cumsum([n * length for n, length in shapes])[:-1], axis=1))
        out = {site.name: family.place(next(pieces), by_site[site.name]) for site, family in alone}
        for block in joint:
            out |= dict(zip(block, placed(self.parts(block), [by_site[n] for n in block], next(pieces)), strict=True))
        return out

    def parts(self, block: tuple[str, ...]) -> list[JointPart]:
        """The families of the sites of a joint Normal."""
        by_name = {s.name: s.family for s in self.sites}
        return [family for n in block if isinstance(family := by_name[n], JointPart)]

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Names of the sites that are joint Normals together."""
        return tuple(dict.fromkeys(s.family.block for s in self.sites if isinstance(s.family, JointPart)))

    def freed(self, sites: Mapping[str, Site]) -> tuple[str, ...]:
        """Those of a model's latents whose events of independent elements it draws element by element."""
        known = {n: len(s.batch_shape) for n, s in sites.items()}
        return tuple(s.name for s in self.sites if s.batch_ndim > known.get(s.name, s.batch_ndim))

    @property
    def draws_together(self) -> bool:
        """Whether `draw_particles` gives all sites, whatever the rows of a minibatch."""
        return self.below is None and not any(s.subsampled for s in self.sites)

    @property
    def start(self) -> dict[str, Array]:
        """Parameters to start from, by `numpyro.param` name."""
        return {parameter(s.name, p): v for s in self.sites for p, v in s.start.items()}

    @property
    def starts(self) -> list[dict[str, Array]]:
        """All sets of parameters to start from: `start`, and one that is as wide as vague priors are,
        if there are such."""
        if all(s.wide is None for s in self.sites):
            return [self.start]
        wide = replace(self, sites=tuple(s if s.wide is None else replace(s, start=s.wide) for s in self.sites))
        return [self.start, wide.start]

    def started_at(self, params: Mapping[str, Array]) -> FactorisedGuide:
        """The guide that starts from these parameters."""
        by_site = self.split(params)
        return replace(self, sites=tuple(replace(s, start=by_site[s.name], wide=None) for s in self.sites))

    def split(self, params: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        """Parameters by site, then by parameter name."""
        return {s.name: {p: params[parameter(s.name, p)] for p in s.start} for s in self.sites}

    @staticmethod
    @checked()
    def from_model(
        model: Model, args: Arguments = (), kwargs: Named = None, params: Params = None, key: Key | None = None
    ) -> FactorisedGuide:
        """A Normal in unconstrained space for every continuous latent (vectors: with covariance),
        started from the prior's quantiles.

        Discrete latents that can be summed out, as `infer={"enumerate": "parallel"}` does, need no guide and get none;
        others get probabilities by value, or a Normal that is rounded down (`kayn.guides.whole`).

        Raises:
            GuideError: a latent's support depends on another latent (it may with `kayn.fit`, `QEM` and `Importance`,
                which read the model themselves), or there is no family for a discrete one.
        """
        own_args, own_kwargs, _ = as_arguments(model, tuple(args), dict(kwargs or {}))
        return Unstarted.from_model(model, own_args, own_kwargs, params or {}, key).started()

    @staticmethod
    def from_guide(
        guide: Callable, args: tuple, kwargs: Mapping, params: Mapping, model_sites: Mapping[str, Site]
    ) -> FactorisedGuide:
        """The families and starting values of a guide whose sites are independent of each other.

        Raises:
            GuideError: a site's distribution is in none of the supported families.
        """
        sites = inspect_sites(guide, args, kwargs, params, guide=True)
        plates = subsampled_plates({**model_sites, **sites})
        blocks = blocks_of_rows(plates) if plates else {}

        def run(rows: Mapping[str, Array]) -> dict[str, Any]:
            program = handlers.seed(Given(guide, params=params, subsample=rows), jax.random.key(0))
            return handlers.trace(program).get_trace(*args, **kwargs)

        def read(rows: Mapping[str, Array]) -> dict[str, tuple[Family, dict[str, Array]]]:
            trace = run(rows)
            return {n: site_start(n, trace[n]["fn"], model_sites) for n in drawn}

        drawn = [n for n, s in sites.items() if s.kind == "sample" and not s.observed]
        found = read(jax.tree.map(lambda rows: rows[0], blocks))
        starts = {n: start for n, (_, start) in found.items()}
        if blocks:
            by_block = jax.lax.map(lambda rows: {n: start for n, (_, start) in read(rows).items()}, blocks)
            starts = {
                n: {p: assembled(v, *full_shape(model_sites[n], v.shape[1:], plates), blocks) for p, v in own.items()}
                for n, own in by_block.items()
            }
        fixed = {n: s[FIXED] for n, s in run({}).items() if FIXED in s} if any(s.fixed for s in sites.values()) else {}
        plates_of = {n: _plates(model_sites[n], {**model_sites, **sites}) for n in drawn}
        return FactorisedGuide(tuple(GuideSite(n, found[n][0], starts[n], plates_of[n]) for n in drawn), fixed)


@dataclass(frozen=True, eq=False)
class Unstarted:
    """A guide of standard Normals, ready to be read while the prior draws that it is to start from are still being
    compiled."""

    guide: FactorisedGuide
    prior: Prior | None = None

    @staticmethod
    def from_model(model: Callable, args: tuple, kwargs: Mapping, params: Mapping, key: Any = None) -> Unstarted:
        """See `FactorisedGuide.from_model`.

        Raises:
            GuideError: as there.
        """
        inspected = Inspected.of(model, args, kwargs, params)
        return Unstarted.of(replace(inspected, sites=summed_out(inspected.sites, ())), key)

    @staticmethod
    def of(model: Inspected, key: Any = None) -> Unstarted:
        """As `from_model`, of a model whose sites are known."""
        sites = model.sites
        refuse_reserved(sites)
        latents = [s for s in sites.values() if s.kind == "sample" and not s.observed and s.support_size is None]
        families = {s.name: discrete_family(s) for s in latents if s.discrete}
        found = prior(model.fn, model.args, model.kwargs, model.params, sites, as_key(0 if key is None else key))

        def chosen(site: Site) -> GuideSite:
            if site.name in families:
                family, shape = families[site.name], full_shape(site, site.shape, subsampled_plates(sites))[0]
                return GuideSite(site.name, family, discrete_start(family, shape), _plates(site, sites))
            normal, shape = continuous_family(site, found.supports[site.name])
            start = normal.standard(full_shape(site, shape, subsampled_plates(sites))[0], site.dtype)
            return GuideSite(site.name, normal, start, _plates(site, sites))

        return Unstarted(FactorisedGuide(tuple(map(chosen, latents))), found)

    @staticmethod
    def of_guide(guide: Callable | None, model: Inspected, key: Any) -> Unstarted:
        """A user's guide as it is, whatever it is; kayn's own where there is none."""
        if guide is None:
            return Unstarted.of(model, key)
        if isinstance(guide, FactorisedGuide):
            return Unstarted(guide)
        return Unstarted(FactorisedGuide.from_guide(guide, model.args, model.kwargs, model.params, model.sites))

    def started(self) -> FactorisedGuide:
        """The guide with the prior's quantiles, or as it is where it has its own start."""
        if self.prior is None:
            return self.guide
        draws = self.prior.draws()

        def started(site: GuideSite) -> GuideSite:
            if not isinstance(site.family, Gaussian):
                return replace(site, start=between(site.family, site.start, draws[site.name]))
            start, wide = site.family.starts(draws[site.name])
            return replace(site, start=start, wide=wide)

        return replace(self.guide, sites=tuple(started(s) for s in self.guide.sites))


def _vectors(shape: tuple[int, ...], family: Gaussian) -> tuple[int, int]:
    """How many vectors a site draws, and their length."""
    batch = len(shape) - family.unconstrained_event_dim
    return math.prod(shape[:batch]), math.prod(shape[batch:])


def _event_dim(site: GuideSite, parameter: str) -> int:
    """How many dimensions of a parameter are no batch dimensions of the site."""
    family = site.family
    whole = family.unconstrained_event_dim if isinstance(family, Gaussian) else family.event_dim
    if isinstance(family, Categorical):
        return whole + 1
    return max(family.parameters[parameter].event_dim, whole)


def _plates(site: Site, sites: Mapping[str, Site]) -> tuple[tuple[str, int, int, int], ...]:
    return tuple(
        (name, dim, sites[name].batch_shape[0] if name in sites else size, size) for name, dim, size in site.frames
    )
