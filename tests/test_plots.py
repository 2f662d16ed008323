"""Pictures: large enough to be seen, each pixel a square of one colour."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax import plots


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [
        (1, None, 28),
        (3, None, 28),
        (64, None, 28),
        (100, 10, 28),
        (20, 2, 28),
        (64, None, 64),
        (64, None, 256),
    ],
)
def test_a_grid_can_be_seen_and_keeps_its_pixels(tmp_path, count, columns, size):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    plots.save_grid(tmp_path / "grid.png", images, columns)
    with Image.open(tmp_path / "grid.png") as picture:
        drawn = np.asarray(picture)
    tile = plots.tile(images, columns)
    scale = len(drawn) // len(tile)
    np.testing.assert_array_equal(drawn[scale // 2 :: scale, scale // 2 :: scale], tile)
    assert drawn.shape == (scale * tile.shape[0], scale * tile.shape[1], 3)
    assert scale == 1 or max(drawn.shape) <= plots.LONGEST
    if max(tile.shape) * 2 <= plots.LONGEST:
        assert max(drawn.shape[:2]) >= plots.WIDTH


def test_a_grid_is_as_large_as_asked_for(tmp_path):
    plots.save_grid(tmp_path / "grid.png", np.zeros((4, 8, 8, 1), np.uint8), scale=1)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (22, 22)


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([0.9], "linear"),
        ([0.9, 0.5], "linear"),
        ([1.0, 0.1], "log"),
        ([0.5, -0.2], "linear"),
        ([None], "linear"),
        ([1 / k for k in range(1, 80)], "log"),
    ],
)
def test_a_loss_is_seen_however_short_the_run(tmp_path, monkeypatch, losses, scale):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    lines = [json.dumps({"step": 10 * k, "loss": loss}) for k, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    plots.save_loss(tmp_path / "loss.png", tmp_path / "metrics.jsonl")
    (axes,) = drawn[0].axes
    (line,) = axes.lines
    assert axes.get_yscale() == scale
    assert axes.get_xlim()[0] == 0
    assert (line.get_marker() == "o") == (len(losses) < 50)
    low, high = axes.get_ylim()
    assert all(low <= loss <= high for loss in losses if loss is not None)
