"""The order of the batches: a pure function of key and step, and every example once an epoch."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax import data

KEY = jax.random.key(7)


def arrays(n):
    """Rows that say which they are."""
    return {"image": np.arange(n, dtype=np.uint8)[:, None, None, None], "label": np.arange(n, dtype=np.int32)}


@functools.partial(jax.jit, static_argnums=2)
def select(feed, step, num_steps=1):
    return feed.select(step, num_steps)


def rows(stream, steps):
    return [batch["label"].tolist() for batch in itertools.islice(stream, steps)]


# In memory


@pytest.mark.parametrize(
    ("n", "batch_size", "num_steps"),
    [(12, 3, 1), (12, 3, 2), (12, 3, 4), (13, 3, 5), (7, 7, 3), (9, 5, 4), (1, 1, 2), (40, 4, 31)],
)
def test_select_does_not_depend_on_how_many_steps_are_asked_for(n, batch_size, num_steps):
    feed = data.InMemory.create(arrays(n), batch_size, key=KEY)
    order = functools.cache(lambda epoch: jax.random.permutation(jax.random.fold_in(KEY, epoch), n))

    @given(st.integers(0, 50))
    @settings(max_examples=20, deadline=None)
    def check(step):
        expected = []
        for k in range(step, step + num_steps):  # the definition, one step at a time
            epoch, i = divmod(k, n // batch_size)
            expected.append(np.asarray(order(epoch))[i * batch_size : (i + 1) * batch_size])
        assert select(feed, step, num_steps).dtype == jnp.int32
        np.testing.assert_array_equal(select(feed, step, num_steps), np.stack(expected))

    check()


def test_select_visits_each_example_once_an_epoch_in_another_order():
    feed = data.InMemory.create(arrays(24), 4, key=KEY)
    epochs = np.asarray(select(feed, 0, 18)).reshape(3, 24)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(24), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_select_leaves_out_another_remainder_each_epoch():
    feed = data.InMemory.create(arrays(23), 4, key=KEY)
    epochs = np.asarray(select(feed, 0, 25)).reshape(5, 20)
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_select_is_one_compilation_for_every_step_and_gathers_inside_jit():
    feed = jax.device_put(data.InMemory.create(arrays(10), 3, key=KEY))
    traces = []

    @jax.jit
    def batches(feed, step):
        traces.append(step)
        index = feed.select(step, 4)
        return jax.tree.map(lambda a: a[index], feed.arrays)

    for step in (0, 1, 2, 1000):
        got = batches(feed, step)
        np.testing.assert_array_equal(got["label"], select(feed, step, 4))
        np.testing.assert_array_equal(got["image"][..., 0, 0, 0], got["label"])
        assert got["image"].dtype == jnp.uint8
    assert len(traces) == 1


def test_select_depends_on_the_key():
    feeds = [data.InMemory.create(arrays(40), 40, key=jax.random.key(i)) for i in range(2)]
    first, second = (select(feed, 0) for feed in feeds)
    assert (first != second).any()


def test_select_refuses_no_steps():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        data.InMemory.create(arrays(4), 2, key=KEY).select(0, 0)


@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_select_of_a_feed_on_eight_devices_is_the_same(axes):
    feed = data.InMemory.create(arrays(13), 3, key=KEY)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    placed = jax.device_put(feed, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    np.testing.assert_array_equal(select(placed, 2, 5), select(feed, 2, 5))


# Streaming


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_stream_gives_the_same_global_batches_on_any_number_of_hosts(hosts, prefetch):
    whole = rows(data.Stream(arrays(50), 12, key=KEY, process_index=0, process_count=1), 20)
    parts = [
        rows(
            data.Stream(arrays(50), 12, key=KEY, process_index=p, process_count=hosts, prefetch=prefetch),
            20,
        )
        for p in range(hosts)
    ]
    assert [list(itertools.chain(*part)) for part in zip(*parts, strict=True)] == whole
    assert {len(batch) for part in parts for batch in part} == {12 // hosts}


def test_stream_visits_each_example_once_an_epoch_in_another_order():
    seen = np.concatenate(rows(data.Stream(arrays(50), 12, key=KEY), 25)).reshape(6, 50)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(50), (6, 1)))
    assert len({tuple(epoch) for epoch in seen}) == 6


def test_stream_depends_on_the_key():
    first, second = (rows(data.Stream(arrays(50), 50, key=jax.random.key(i)), 1) for i in range(2))
    assert first != second


def test_stream_keeps_the_rows_together():
    batch = next(data.Stream(arrays(50), 12, key=KEY))
    assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (12, 1, 1, 1))
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])


@pytest.mark.parametrize("step", [0, 1, 4, 17, 10**9])
def test_seek_goes_to_the_batch_of_the_step(step):
    stream = data.Stream(arrays(50), 12, key=KEY)
    expected = rows(stream, 20)
    stream.seek(step)
    assert stream.step == step
    got = rows(stream, 3)
    assert stream.step == step + 3
    if step < 18:
        assert got == expected[step : step + 3]
    stream.seek(step)
    assert rows(stream, 3) == got


@pytest.mark.parametrize("hosts", [1, 2])
def test_set_state_goes_on_where_get_state_was_called(hosts):
    stream = data.Stream(arrays(50), 12, key=KEY)
    rows(stream, 7)
    state = json.loads(json.dumps(stream.get_state()))
    expected = rows(stream, 5)
    resumed = data.Stream(arrays(50), 12, key=KEY, process_index=0, process_count=hosts)
    resumed.set_state(state)
    assert rows(resumed, 5) == [batch[: 12 // hosts] for batch in expected]


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"n": 51}, "num_examples was 50, is 51"),
        ({"batch_size": 6}, "batch_size was 12, is 6"),
        ({"key": jax.random.key(8)}, "seed was"),
    ],
)
def test_set_state_says_what_differs(other, differs):
    made = {"n": 50, "batch_size": 12, "key": KEY} | other
    stream = data.Stream(arrays(made["n"]), made["batch_size"], key=made["key"])
    with pytest.raises(ValueError, match=differs):
        stream.set_state(data.Stream(arrays(50), 12, key=KEY).get_state())


def test_stream_reads_from_a_memory_map(tmp_path):
    np.save(tmp_path / "a.npy", arrays(50)["image"])
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    batch = next(data.Stream({"image": mapped}, 12, key=KEY))["image"]
    assert type(batch) is np.ndarray
    np.testing.assert_array_equal(batch, next(data.Stream(arrays(50), 12, key=KEY))["image"])


def test_close_keeps_the_position():
    stream = data.Stream(arrays(50), 12, key=KEY)
    expected = rows(stream, 6)
    stream.seek(0)
    got = rows(stream, 3)
    stream.close()
    assert got + rows(stream, 3) == expected


# Both


def test_batches_chooses_by_size():
    size = sum(a.nbytes for a in arrays(50).values())
    assert isinstance(data.batches(arrays(50), 12, key=KEY), data.InMemory)
    assert isinstance(data.batches(arrays(50), 12, key=KEY, memory_budget=size), data.InMemory)
    assert isinstance(data.batches(arrays(50), 12, key=KEY, memory_budget=size - 1), data.Stream)


@pytest.mark.parametrize("make", [data.InMemory.create, data.Stream, data.batches])
@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_batches_refuses_a_batch_that_is_not_there(make, batch_size):
    said = "from 1 to the 50 examples.*" if batch_size > 0 else "batch_size must be at least 1,"
    with pytest.raises(ValueError, match=f"{said} got {batch_size}"):
        make(arrays(50), batch_size, key=KEY)


@pytest.mark.parametrize("make", [data.InMemory.create, data.Stream])
@pytest.mark.parametrize(
    "bad", [{}, {"a": np.zeros(())}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.zeros((0, 2))}]
)
def test_batches_refuses_arrays_without_a_common_length(make, bad):
    with pytest.raises(ValueError, match="expected arrays with one leading axis of examples"):
        make(bad, 1, key=KEY)


def test_stream_refuses_hosts_that_do_not_divide_the_batch():
    with pytest.raises(ValueError, match="divide by the 5 hosts, got 12"):
        data.Stream(arrays(50), 12, key=KEY, process_index=0, process_count=5)
    with pytest.raises(ValueError, match="process_index must be from 0 to 1, got 2"):
        data.Stream(arrays(50), 12, key=KEY, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        data.Stream(arrays(50), 12, key=KEY).seek(-1)
