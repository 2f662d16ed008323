"""Steps that are not finite: the run ends and keeps what is good, or the optimizer leaves them out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import fit, lines, steps

from gen_jax import training
from gen_jax.training import run


def poisoned(at, where="x"):
    """Loss that is NaN at one step, or whose gradient is infinite there while it is finite itself."""

    def loss(params, key, batch):
        value, metrics = toy.loss(params, key, batch)
        bad = jnp.any(batch["step"] == at)
        if where == "loss":
            return value + jnp.where(bad, jnp.nan, 0.0), metrics
        bias = params["hidden"]["bias"][0]
        root = jnp.sqrt(jnp.where(bad, bias - jax.lax.stop_gradient(bias), 1.0))  # 0, with slope infinity
        return value + jnp.where(bad, root, 0.0), metrics

    return loss


class Numbered(toy.Stream):
    def __next__(self):
        step = self.step
        return super().__next__() | {"step": np.full(self.batch_size, step)}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_fit_stops_at_what_is_not_finite_and_keeps_the_good(tmp_path, no_debug_nans, where):
    problem = toy.setup(40, loss=poisoned(23, where))
    rate = f"{float(problem[2](23)):.4g}"
    with pytest.raises(
        training.TrainingDiverged, match=rf"step 23 \(learning rate {rate}\).*checkpoints/20"
    ) as error:
        fit(tmp_path, memory=Numbered(), problem=problem)
    assert "loss nan" in str(error.value) if where == "loss" else "gradient norm" in str(error.value)
    assert isinstance(error.value, FloatingPointError)
    assert str(error.value).endswith(
        "Lower the learning rate, lengthen the warm-up or clip the gradients harder."
    )
    assert "NaN in the data" not in str(error.value)
    assert steps(tmp_path) == [10, 20]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(training.load(tmp_path).params))
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]


def skipping(loss):
    """The toy problem with an optimizer that leaves out what is not finite."""
    rule, schedule = training.adam(1e-2, num_steps=40, warmup_steps=5)
    optimizer = training.skip_exploding(rule)
    state = training.TrainState.create(toy.params(), optimizer, jax.random.key(3))
    return training.make_step(loss, optimizer, ema_decay=0.99), state, schedule


def broken(first, end):
    """Loss that is NaN, with all of its gradient, from one step to another."""

    def loss(params, key, batch):
        value, metrics = toy.loss(params, key, batch)
        bad = jnp.any((batch["step"] >= first) & (batch["step"] < end))
        return value * jnp.where(bad, jnp.nan, 1.0), metrics

    return loss


@pytest.mark.parametrize("loss", [poisoned(23, "gradient"), broken(23, 24)], ids=["gradient", "both"])
def test_fit_goes_on_where_the_optimizer_skips_what_is_not_finite(tmp_path, no_debug_nans, loss):
    """It counts the step, and the means of its interval are those of the nine others."""
    state = fit(tmp_path, memory=Numbered(), problem=skipping(loss))
    assert int(state.step) == 40
    assert int(state.opt_state.skipped) == 1
    np.testing.assert_allclose([line["skipped"] for line in lines(tmp_path)], [0, 0, 0.1, 0], atol=1e-7)
    assert all(line["loss"] is not None and line["grad_norm"] is not None for line in lines(tmp_path))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_fit_gives_up_where_nothing_is_finite_any_more(tmp_path, no_debug_nans, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 12)
    with pytest.raises(training.TrainingDiverged, match=r"step 25 .*nan, 13 steps in a row.*checkpoints/20"):
        fit(tmp_path, memory=Numbered(), problem=skipping(broken(13, 40)))


def test_fit_never_saves_parameters_that_are_not_finite(tmp_path, no_debug_nans):
    """The last update of an interval may break the parameters while every loss up to it was finite."""
    step, state, schedule = toy.setup(20)

    def breaks_at_the_end(state, batch, *, axis_name=None):
        state, metrics = step(state, batch, axis_name=axis_name)
        bad = jnp.where(state.step == 20, jnp.nan, 0.0)
        return state._replace(params=jax.tree.map(lambda x: x + bad, state.params)), metrics

    with pytest.raises(training.TrainingDiverged, match=r"step 19.*params not finite.*checkpoints/10"):
        fit(tmp_path, 20, problem=(breaks_at_the_end, state, schedule))
    assert steps(tmp_path) == [10]


def test_fit_diverging_at_once_says_that_there_is_no_checkpoint(tmp_path, no_debug_nans):
    with pytest.raises(training.TrainingDiverged, match=r"step 2 .*no checkpoint yet") as error:
        fit(tmp_path, memory=Numbered(), problem=toy.setup(40, loss=poisoned(2, "loss")))
    said = str(error.value)
    assert said.index("Is there a NaN in the data, or in the parameters") < said.index(
        "lower the learning rate"
    )


@pytest.fixture
def no_debug_nans():
    jax.config.update("jax_debug_nans", False)
    yield
    jax.config.update("jax_debug_nans", True)
