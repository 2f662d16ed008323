import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from gen_jax import keys, training
from gen_jax.training import TrainState, make_step


def quadratic(params, key, batch):
    error = params["w"] - batch
    return jnp.mean(error**2), {"mean_error": jnp.mean(error)}


def state_of(optimizer, w=1.0):
    return TrainState.create({"w": jnp.float32(w)}, optimizer, jax.random.key(0))


def test_make_step_equals_optax_by_hand():
    optimizer = optax.adam(0.1)
    step, state = make_step(quadratic, optimizer), state_of(optimizer)
    params, opt_state = state.params, state.opt_state
    for k in range(5):
        batch = jnp.arange(4.0) + k
        grads = {"w": 2 * (params["w"] - batch.mean())}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["grad_norm"], abs(grads["w"]), rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-6)
    assert state.step == 5
    assert state.step.dtype == jnp.int32


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_make_step_ema_is_the_warmed_up_recursion(decay):
    optimizer = optax.sgd(0.1)
    step, state = jax.jit(make_step(quadratic, optimizer, ema_decay=decay)), state_of(optimizer)
    w, ema = 1.0, 1.0
    for k in range(30):
        w -= 0.1 * 2 * (w - 3.0)
        d = min(decay, (1 + k) / (10 + k))
        ema = d * ema + (1 - d) * w
        state, _ = step(state, jnp.full(4, 3.0))
    np.testing.assert_allclose(state.ema_params["w"], ema, rtol=1e-6)


def test_make_step_without_ema_keeps_none():
    optimizer = optax.sgd(0.1)
    bare = TrainState.create({"w": jnp.float32(1.0)}, optimizer, jax.random.key(0), ema=False)
    state, _ = make_step(quadratic, optimizer, ema_decay=None)(bare, jnp.ones(4) * 3)
    assert state.ema_params is None
    np.testing.assert_allclose(state.params["w"], 1.4, rtol=1e-6)
    for decay, wrong in ((0.9, bare), (None, state_of(optimizer))):
        with pytest.raises(ValueError, match=f"ema={decay is not None}"):
            make_step(quadratic, optimizer, ema_decay=decay)(wrong, jnp.ones(4))


def test_make_step_draws_from_the_seed_folded_with_the_step():
    seen = []

    def loss(params, key, batch):
        seen.append(jax.random.key_data(key))
        return params["w"] ** 2, {}

    optimizer = optax.sgd(0.1)
    state, step = state_of(optimizer), make_step(loss, optimizer)
    with jax.disable_jit():
        for _ in range(3):
            state, _ = step(state, None)
    expected = [jax.random.key_data(jax.random.fold_in(jax.random.key(0), k)) for k in range(3)]
    np.testing.assert_array_equal(np.stack(seen), np.stack(expected))


def test_make_step_averages_gradients_and_metrics_over_the_axis():
    optimizer = optax.sgd(0.1)
    step, state, batch = make_step(quadratic, optimizer), state_of(optimizer), jnp.arange(8.0).reshape(4, 2)
    whole, metrics = step(state, batch.reshape(-1))
    split, per_device = jax.vmap(lambda b: step(state, b, axis_name="i"), axis_name="i")(batch)
    np.testing.assert_allclose(split.params["w"], np.full(4, whole.params["w"]), rtol=1e-6)
    for name, metric in metrics.items():
        np.testing.assert_allclose(per_device[name], np.full(4, metric), rtol=1e-6)


def noisy(params, key, batch):
    error = params["w"] - batch["x"] - keys.normal(key, batch["x"].shape)
    return jnp.mean(error**2), {"error": jnp.mean(error)}


@pytest.mark.parametrize("n", [2, 3, 12])
def test_make_step_microbatches_are_the_mean_of_their_gradients(n):
    optimizer, batch = optax.sgd(0.1), {"x": jnp.arange(12.0)}
    state = state_of(optimizer)._replace(step=jnp.int32(5))
    new, metrics = make_step(noisy, optimizer, microbatches=n)(state, batch)
    key = jax.random.fold_in(state.key, 5)
    parts = [
        jax.value_and_grad(noisy, has_aux=True)(
            state.params, jax.random.fold_in(key, p), {"x": batch["x"][p::n]}
        )
        for p in range(n)
    ]
    (loss, error), grads = jax.tree.map(lambda *x: sum(x) / n, *parts)
    np.testing.assert_allclose(new.params["w"], state.params["w"] - 0.1 * grads["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["error"], error["error"], rtol=1e-5)


def test_make_step_microbatches_without_noise_are_the_whole_batch():
    optimizer, batch = optax.adam(0.1), jnp.arange(12.0)
    whole, expected = make_step(quadratic, optimizer)(state_of(optimizer), batch)
    parts, metrics = make_step(quadratic, optimizer, microbatches=4)(state_of(optimizer), batch)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-6)
    assert metrics.keys() == expected.keys()
    for name, metric in expected.items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-6)


def test_make_step_microbatches_of_bfloat16_are_summed_in_float32():
    """256 gradients of 1 are 256 in bfloat16 as well, where 257 are not: a sum in it would stop there."""
    loss = lambda params, key, batch: (
        jnp.mean(params["w"] * batch.astype(jnp.bfloat16)),
        {"count": len(batch)},
    )
    optimizer, batch = optax.sgd(1.0), jnp.ones(1024)
    state = TrainState.create({"w": jnp.zeros((), jnp.bfloat16)}, optimizer, jax.random.key(0))
    state, metrics = make_step(loss, optimizer, microbatches=1024)(state, batch)
    assert state.params["w"].dtype == jnp.bfloat16
    assert state.params["w"] == -1.0
    assert metrics["count"] == 1.0


def test_make_step_tells_the_step_to_the_loss_of_each_microbatch():
    loss = lambda params, key, batch, aux: (params["w"] * aux.step * jnp.mean(batch), {})
    optimizer = optax.sgd(1.0)
    state = state_of(optimizer)._replace(step=jnp.int32(7))
    state, _ = make_step(loss, optimizer, aux=True, microbatches=2)(state, jnp.ones(4))
    np.testing.assert_allclose(state.params["w"], 1.0 - 7.0)


def test_make_step_refuses_microbatches_that_do_not_divide():
    optimizer = optax.sgd(0.1)
    with pytest.raises(ValueError, match="at least 1"):
        make_step(quadratic, optimizer, microbatches=0)
    with pytest.raises(ValueError, match=r"of 10 rows \(of each device, by pmap\) does not divide into 4"):
        make_step(quadratic, optimizer, microbatches=4)(state_of(optimizer), jnp.ones(10))


def test_make_step_metrics_are_float32_scalars():
    optimizer = optax.sgd(0.1)
    _, metrics = make_step(quadratic, optimizer)(state_of(optimizer), jnp.ones(4))
    assert set(metrics) == {"loss", "grad_norm", "mean_error"}
    for metric in metrics.values():
        assert metric.shape == ()
        assert metric.dtype == jnp.float32


def test_make_step_grad_norm_is_before_clipping():
    optimizer, _ = training.adam(0.1, num_steps=10, clip_norm=1e-3)
    _, metrics = make_step(quadratic, optimizer)(state_of(optimizer), jnp.full(4, 101.0))
    np.testing.assert_allclose(metrics["grad_norm"], 200.0, rtol=1e-6)


def test_make_step_fits_a_normal_distribution():
    """A family that has nothing to do with networks trains with the same step."""

    def loss(params, key, batch):
        return -jnp.mean(jax.scipy.stats.norm.logpdf(batch, params["mean"], jnp.exp(params["log_std"]))), {}

    x = 170 + 7 * np.random.default_rng(0).standard_normal(512).astype(np.float32)
    optimizer = optax.adam(0.1)
    state = TrainState.create(
        {"mean": jnp.float32(160.0), "log_std": jnp.float32(1.0)}, optimizer, jax.random.key(0)
    )
    compiled = training.compile_step(make_step(loss, optimizer), steps_per_call=500)
    state, _ = compiled(state, np.broadcast_to(x, (500, 512)))
    np.testing.assert_allclose(state.params["mean"], x.mean(), rtol=1e-3)
    np.testing.assert_allclose(np.exp(state.params["log_std"]), x.std(), rtol=1e-2)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_make_step_refuses_a_decay_outside_the_unit_interval(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        make_step(quadratic, optax.sgd(0.1), ema_decay=decay)


def test_make_step_refuses_a_metric_that_it_adds_itself():
    optimizer = optax.sgd(0.1)
    step = make_step(lambda params, key, batch: (params["w"] ** 2, {"loss": params["w"]}), optimizer)
    with pytest.raises(ValueError, match="rename"):
        step(state_of(optimizer), None)


def test_create_shares_no_memory_between_parameters_and_average():
    """Donating the same buffer twice is an error in JAX."""
    _, state, _ = toy.setup()
    assert (
        state.params["hidden"]["kernel"].unsafe_buffer_pointer()
        != state.ema_params["hidden"]["kernel"].unsafe_buffer_pointer()
    )
