"""A problem of a millisecond a step with what matters: per-example noise, uint8 data, a shuffled order."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import keys, training

NUM, DIM, WIDTH, BATCH = 256, 16, 256, 32


def arrays():
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (NUM, DIM), dtype=np.uint8),
        "index": np.arange(NUM, dtype=np.int32),
    }


def params(seed=0):
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "hidden": {"kernel": 0.2 * jax.random.normal(first, (DIM, WIDTH)), "bias": jnp.zeros((WIDTH,))},
        "out": {"kernel": 0.05 * jax.random.normal(second, (WIDTH, DIM))},
    }


def loss(params, key, batch):
    """A denoising autoencoder; `order` is a number that tells the rows of the batch and their order."""
    x = batch["x"] / 127.5 - 1.0
    n = x.shape[0]
    noisy = x + keys.normal(key, x.shape)
    hidden = jnp.tanh(noisy @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    error = jnp.mean((hidden @ params["out"]["kernel"] - x) ** 2)
    position, size = keys.example_index(n)
    return error, {"order": jnp.mean(batch["index"] * (position + 1.0) / size)}


def order(rows):
    """The metric `order` of `rows [B]`."""
    return float(np.mean(rows * (np.arange(len(rows)) + 1.0) / len(rows)))


class InMemory:
    """Shuffled anew each epoch, as a pure function of the step; the number of rows is a power of two."""

    def __init__(self, batch_size=BATCH, data=None):
        self.arrays = arrays() if data is None else data
        self.batch_size = batch_size
        self.num = len(self.arrays["index"])

    def select(self, step, num_steps):
        def rows(k):
            epoch, place = k // (self.num // self.batch_size), k % (self.num // self.batch_size)
            a, b = jax.random.bits(
                jax.random.fold_in(jax.random.key(7), epoch), (2,)
            )  # i -> a i + b: no sort to compile
            return (
                (2 * a + 1) * (place * self.batch_size + jnp.arange(self.batch_size, dtype=a.dtype)) + b
            ) % self.num

        return jax.vmap(rows)(step + jnp.arange(num_steps)).astype(jnp.int32)


class Stream:
    """The same batches from the host, this process's rows of them."""

    def __init__(self, batch_size=BATCH):
        self.memory = InMemory(batch_size)
        self.batch_size, self.step, self.taken = batch_size, 0, []

    def seek(self, step):
        self.step = step

    def __next__(self):
        rows = np.asarray(self.memory.select(jnp.int32(self.step), 1))[0]
        self.taken.append(self.step)
        self.step += 1
        size = self.batch_size // jax.process_count()
        rows = rows[jax.process_index() * size :][:size]
        return {name: x[rows] for name, x in self.memory.arrays.items()}


def setup(num_steps=100, *, learning_rate=1e-2, loss=loss, ema_decay=0.99, microbatches=1, **options):
    """`(step, state, schedule)` of the toy problem."""
    optimizer, schedule = training.adam(learning_rate, num_steps=num_steps, warmup_steps=5, **options)
    state = training.TrainState.create(params(), optimizer, jax.random.key(3))
    step = training.make_step(loss, optimizer, ema_decay=ema_decay, microbatches=microbatches)
    return step, state, schedule


def leaves(state):
    """Every number of a state, on the host."""
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def assert_same_bits(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(a, b, atol):
    """On parameters and their average."""
    for x, y in zip(
        jax.tree.leaves((a.params, a.ema_params)), jax.tree.leaves((b.params, b.ema_params)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol)


def fit(workdir, num_steps=40, *, memory=None, problem=None, on_sample=None, callbacks=(), **options):
    """`training.fit` of the toy problem, with fields of `Options` among the options."""
    step, state, schedule = setup(num_steps) if problem is None else problem
    how = {"parallel": "jit", "steps_per_call": 5, "log_every": 10, "checkpoint_every": 10, "progress": False}
    fields = {field.name for field in dataclasses.fields(training.Options)}
    how |= {name: options.pop(name) for name in fields & set(options)}
    config = {"width": WIDTH, "net": {"depth": 2}, "num_steps": num_steps}
    options = {"config": config, "schedule": schedule, "mesh": ONE} | options
    if on_sample is not None:
        callbacks = (*callbacks, OnSample(on_sample))
    return training.fit(
        step,
        state,
        memory or InMemory(),
        num_steps=num_steps,
        workdir=workdir,
        options=training.Options(**how),
        callbacks=callbacks,
        **options,
    )


class OnSample(training.Callback):
    def __init__(self, f):
        self.on_sample = f


ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))  # compiles faster than eight


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(workdir):
    with training.Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()
