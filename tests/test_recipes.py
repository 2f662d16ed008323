"""How long things take, measured in turns; what was logged, where it can be read."""

import importlib
import json
import time

import pytest

pictures, recipes, step08 = map(importlib.import_module, ("pictures", "recipes", "step08_hvae"))


def test_seconds_are_medians_without_the_first_call():
    """The first call of each is slow, as if it compiled, and so is one other."""
    pauses = {"short": [0.2, 0.0, 0.2, 0.0], "long": [0.2, 0.05, 0.05, 0.05]}
    calls = {name: (lambda left=left: time.sleep(left.pop(0))) for name, left in pauses.items()}
    found = recipes.seconds(calls, rounds=3)
    assert found["short"] < 0.05 <= found["long"] < 0.2


def test_the_highest_rate_counts():
    rate = recipes._Rate()
    for value in (0.1, 4.0, 2.0):
        rate.on_log(1, {"steps_per_second": value})
    assert rate.steps_per_second == 4.0


@pytest.mark.parametrize("contents", [None, b"", b"\0 no figures\n"])
def test_a_run_whose_metrics_are_lost_has_no_figures_and_no_pictures_of_them(tmp_path, contents):
    if contents is not None:
        (tmp_path / "metrics.jsonl").write_bytes(contents)
    assert recipes.figures(tmp_path) == []
    assert recipes.last_figures(tmp_path) == {}
    assert pictures.save_loss(tmp_path, "loss") == {}
    step08.autoencoding.save_terms(tmp_path, step08.Config())
    step08.save_kl(tmp_path / "kl.png", recipes.figures(tmp_path), 2)
    assert not list(tmp_path.glob("*.png"))


def test_the_last_figures_are_those_of_the_last_log_point(tmp_path):
    lines = [{"step": step, "loss": 1 / step, "seconds": 2.0 * step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert recipes.figures(tmp_path) == lines
    assert recipes.last_figures(tmp_path) == {**lines[1], "seconds_of_training": 4.0}
