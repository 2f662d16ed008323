import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from gen_jax import training
from gen_jax.training import CheckpointError, Checkpoints
from gen_jax.training.checkpoint import NotFiniteError
from gen_jax.training.fingerprint import check_arrays, fingerprint


def state_at(step, seed=0):
    _, state, _ = toy.setup()
    rng = np.random.default_rng(seed)

    def noise(x):
        return x + rng.normal(size=x.shape).astype(x.dtype)

    state = state._replace(
        params=jax.tree.map(noise, state.params), ema_params=jax.tree.map(noise, state.ema_params)
    )
    return state._replace(step=jnp.int32(step))


# TensorStore complains when a failed read is dropped
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collect():
    """Here, lest it be in the tests of another file."""
    yield
    gc.collect()


def files(directory, largest_first=True):
    found = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=largest_first)


@pytest.fixture
def run(tmp_path):
    """Checkpoints of steps 1, 2, 3 in `tmp_path/checkpoints`, and the states."""
    states = {step: state_at(step, seed=step) for step in (1, 2, 3)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, {"config": {"a": 1}, "data": {"step": step}})
    return tmp_path, states


def restored(tmp_path, like=None):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        return checkpoints.restore(state_at(0) if like is None else like)


def test_restore_gives_the_newest_state_bit_for_bit(run):
    tmp_path, states = run
    state, meta = restored(tmp_path)
    toy.assert_same_bits(state, states[3])
    assert (meta["step"], meta["config"], meta["data"]) == (3, {"a": 1}, {"step": 3})


def test_restore_of_nothing_is_none(tmp_path):
    assert restored(tmp_path) is None


def test_save_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(state_at(step), {})
        assert checkpoints.steps() == [3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


@pytest.mark.parametrize(
    ("keep_from", "saved", "left"),
    [
        ((2,), (1, 2, 3, 4), [2, 4]),
        ((2,), (1, 3, 5, 6), [3, 6]),
        ((2,), (3, 4), [3, 4]),
        ((2,), (1,), [1]),
        ((), (1, 2, 3), [3]),
        ((2, 4), (1, 2, 3, 4, 5, 6), [2, 4, 6]),
        ((2, 3), (1, 4, 5), [4, 5]),  # one is the first from both
        ((5, 2), (1, 2, 3), [2, 3]),
    ],
)
def test_save_keeps_the_first_from_each_given_step(tmp_path, keep_from, saved, left):
    with Checkpoints(tmp_path / "checkpoints", keep=1, keep_from=keep_from) as checkpoints:
        for step in saved:
            checkpoints.save(state_at(step, seed=step), {})
        assert checkpoints.steps() == left


@pytest.mark.parametrize(("first_from", "step"), [(None, 6), (1, 2), (2, 2), (3, 4), (6, 6)])
def test_load_reads_the_newest_or_the_first_from_a_step(tmp_path, first_from, step):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for saved in (2, 4, 6):
            checkpoints.save(state_at(saved, seed=saved), {})
    loaded = training.load(tmp_path, first_from=first_from)
    assert loaded.step == step
    wanted = state_at(step, seed=step)._asdict()["ema_params"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted)
    with pytest.raises(training.CheckpointError, match="no checkpoint"):
        training.load(tmp_path, first_from=7)


def test_save_has_copied_the_state_when_it_returns(tmp_path):
    """Asynchronous: the very next step may overwrite the donated memory while the files are written."""
    state = training.Layout().put_state(state_at(1))
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s._replace(key=None)), donate_argnums=0)
    expected = toy.leaves(state)
    jax.config.update("jax_debug_nans", False)  # under which nothing is donated
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
        for _ in range(10):
            jax.block_until_ready(overwrite(jax.tree.map(jnp.copy, state)))
        overwrite(state)
    jax.config.update("jax_debug_nans", True)
    found, _ = restored(tmp_path)
    for x, y in zip(toy.leaves(found), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("where", ["params", "ema_params"])
def test_save_refuses_what_is_not_finite(run, where):
    tmp_path, states = run
    bad = state_at(4)._replace(**{where: jax.tree.map(lambda x: x.at[..., 0].set(jnp.inf), states[3].params)})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(NotFiniteError, match=f"{where} not finite at step 4"):
            checkpoints.save(bad, {})
        assert checkpoints.steps() == [1, 2, 3]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "flip the largest file": lambda step: flip(files(step)[0]),
    "flip the metadata": lambda step: flip(step / "meta" / "metadata"),
    "flip the optimizer": lambda step: flip(files(step / "rest")[0]),
    "truncate the largest file": lambda step: truncate(files(step)[0]),
    "truncate the metadata": lambda step: truncate(step / "meta" / "metadata"),
    "delete the largest file": lambda step: files(step)[0].unlink(),
    "delete the metadata": lambda step: (step / "meta" / "metadata").unlink(),
    "empty every file": lambda step: [path.write_bytes(b"") for path in files(step)],
    "delete every file": lambda step: [path.unlink() for path in files(step)],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_restore_skips_a_damaged_checkpoint(run, damage):
    tmp_path, states = run
    DAMAGE[damage](tmp_path / "checkpoints" / "3")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.warns(UserWarning, match=r"checkpoints/3 is damaged .* using step 2"):
            state, _ = checkpoints.restore(state_at(0))
        toy.assert_same_bits(state, states[2])
        checkpoints.save(states[3], {})  # its step is free again
        assert checkpoints.steps() == [1, 2, 3]
    assert (tmp_path / "checkpoints.damaged" / "3").is_dir()
    toy.assert_same_bits(restored(tmp_path)[0], states[3])


def test_restore_detects_every_flipped_bit(run):
    """Of a sample: some flips fall on bytes that mean nothing, none may change the state unseen."""
    tmp_path, states = run
    rng, detected = np.random.default_rng(0), 0
    for step in (1, 2):
        for path in files(tmp_path / "checkpoints" / str(step)):
            path.unlink()
    paths = [path for path in files(tmp_path / "checkpoints" / "3") if path.stat().st_size]
    for _ in range(12):
        path = paths[rng.integers(4)]
        before = path.read_bytes()
        content = bytearray(before)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            toy.assert_same_bits(restored(tmp_path)[0], states[3])
        except CheckpointError:
            detected += 1
        path.write_bytes(before)
    assert detected > 6


def test_restore_ignores_and_clears_a_half_written_directory(run):
    tmp_path, states = run
    half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    (half / "params" / "piece").write_bytes(b"1")
    toy.assert_same_bits(restored(tmp_path)[0], states[3])
    assert not half.exists()


def test_restore_says_that_no_checkpoint_can_be_read(run):
    tmp_path, _ = run
    for path in files(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    said = r"(?s)checkpoints/3/meta/metadata: .*checkpoints/1/meta/metadata: .*Move the directory away"
    with pytest.raises(CheckpointError, match=said):
        restored(tmp_path)
    assert not (tmp_path / "checkpoints.damaged").exists()


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ("meta/metadata", "meta/metadata"),
        ("params/_METADATA", "params/_METADATA"),
        ("params/array_metadatas/process_0", "params/array_metadatas/process_0"),
        ("params/manifest.ocdbt", "params/manifest.ocdbt"),
        ("params/d", "params/"),
    ],
)
def test_the_damaged_file_of_each_checkpoint_is_named(run, damaged, named):
    """Whatever the storage layers say: an error of JSON, or one of the arrays, names no file."""
    tmp_path, _ = run
    for step in (1, 2, 3):
        place = tmp_path / "checkpoints" / str(step) / damaged
        for path in files(place) if place.is_dir() else [place]:
            truncate(path)
    with pytest.raises(CheckpointError) as error:
        restored(tmp_path)
    first, *reasons, last = str(error.value).splitlines()
    assert first.endswith("can be read:")
    assert last.startswith("Move the directory away")
    assert len(reasons) == 3
    for step, each in zip((3, 2, 1), reasons, strict=True):
        assert f"{tmp_path}/checkpoints/{step}/{named}" in each


def test_restore_names_the_arrays_that_do_not_fit(run):
    tmp_path, _ = run
    state = state_at(0)
    state = state._replace(params={**state.params, "new": jnp.zeros(3), "out": {"kernel": jnp.zeros((2, 2))}})
    with pytest.raises(
        ValueError,
        match=r"(?s)params/out/kernel: float32\[256,16\] saved, float32\[2,2\] now.*params/new: absent",
    ):
        restored(tmp_path, state)
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_check_arrays_names_eight_and_counts_the_rest():
    with pytest.raises(ValueError, match="and 4 more"):
        check_arrays({}, {str(i): "float32[]" for i in range(12)})


@pytest.mark.parametrize("layout", [{}, {"shard": "fsdp"}, {"parallel": "pmap"}], ids=["jit", "fsdp", "pmap"])
@pytest.mark.parametrize("devices", [1, 4])
def test_restore_moves_between_layouts(run, layout, devices):
    tmp_path, states = run
    target = training.Layout(mesh=jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",)), **layout)
    like = target.put_state(state_at(0))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(like)
        assert jax.tree.map(lambda x: x.sharding, state.params) == jax.tree.map(
            lambda x: x.sharding, like.params
        )
        toy.assert_same_bits(state, states[3])
        checkpoints.save(state._replace(step=state.step + 1), {})
    toy.assert_same_bits(restored(tmp_path)[0], states[3]._replace(step=jnp.int32(4)))


def test_fingerprint_does_not_depend_on_the_layout_and_sees_every_bit():
    tree = {
        "a": state_at(0).params,
        "b": {"key": jnp.arange(6, dtype=jnp.uint32), "half": jnp.ones(5, jnp.bfloat16)},
    }
    reference = fingerprint(tree)
    for layout in (training.Layout(), training.Layout(shard="fsdp")):
        assert fingerprint({name: layout.put_state(x) for name, x in tree.items()}) == reference
    kernel = np.array(tree["a"]["hidden"]["kernel"])
    bits = kernel.view(np.uint32)
    for position, bit in [((0, 0), 0), ((15, 255), 31), ((3, 100), 12)]:
        bits[position] ^= np.uint32(1 << bit)
        changed = {**tree["a"], "hidden": {**tree["a"]["hidden"], "kernel": kernel}}
        assert fingerprint({"a": changed})["a"].checksum != reference["a"].checksum
        bits[position] ^= np.uint32(1 << bit)
    swapped = {"a": {"x": jnp.zeros(2), "y": jnp.ones(2)}, "b": {"x": jnp.ones(2), "y": jnp.zeros(2)}}
    assert len({x.checksum for x in fingerprint(swapped).values()}) == 2


def test_load_gives_the_average_without_the_optimizer(run):
    tmp_path, states = run
    for ema in (True, False):
        loaded = training.load(tmp_path, ema=ema)
        expected = states[3].ema_params if ema else states[3].params
        assert jax.tree.structure(loaded.params) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
        assert (loaded.config, loaded.step) == ({"a": 1}, 3)


def test_without_an_average_nothing_is_saved_twice(tmp_path):
    """The parameters are what is loaded then, and no average is restored."""
    optimizer = optax.adam(0.1)
    state = training.TrainState.create({"w": jnp.arange(3.0)}, optimizer, jax.random.key(0), ema=False)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
        restored, _ = checkpoints.restore(state)
        with pytest.raises(ValueError, match="ema_params"):
            checkpoints.restore(state._replace(ema_params=state.params))
    assert restored.ema_params is None
    assert not (tmp_path / "checkpoints" / "0" / "ema_params").exists()
    for ema in (True, False):
        loaded = training.load(tmp_path, ema=ema, like=state.params)
        np.testing.assert_array_equal(loaded.params["w"], state.params["w"])


def test_load_gives_back_named_tuples(tmp_path):
    optimizer = optax.adam(0.1)
    params = optax.EmptyState(), training.Loaded(jnp.ones(3), jnp.zeros(2), jnp.float32(5))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(training.TrainState.create(params, optimizer, jax.random.key(0)), {})
    loaded = training.load(tmp_path, like=params)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    np.testing.assert_array_equal(
        training.load(tmp_path).params[1]["params"], jnp.ones(3)
    )  # without it: dicts
    with pytest.raises(ValueError, match=r"ema_params/1/step: float32\[\] saved, float32\[2\] now"):
        training.load(tmp_path, like=(params[0], params[1]._replace(step=jnp.ones(2))))


def test_load_skips_a_damaged_checkpoint_and_touches_nothing(run):
    tmp_path, states = run
    truncate(files(tmp_path / "checkpoints" / "3")[0])
    truncate(files(tmp_path / "checkpoints" / "3" / "ema_params")[0])
    with pytest.warns(UserWarning, match="checkpoints/3 is damaged"):
        loaded = training.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, states[2].ema_params)
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_load_says_how_to_make_a_checkpoint(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="train first"):
            training.load(directory)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="train first"):
        training.load(tmp_path)


def test_save_refuses_an_array_without_a_name(tmp_path):
    state = training.TrainState.create(jnp.ones(3), optax.sgd(0.1), jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r'\{"w": array\}'):
        checkpoints.restore(state)


def test_checkpoints_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "meta/metadata", "params/_METADATA", "rest/manifest.ocdbt"]
)
def test_a_huge_file_is_refused_before_it_is_read(run, file):
    """Zeros behind its contents, of which the disk has none, and Orbax would read them all."""
    tmp_path, _ = run
    os.truncate(tmp_path / "checkpoints" / "3" / file, 20 * 10**9)
    with pytest.raises(CheckpointError, match=rf"3/{file} has 20,000,000,000 bytes"):
        training.load(tmp_path)
