"""Pictures of a model: every site once, arrows and plates those of the graph, nothing on top of anything else."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn

pytest.importorskip("matplotlib")
GROUP = np.array([0, 0, 1, 1, 2])


def model(group, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 3):
        effect = numpyro.sample("effect", dist.Normal(mu, 1.0))
    kind = numpyro.sample("kind", dist.Bernoulli(0.5))
    with numpyro.plate("rows", 5):
        numpyro.sample("y$", dist.Normal(effect[group] + kind, 1.0), obs=y)


def test_a_picture_has_every_site_its_plates_and_arrows(tmp_path):
    analysis = kayn.analyze(model, GROUP, np.zeros(5), num_particles=7)
    figure = analysis.plot()
    (axes,) = figure.axes
    texts = {t.get_text(): t.get_position() for t in axes.texts if t.get_text()}
    assert set(texts) == {
        "mu\nK = 7", "effect\nK = 7", "kind\nsummed over 2", r"y\$", "groups (3)", "rows (5)",
    }  # fmt: skip
    arrows = [t for t in axes.texts if not t.get_text()]
    assert len(arrows) == 3  # mu - effect, effect - y, kind - y
    assert {(a.xy, a.xyann) for a in arrows} == {
        (texts["effect\nK = 7"], texts["mu\nK = 7"]),
        (texts[r"y\$"], texts["effect\nK = 7"]),
        (texts[r"y\$"], texts["kind\nsummed over 2"]),
    }
    figure.savefig(tmp_path / "model.png")
    assert (tmp_path / "model.png").stat().st_size > 1000


def test_nodes_do_not_lie_on_each_other():
    def wide(y):
        found = [numpyro.sample(f"a_latent_of_a_long_name_{i}", dist.Normal(0.0, 1.0)) for i in range(12)]
        numpyro.sample("y", dist.Normal(sum(found), 1.0), obs=y)

    figure = kayn.analyze(wide, 0.0, num_particles=2).plot()
    figure.canvas.draw()
    boxes = [t.get_bbox_patch().get_window_extent() for t in figure.axes[0].texts if t.get_bbox_patch() is not None]
    assert len(boxes) == 13
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    inside = figure.bbox
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)


def test_a_bar_says_evidence_weights_and_time(capsys):
    from kayn.support.progress import progress_bar

    with progress_bar(100, True) as show:
        show(50, -12.5, 0.321)
    told = capsys.readouterr().err
    assert "50/100 steps, log evidence -12.50, worst ESS 32% of particles [" in told
    assert "left]" in told
