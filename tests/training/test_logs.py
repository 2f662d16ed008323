"""The meter's rates: an interval starts where the one before ended, whatever was done in between."""

import json

import jax
import numpy as np
import optax
import pytest

from gen_jax.training.logs import Meter


def test_meter_counts_all_the_time_between_two_points():
    meter = Meter(10, now=100.0)
    assert meter.steps_per_second(30, now=105.0) == 4.0
    meter.reset(30, now=105.0)
    meter.skip(2.0)  # a pause is left out
    assert meter.steps_per_second(40, now=112.0) == 2.0


def test_meter_averages_over_steps():
    meter = Meter(0, now=0.0)
    meter.add({"loss": np.array([1.0, 2.0])})
    meter.add({"loss": np.array([6.0])})
    assert meter.mean() == {"loss": 3.0}


def test_sums_that_were_kept_go_on_to_the_same_bits():
    """Also of what is infinite, and where a metric has come or gone."""
    calls = [
        {"loss": x, "kl": x - 7} for x in np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    ]
    calls.append({"loss": np.float32([1, np.inf]), "kl": np.float32([np.nan, 1])})
    whole = Meter(0, now=0.0)
    for call in calls:
        whole.add(call)
    first = Meter(0, now=0.0)
    for call in calls[:2]:
        first.add(call)
    kept = json.loads(json.dumps(first.sums(), allow_nan=False))
    again = Meter(10, 0.0, kept)
    for call in calls[2:]:
        again.add(call)
    assert str(again.mean()) == str(whole.mean())
    other = Meter(10, 0.0, json.loads(json.dumps(whole.sums(), allow_nan=False)))
    other.add({"elbo": np.float32([2, 3])})
    assert other.mean() == {"elbo": 2.5}


@pytest.mark.parametrize("schedule", [optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.1, 8)])
def test_a_schedule_can_be_read_for_all_steps_at_once(schedule):
    rates = np.asarray(jax.vmap(schedule)(np.arange(8)))
    np.testing.assert_allclose(rates, [float(schedule(k)) for k in range(8)], rtol=1e-6)
