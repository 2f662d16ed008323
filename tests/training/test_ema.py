import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from gen_jax import training
from gen_jax.training import TrainState, ema, make_step
from tests.marks import slow

TRACKS = {"short": 0.9, "power": ema.power(2.0), "wide": ema.power(6.94), "none": lambda step: jnp.zeros(())}


def follow(optimizer, ema_decay, gradients, dtype=jnp.float32, names=None):
    """The state after steps that move the parameter by `-gradients`."""
    loss = lambda params, key, batch: (jnp.sum(params["w"] * batch.astype(dtype)), {})
    names = tuple(ema_decay) if names is None else names
    state = TrainState.create({"w": jnp.zeros(2, dtype)}, optimizer, jax.random.key(0), ema=names)
    step = make_step(loss, optimizer, ema_decay=ema_decay)
    return jax.jit(lambda state: jax.lax.scan(step, state, gradients)[0])(state)


def test_averages_are_those_of_closed_form():
    """`power`: of `theta_i` the weight is the integral of `(gamma + 1) tau^gamma` from `(i - 1) / n` to `i / n`."""
    n = 200
    gradients = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    state = follow(optax.sgd(1.0), TRACKS, jnp.asarray(gradients))
    path = np.cumsum(-gradients.astype(np.float64), 0)
    ends = np.arange(n + 1) / n
    for name, gamma in (("power", 2.0), ("wide", 6.94)):
        weights = np.diff(ends ** (gamma + 1))
        np.testing.assert_allclose(state.ema_params[name]["w"], weights @ path, rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(state.ema_params["none"]["w"], state.params["w"])
    short = np.zeros(2)
    for k, theta in enumerate(path):
        d = min(0.9, (1 + k) / (10 + k))
        short = d * short + (1 - d) * theta
    np.testing.assert_allclose(state.ema_params["short"]["w"], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [0, 1, 9, 10**4, 10**6])
@pytest.mark.parametrize("gamma", [-0.5, 0.0, 6.94, 16.97])
def test_power_is_exact_late_in_training(step, gamma):
    """`1 - d` is known to the rounding of `d` itself, in float32; a power of `1 - 1/t` would lose 17 times that."""
    t = step + 1
    exact = -np.expm1((gamma + 1) * np.log1p(-1 / t)) if t > 1 else 1.0
    found = 1 - np.float64(ema.power(gamma)(jnp.int32(step)))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1.2e-7)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_gamma_of_width_gives_weights_of_that_deviation(width):
    gamma = ema.gamma_of_width(width)
    tau = (np.arange(10**5) + 0.5) / 10**5
    weights = tau**gamma / np.sum(tau**gamma)
    mean = np.sum(weights * tau)
    np.testing.assert_allclose(np.sqrt(np.sum(weights * (tau - mean) ** 2)), width, rtol=1e-5)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_gamma_of_width_refuses(width):
    with pytest.raises(ValueError, match=r"width must be above 0 and below 0\.288675, got"):
        ema.gamma_of_width(width)


def test_power_refuses():
    with pytest.raises(ValueError, match="above -1"):
        ema.power(-1.0)


@pytest.mark.parametrize("ema_decay", [0.999, {"a": lambda step: jnp.float32(0.999)}], ids=["one", "named"])
def test_an_average_of_bfloat16_moves(ema_decay):
    """`1 - d^m` after `m` steps at 1: in bfloat16, from 0.25 on, a thousandth of the way is less than half a digit."""
    m = 3000
    gradients = (
        jnp.zeros((10_000 + m, 2)).at[10_000].set(-1.0)
    )  # the warm-up of a plain decay is over by then
    names = ("a",) if isinstance(ema_decay, dict) else True
    state = follow(optax.sgd(1.0), ema_decay, gradients, jnp.bfloat16, names)
    found = state.ema_params["a"]["w"] if isinstance(ema_decay, dict) else state.ema_params["w"]
    assert state.params["w"].dtype == jnp.bfloat16
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 - 0.999**m, rtol=1e-4)


def test_one_average_has_the_bits_of_that_name():
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)
    one = follow(optax.adam(0.1), 0.9, gradients, names=True)
    several = follow(optax.adam(0.1), {"a": 0.9, "b": ema.power(3.0)}, gradients)
    np.testing.assert_array_equal(one.ema_params["w"], several.ema_params["a"]["w"])
    np.testing.assert_array_equal(one.params["w"], several.params["w"])


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        (True, {"a": 0.9}, r"ema=\('a',\)"),
        (("a",), {"a": 0.9, "b": 0.5}, r"ema=\('a', 'b'\)"),
        (("a",), 0.9, "ema=True"),
        (("a",), None, "ema=False"),
        (False, {"a": 0.9}, r"ema=\('a',\)"),
    ],
)
def test_make_step_refuses_a_state_with_other_averages(made, asked, message):
    optimizer = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.zeros(2)}, optimizer, jax.random.key(0), ema=made)
    loss = lambda params, key, batch: (jnp.sum(params["w"]), {})
    with pytest.raises(ValueError, match=message):
        make_step(loss, optimizer, ema_decay=asked)(state, None)


@pytest.mark.parametrize("names", [(), ("",), ("a/b",), ("..",)])
def test_names_of_averages_are_names_of_files(names):
    with pytest.raises(ValueError, match="names of averages"):
        TrainState.create({"w": jnp.zeros(2)}, optax.sgd(0.1), jax.random.key(0), ema=names)
    with pytest.raises(ValueError, match="names of averages"):
        make_step(toy.loss, optax.sgd(0.1), ema_decay=dict.fromkeys(names, 0.9))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_make_step_refuses_a_decay_of_a_name_outside_the_unit_interval(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        make_step(toy.loss, optax.sgd(0.1), ema_decay={"a": decay})


def problem(num_steps):
    optimizer, _ = training.adam(1e-2, num_steps=num_steps, schedule="constant")
    make = lambda: TrainState.create(toy.params(), optimizer, jax.random.key(3), ema=("short", "wide"))
    return make_step(toy.loss, optimizer, ema_decay={"short": 0.9, "wide": ema.power(6.94)}), make


@pytest.mark.parametrize(
    "options",
    slow(
        [{"parallel": "jit"}, {"parallel": "jit", "shard": "fsdp"}, {"parallel": "pmap"}],
        but=[{"parallel": "jit", "shard": "fsdp"}],
    ),
)
def test_several_averages_are_saved_and_resumed_to_the_bit(tmp_path, options):
    def fit(name, num_steps):
        step, make = problem(num_steps)
        how = training.Options(steps_per_call=5, checkpoint_every=10, progress=False, **options)
        return training.fit(
            step, make, toy.InMemory(), num_steps=num_steps, workdir=tmp_path / name, options=how
        )

    whole = fit("whole", 20)
    fit("parts", 10)
    parts = fit("parts", 20)
    if "shard" in options:
        kernel = whole.ema_params["wide"]["hidden"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (toy.DIM, toy.WIDTH // 8)
    for name in ("short", "wide"):
        loaded = training.load(tmp_path / "whole", ema=name)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.ema_params[name])
    toy.assert_same_bits(parts, whole)
    jax.tree.map(
        np.testing.assert_array_equal, training.load(tmp_path / "whole", ema=False).params, whole.params
    )
    for ema_name in (True, "other"):
        with pytest.raises(ValueError, match=r"one of the averages of the run, 'short', 'wide'; got"):
            training.load(tmp_path / "whole", ema=ema_name)


def test_load_casts_and_takes_the_only_average(tmp_path):
    params = {"w": jnp.arange(3, dtype=jnp.bfloat16)}
    for name, averages in (("one", True), ("named", ("a",))):
        state = TrainState.create(params, optax.sgd(0.1), jax.random.key(0), ema=averages)
        with training.Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(state, {})
        for like in (None, params):
            assert training.load(tmp_path / name, like=like).params["w"].dtype == jnp.float32
            loaded = training.load(tmp_path / name, like=like, dtype=jnp.bfloat16).params["w"]
            assert loaded.dtype == jnp.bfloat16
            np.testing.assert_array_equal(loaded, params["w"])
        assert training.load(tmp_path / name, like=params, ema=False).params["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="which has no names; got 'a'"):
        training.load(tmp_path / "one", ema="a")


def test_a_checkpoint_of_the_previous_layout_is_read(tmp_path):
    """As gen_jax 0.1 wrote it: Orbax's handlers by name of the item, one average."""
    import orbax.checkpoint as ocp

    _, state, _ = toy.setup()
    from gen_jax.training.checkpoint import _crc32
    from gen_jax.training.fingerprint import describe, fingerprint

    items = {
        "params": state.params,
        "ema_params": jax.tree.map(lambda x: x + 1, state.ema_params),
        "rest": {"step": jnp.int32(7), "opt_state": state.opt_state, "key": jax.random.key_data(state.key)},
    }
    sums = {name: found.checksum for name, found in fingerprint(items).items()}
    meta = {"config": {"a": 1}, "data": {}, "step": 7, "checksum": sums, "arrays": describe(items)}
    handlers = {name: ocp.StandardCheckpointHandler() for name in items} | {
        "meta": ocp.JsonCheckpointHandler()
    }
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=handlers) as manager:
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["meta"] = ocp.args.JsonSave({**meta, "crc32": _crc32(meta)})
        manager.save(7, args=ocp.args.Composite(**args))
    loaded = training.load(tmp_path)
    assert (loaded.step, loaded.config) == (7, {"a": 1})
    jax.tree.map(np.testing.assert_array_equal, loaded.params, items["ema_params"])
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored, _ = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.ema_params, items["ema_params"])
