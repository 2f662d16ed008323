"""What people do with a training loop: loaders, losses and optimizers of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from least_squares import KEY, X, fit, quadratic, state_of

from gen_jax import training
from gen_jax.training import TrainState, make_step

# --- loaders ---


def steps_of(batches):
    """Plain gradient descent on the given batches, in float64."""
    w = np.zeros(3)
    for batch in batches:
        w = w - 0.1 * 2 * (w - batch.astype(np.float64)).mean(0) / 3
    return w


PARTS = [X[:5], X[5:10], X[10:]]


class Loader:
    """As torch's: it is gone through again and again, in one order, and its last batch is smaller."""

    batch_size = 5

    def __init__(self, make=lambda x: {"x": x}):
        self.make, self.passes = make, 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.passes += 1
        return iter([self.make(x) for x in PARTS])


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize(
    "batches",
    [
        lambda: [{"x": x} for x in PARTS],
        lambda: training.Repeated(Loader()),
        lambda: training.Repeated(lambda: ({"x": x} for x in PARTS)),
        lambda: training.Repeated(Loader(lambda x: {"x": memoryview(x)})),
    ],
    ids=["list", "loader", "generators", "what becomes arrays"],
)
def test_iterables_are_gone_through_again_and_again(tmp_path, batches, steps_per_call):
    options = training.Options(steps_per_call=steps_per_call, progress=False)
    run = lambda num: fit(batches=batches(), num_steps=num, options=options, workdir=tmp_path, config={})
    expected = [PARTS[i % 2] for i in range(8)]  # without the smaller ones
    np.testing.assert_allclose(run(4).params["w"], steps_of(expected[:4]), rtol=1e-5)
    np.testing.assert_allclose(run(8).params["w"], steps_of(expected), rtol=1e-5)


def test_seek_reads_no_more_than_a_pass():
    loader = Loader()
    batches = training.Repeated(loader)
    batches.seek(1_000_001)
    assert loader.passes < 5
    np.testing.assert_array_equal(next(batches)["x"], PARTS[1])
    assert batches.batch_size == 5


def test_a_torch_loader_is_one(tmp_path):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader([{"x": torch.tensor(x)} for x in X], batch_size=5)
    state = fit(batches=training.Repeated(loader), num_steps=4)
    np.testing.assert_allclose(state.params["w"], steps_of([PARTS[i % 2] for i in range(4)]), rtol=1e-5)


class Ends:
    batch_size = 5

    def __init__(self, batches):
        self.batches = batches

    def seek(self, step):
        self.iterator = iter(self.batches[step:])

    def __next__(self):
        return next(self.iterator)


ROWS = [{"x": x} for x in PARTS]
OTHER = [{"x": X[:4]}, {"y": X[:4]}]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (
            lambda: (b for b in ROWS),
            r"batches must be .*`seek\(step\)`.*training\.Repeated\(loader\).*got a generator",
        ),
        (lambda: {"x": X}, r"batches must be .*data\.batches\(arrays, batch_size, key=key\).*; got a dict"),
        (lambda: Loader(), r"training\.Repeated\(loader\).*got an object of \S+\.Loader"),
        (lambda: Ends(ROWS[:2]), r"batches ended before step 2: .*training\.Repeated"),
        (
            lambda: Ends([{"x": X[:0]}]),
            r"the batch of step 0 must have arrays with equally many rows, at least one",
        ),
        (lambda: Ends([{"x": X[:4]}]), r"the batch of step 0 must have batch_size rows, 5 .*, got 4"),
        (lambda: Ends([{"x": X, "y": X[:5]}]), r"equally many rows.*\['x'\] has 12, \['y'\] has 5"),
        (lambda: Ends([{"x": np.array(["a", "b"])}]), r"the batch of step 0\['x'\] must be numbers"),
        (lambda: [], "source has no batches"),
        (lambda: training.Repeated(range(3)), "equally many rows, at least one: it has no axis"),
        (lambda: OTHER, r"batch 1 has other arrays than the first"),
    ],
)
def test_what_is_no_data_is_told_the_protocol(batches, said):
    with pytest.raises(ValueError, match=said):
        fit(batches=batches())


def test_a_generator_is_gone_through_once():
    with pytest.raises(ValueError, match=r"gone through once, .*training\.Repeated\(lambda: \.\.\.\)"):
        training.Repeated(b for b in ROWS)


def test_a_partial_batch_in_a_call_of_several_is_named():
    options = training.Options(steps_per_call=4, progress=False)
    with pytest.raises(
        ValueError, match=r"batch of step 2 must have batch_size rows, 5 .*, got 2.*drop_last=True"
    ):
        fit(batches=Ends([*ROWS, *ROWS]), options=options)


def test_arrays_of_two_lengths_are_refused():
    """XLA takes the last row for those that are not there."""

    class Uneven(toy.InMemory):
        arrays = property(lambda self: {"x": X, "index": np.arange(5)}, lambda self, value: None)

    memory = Uneven.__new__(Uneven)
    memory.batch_size, memory.num = 4, 12
    with pytest.raises(ValueError, match=r"batches\.arrays must have arrays with equally many rows"):
        fit(batches=memory)


# --- losses ---


def test_a_loss_may_return_a_number_alone():
    alone = fit(lambda *args: quadratic(*args)[0])
    np.testing.assert_array_equal(alone.params["w"], fit().params["w"])


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        (
            lambda v: v * jnp.ones(4),
            r"loss must return a number, .* returned an array float32 \(4,\)\. Take its mean",
        ),
        (lambda v: (v, v * jnp.ones(4)), r"in the place of the dict it returned an array float32 \(4,\)"),
        (lambda v: (v, {}, {}), "returned a tuple of 3"),
        (lambda v: {"loss": v}, "returned a dict of 'loss'"),
        (lambda v: (v, {"deep": {"a": v}}), "'deep' is a dict of 'a'"),
        (lambda v: None, "returned None"),
    ],
)
def test_what_no_loss_returns_is_said(out, said, microbatches):
    step = make_step(
        lambda *a: out(quadratic(*a)[0]), optax.sgd(0.1), ema_decay=None, microbatches=microbatches
    )
    with pytest.raises(ValueError, match=said):
        step(state_of(optax.sgd(0.1)), {"x": jnp.asarray(X)})


# --- optimizers ---


def rosenbrock(params, key, batch):
    x, y = params["w"][0], params["w"][1]
    return 100 * (y - x**2) ** 2 + (1 - x) ** 2 + 0 * jnp.mean(batch["x"]), {}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_lbfgs_gets_what_its_line_search_needs(microbatches):
    optimizer = optax.lbfgs()
    state = TrainState.create({"w": jnp.array([-1.0, 1.5])}, optimizer, KEY, ema=False)
    step = make_step(rosenbrock, optimizer, ema_decay=None, microbatches=microbatches)
    state = fit(step, optimizer, state=state, batches=[{"x": X}], num_steps=40)
    np.testing.assert_allclose(state.params["w"], [1, 1], atol=1e-3)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_lbfgs_searches_for_all_devices_at_once(parallel):
    """The mean of rows that differ from device to device, which is the minimum of their mean square distance."""
    x = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    optimizer = optax.lbfgs()
    step = make_step(quadratic, optimizer, ema_decay=None)
    compiled = training.compile_step(step, parallel=parallel, steps_per_call=1)
    state = state_of(optimizer)
    for _ in range(6):
        state, _ = compiled(state, {"x": x})
    np.testing.assert_allclose(state.params["w"], x.mean(0), atol=1e-5)


def test_a_rate_falls_where_the_loss_does_not(tmp_path):
    optimizer = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0)
    )
    flat = lambda params, key, batch: 1.0 + 0 * jnp.sum(params["w"])
    state = fit(flat, optimizer, num_steps=9, workdir=tmp_path, config={})
    assert jax.tree.leaves(state.opt_state[-1].scale)[0] < 0.3


def test_multisteps_is_an_optimizer():
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
    state = fit(optimizer=optimizer, num_steps=4)
    np.testing.assert_allclose(state.params["w"], steps_of([X, X]), rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 4, 4), r"must have 2 rows as the first one has, got 4 in batch 1"),
        ((4, 2, 4), r"4 rows .* but for the last of a pass; got 2 in batch 1"),
    ],
)
def test_no_batch_in_a_pass_is_left_out(sizes, message):
    batches = training.Repeated([{"x": np.zeros((n, 3), np.float32)} for n in sizes])
    with pytest.raises(ValueError, match=message):
        [next(batches) for _ in range(4)]


def test_the_last_batch_of_a_pass_may_be_short():
    batches = training.Repeated([{"x": np.full((n, 1), n)} for n in (4, 4, 1)])
    assert [len(next(batches)["x"]) for _ in range(5)] == [4] * 5


def test_a_loss_is_no_step():
    for call in (
        lambda: training.fit(quadratic, state_of(optax.sgd(0.1)), ROWS[:1], num_steps=2),
        lambda: training.compile_step(quadratic),
    ):
        with pytest.raises(
            ValueError, match=r"step must be made by training.make_step.* of params, key, batch"
        ):
            call()


def test_a_run_that_is_longer_says_whose_state_it_returns(tmp_path):
    fit(workdir=tmp_path, num_steps=4)
    with pytest.warns(UserWarning, match=r"num_steps is 2, but the run in .* has 4 steps"):
        assert fit(workdir=tmp_path, num_steps=2).step == 4
