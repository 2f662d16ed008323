"""The meter's rates: an interval starts where the one before ended, whatever was done in between."""

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


@pytest.mark.parametrize("schedule", [optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.1, 8)])
def test_a_schedule_can_be_read_for_all_steps_at_once(schedule):
    rates = np.asarray(jax.vmap(schedule)(np.arange(8)))
    np.testing.assert_allclose(rates, [float(schedule(k)) for k in range(8)], rtol=1e-6)
