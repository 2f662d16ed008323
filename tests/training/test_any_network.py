"""Networks of flax.nnx and Equinox train, are saved, resume and are loaded; what no step can train is refused."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import linen, nnx

from gen_jax import training
from tests.marks import slow

ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


class Net(nnx.Module):
    """With a list of layers, and the keys and counters of a dropout, which are no parameters."""

    def __init__(self, norm=False):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(toy.DIM, 32, rngs=rngs), nnx.Linear(32, toy.DIM, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        if norm:
            self.norm = nnx.BatchNorm(32, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


def of_nnx():
    """`(params, apply)`."""
    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    return params, lambda params, x: nnx.merge(graph, params, rest)(x)


def of_equinox():
    net = equinox.nn.MLP(toy.DIM, toy.DIM, 32, 1, key=jax.random.key(0))
    params, static = equinox.partition(net, equinox.is_inexact_array)
    return params, lambda params, x: jax.vmap(equinox.combine(params, static))(x)


def fit(workdir, network, num_steps, options):
    params, apply = network

    def loss(params, key, batch):
        x = batch["x"] / 127.5 - 1.0
        return jnp.mean((apply(params, x) - x) ** 2), {}

    optimizer, _ = training.muon(1e-2, num_steps=20, schedule="constant")
    return training.fit(
        training.make_step(loss, optimizer, ema_decay=0.9),
        lambda: training.TrainState.create(params, optimizer, jax.random.key(1)),
        toy.InMemory(),
        num_steps=num_steps,
        workdir=workdir,
        options=training.Options(steps_per_call=5, progress=False, **options),
        mesh=None if options else ONE,
    )


@pytest.mark.parametrize(
    ("make", "options"),
    slow(
        [(of_nnx, {}), (of_nnx, {"shard": "fsdp"}), (of_nnx, {"parallel": "pmap"}), (of_equinox, {})],
        but=[(of_nnx, {}), (of_equinox, {})],
    ),
    ids=["nnx", "nnx, fsdp", "nnx, pmap", "equinox"],
)
def test_parameters_of_any_library_train_resume_and_load(tmp_path, make, options):
    params, apply = make()
    whole = fit(tmp_path / "whole", (params, apply), 20, options)
    fit(tmp_path / "parts", (params, apply), 10, options)
    toy.assert_same_bits(fit(tmp_path / "parts", (params, apply), 20, options), whole)
    loaded = training.load(tmp_path / "whole", like=params).params
    assert jax.tree.structure(loaded) == jax.tree.structure(params) == jax.tree.structure(whole.params)
    jax.tree.map(np.testing.assert_array_equal, loaded, whole.ema_params)
    x = toy.arrays()["x"] / 127.5 - 1.0
    error = lambda params: float(jnp.mean((apply(params, x) - x) ** 2))
    assert error(loaded) < 0.8 * error(params)


def test_load_without_like_gives_plain_containers(tmp_path):
    params, _ = of_equinox()
    state = fit(tmp_path, of_equinox(), 5, {})
    loaded = training.load(tmp_path, ema=False).params
    np.testing.assert_array_equal(loaded["layers"][1]["weight"], state.params.layers[1].weight)
    assert loaded["activation"] is None is params.activation


class Statistics(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(x)


def without_state():
    net = equinox.nn.BatchNorm(3, "batch", mode="batch")
    return equinox.partition(net, equinox.is_inexact_array)[0]


@pytest.mark.parametrize(
    "params",
    [
        lambda: Statistics().init(jax.random.key(0), jnp.ones((2, 3))),
        lambda: nnx.split(Net(norm=True))[1],
        without_state,
    ],
    ids=["linen", "nnx", "equinox"],
)
def test_statistics_of_a_batch_norm_are_refused(params):
    with pytest.raises(ValueError, match=r"statistics of a BatchNorm .* use GroupNorm"):
        training.TrainState.create(params(), optax.sgd(0.1), jax.random.key(0))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (lambda: nnx.split(Net())[1], r"params\['dropout'\].* is .*nnx\.split\(model, nnx\.Param, \.\.\.\)"),
        (
            lambda: equinox.nn.MLP(2, 2, 2, 1, key=jax.random.key(0)),
            r"params\.activation is .*equinox\.partition",
        ),
        (lambda: {"w": jnp.arange(3)}, r"params\['w'\] is int32"),
        (lambda: {"w": "name"}, r"params\['w'\] is str"),
    ],
)
def test_what_is_no_parameter_is_named(params, message):
    with pytest.raises(ValueError, match=message):
        training.TrainState.create(params(), optax.sgd(0.1), jax.random.key(0))


def test_equinox_layers_with_their_state_apart_are_parameters():
    net, _ = equinox.nn.make_with_state(equinox.nn.BatchNorm)(3, "batch", mode="batch")
    params = equinox.partition(net, equinox.is_inexact_array)[0]
    state = training.TrainState.create(params, optax.sgd(0.1), jax.random.key(0))
    assert len(jax.tree.leaves(state.params)) == 2
