import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import training
from gen_jax.training import TrainState, make_step


def updates(optimizer, grads, params):
    """The parameters after each update."""

    def body(carry, grad):
        params, state = carry
        update, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, update)
        return (params, state), params

    return jax.jit(lambda: jax.lax.scan(body, (params, optimizer.init(params)), grads)[1])()


GRADS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)) * 3, jnp.float32)
PARAMS = jnp.asarray([1.0, -2.0, 0.5])
WARM = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"warmup_steps": 3}, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(WARM))),
        ({"warmup_steps": 3, "clip_norm": None}, optax.adam(WARM)),
        ({"warmup_steps": 3, "clip_norm": None, "weight_decay": 0.1}, optax.adamw(WARM, weight_decay=0.1)),
        (
            {"schedule": "constant", "clip_norm": None, "b1": 0.5, "b2": 0.9, "eps": 1e-3},
            optax.adam(0.1, 0.5, 0.9, 1e-3),
        ),
        (
            {"clip_norm": 0.5},
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(0.1, 12))),
        ),
    ],
)
def test_adam_equals_optax(options, same):
    optimizer, _ = training.adam(0.1, num_steps=12, **options)
    np.testing.assert_allclose(updates(optimizer, GRADS, PARAMS), updates(same, GRADS, PARAMS), rtol=1e-6)


@pytest.mark.parametrize("shape", [(12, 30), (3, 3, 4, 8), (3, 3, 16, 8)])
def test_muon_moves_a_kernel_along_the_polar_factor_of_its_momentum(shape):
    grads = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    optimizer, _ = training.muon(0.1, num_steps=12, clip_norm=None, schedule="constant", momentum=0.9)
    kernels = updates(optimizer, {"kernel": jnp.asarray(grads)}, {"kernel": jnp.zeros(shape)})["kernel"]
    steps = -np.diff(np.concatenate([np.zeros((1, *shape)), kernels]), axis=0).reshape(2, -1, shape[-1])
    g = grads.reshape(2, -1, shape[-1])
    m, n = g.shape[1:]
    first = 0.1 * g[0]
    momenta = [
        0.9 * first + 0.1 * g[0],
        0.9 * (0.9 * first + 0.1 * g[1]) + 0.1 * g[1],
    ]  # Nesterov looks ahead
    for step, momentum in zip(steps, momenta, strict=True):
        step = step / (0.1 * 0.2 * np.sqrt(max(m, n)))
        low, high = 0.6, 1.3  # what five iterations of Jordan's quintic leave of singular values of 1
        singular = np.linalg.svd(step, compute_uv=False)
        assert low < singular.min() < singular.max() < high
        u, _, v = np.linalg.svd(np.float64(momentum), full_matrices=False)
        alike = np.sum(step * (u @ v)) / np.linalg.norm(step) / np.linalg.norm(u @ v)
        assert alike > 2 * np.sqrt(low * high) / (
            low + high
        )  # the least for such singular values (Kantorovich)


@pytest.mark.parametrize("iterations", [1, 2, 4, 5])
def test_muon_iterates_as_often_as_asked(iterations):
    """As optax does without coefficients of ours; small singular values tell one number of iterations from another."""
    u, _, v = np.linalg.svd(np.random.default_rng(0).normal(size=(6, 4)), full_matrices=False)
    grads = {"kernel": jnp.asarray(u * np.geomspace(1e-3, 1, 4) @ v, jnp.float32)[None]}
    params, options = {"kernel": jnp.zeros((6, 4))}, {"preconditioning": "aol", "consistent_rms": 0.2}
    ours = lambda k: updates(
        training.muon(0.1, num_steps=12, clip_norm=None, schedule="constant", iterations=k)[0], grads, params
    )["kernel"]
    peer = updates(optax.contrib.muon(0.1, ns_steps=iterations, **options), grads, params)["kernel"]
    rounding = (
        4 * 0.02 * 1.2e-7 * 3.4445**iterations
    )  # each iteration multiplies small singular values, errors too
    np.testing.assert_allclose(ours(iterations), peer, rtol=0, atol=rounding)
    assert np.abs(ours(iterations) - ours(iterations + 1)).max() > 1e-3


def test_muon_moves_vectors_by_adam():
    muon, _ = training.muon(0.1, num_steps=12, b2=0.9, warmup_steps=3)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(WARM, b2=0.9))
    np.testing.assert_allclose(updates(muon, GRADS, PARAMS), updates(adam, GRADS, PARAMS), rtol=1e-6)


def test_scheduled_takes_any_rule_of_optax():
    ours, _ = training.scheduled(optax.sgd, 0.1, num_steps=12, clip_norm=None)
    same = optax.sgd(optax.cosine_decay_schedule(0.1, 12))
    np.testing.assert_allclose(updates(ours, GRADS, PARAMS), updates(same, GRADS, PARAMS), rtol=1e-6)


def test_adam_schedule_is_linear_then_cosine():
    _, schedule = training.adam(0.1, num_steps=100, warmup_steps=10)
    k = np.arange(101)
    u = (k - 10) / 90
    expected = np.where(k < 10, 0.1 * k / 10, 0.05 * (1 + np.cos(np.pi * u)))
    np.testing.assert_allclose([float(schedule(i)) for i in k], expected, atol=1e-7)


def test_adam_schedule_stays_constant():
    _, schedule = training.adam(0.1, num_steps=100, warmup_steps=10, schedule="constant")
    np.testing.assert_allclose([float(schedule(i)) for i in (5, 10, 99)], [0.05, 0.1, 0.1], rtol=1e-6)


def test_adam_accumulates_to_the_step_of_the_whole_batch():
    whole, _ = training.adam(0.1, num_steps=3, clip_norm=1.0)
    parts, _ = training.adam(0.1, num_steps=12, clip_norm=1.0, accumulate=4)
    expected = updates(whole, GRADS.reshape(3, 4, 3).mean(1), PARAMS)
    np.testing.assert_allclose(updates(parts, GRADS, PARAMS)[3::4], expected, rtol=1e-5)


def test_adam_schedule_counts_steps_when_it_accumulates():
    _, schedule = training.adam(0.1, num_steps=100, accumulate=4)
    _, reference = training.adam(0.1, num_steps=25)
    assert float(schedule(43)) == float(reference(10))


def test_accumulation_equals_one_big_batch_for_sgd():
    def loss(params, key, batch):
        return jnp.mean((batch @ params) ** 2), {}

    x = np.random.default_rng(1).normal(size=(2, 4, 8, 3)).astype(np.float32)
    small = optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
    states = {}
    for name, optimizer, batches in [
        ("big", optax.sgd(0.1), x.reshape(2, 32, 3)),
        ("small", small, x.reshape(8, 8, 3)),
    ]:
        state, step = (
            TrainState.create(PARAMS, optimizer, jax.random.key(0)),
            jax.jit(make_step(loss, optimizer)),
        )
        for batch in batches:
            state, _ = step(state, batch)
        states[name] = state
    np.testing.assert_allclose(states["small"].params, states["big"].params, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "at least 1"),
        ({"warmup_steps": 10}, "shorten the warm-up"),
        ({"schedule": "cosinus"}, "'cosinus'"),
    ],
)
def test_adam_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        training.adam(0.1, num_steps=10, **options)


@pytest.mark.parametrize(
    "wrap", [lambda o: o, training.skip_exploding, lambda o: optax.chain(optax.clip(1e9), o)]
)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_optimizer_is_told_the_loss(wrap, microbatches):
    """A plateau of the loss lowers the rate, also inside other transformations."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=1)
    optimizer = wrap(optax.chain(optax.sgd(1.0), plateau))
    loss = lambda params, key, batch: (0.0 * params["w"] + jnp.mean(batch), {})
    state = TrainState.create({"w": jnp.float32(0.0)}, optimizer, jax.random.key(0))
    step = make_step(loss, optimizer, microbatches=microbatches)
    scales = []
    for value in (3.0, 2.0, 2.0, 2.0, 2.0):
        state, _ = step(state, jnp.full(4, value))
        (plateau_state,) = [
            x for x in jax.tree.leaves(state.opt_state, is_leaf=_is_plateau) if _is_plateau(x)
        ]
        scales.append((float(plateau_state.best_value), float(plateau_state.scale)))
    assert [best for best, _ in scales] == [3, 2, 2, 2, 2]
    assert scales[0][1] == scales[1][1] == 1.0
    assert scales[-1][1] < 1.0


def _is_plateau(x):
    return isinstance(x, optax.contrib.ReduceLROnPlateauState)


def test_an_optimizer_is_told_the_gradient():
    def update(updates, state, params=None, *, value, grad, **_):
        return jax.tree.map(lambda u, g: u - g + value, updates, grad), state

    told = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    loss = lambda params, key, batch: (7.0 * params["w"], {})
    state = TrainState.create({"w": jnp.float32(2.0)}, told, jax.random.key(0))
    state, _ = make_step(loss, told)(state, None)
    np.testing.assert_allclose(state.params["w"], 2.0 + 14.0)  # its own gradient is taken off
