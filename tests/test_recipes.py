"""How long things take, measured in turns."""

import importlib
import time

recipes = importlib.import_module("recipes")


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
