"""Pictures: each is drawn, and shows what it says."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.errors import KaynError, QueryError
from kayn.support import drawing

LOOKED = np.random.default_rng(0).normal(2.0, 1.0, 9)


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("g", 3):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("rows", 9):
        numpyro.sample("y", dist.Normal(a[np.arange(9) % 3], 1.0), obs=y)


@pytest.fixture(scope="module")
def posterior():
    fit = kayn.fit(model, (LOOKED,), progress=False, num_steps=16, coords={"g": ["$x$", "y", "z"]})
    return fit.posterior()


def test_every_picture_is_drawn(posterior, tmp_path):
    for name in ("forest", "pairs", "prior_posterior", "ppc", "evidence"):
        figure = getattr(posterior.plot, name)()
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_pictures_show_what_they_say(posterior):
    forest = posterior.plot.forest().axes[0]
    rows = posterior.summary().rows
    assert [t.get_text() for t in forest.get_yticklabels()] == ["mu", r"a[\$x\$]", "a[y]", "a[z]"]
    np.testing.assert_allclose(forest.collections[1].get_offsets()[:, 0], [r.mean for r in rows], rtol=1e-5)
    only = posterior.plot.pairs(["a"]).axes
    assert len(only) == 9
    evidence = posterior.plot.evidence().axes[0]
    np.testing.assert_allclose(evidence.collections[0].get_offsets()[:, 1], np.sort(posterior.log_evidences), rtol=1e-6)
    prior = posterior.plot.prior_posterior("mu").axes
    assert [a.get_title() for a in prior] == ["mu"]


def test_pictures_refuse_what_they_cannot_show(posterior, monkeypatch):
    with pytest.raises(QueryError, match="nothing"):
        posterior.plot.forest("nothing")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(KaynError, match=r"kayn\[plots\]"):
        drawing.needs_matplotlib()
