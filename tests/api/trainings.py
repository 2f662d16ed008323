"""Calls of `training`."""

import atexit
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import data, training
from tests.api.walk import call

KEY = jax.random.key(0)
WORK = Path(tempfile.mkdtemp(prefix="gen_jax-api-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
PARAMS = {"w": jnp.ones(3)}
OPTIMIZER = optax.sgd(0.1)
STATE = training.TrainState.create(PARAMS, OPTIMIZER, KEY)
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
BATCHES = data.batches({"x": X}, 4, key=KEY)
ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


def loss(params, key, batch):
    """The mean square of what is left."""
    return jnp.mean((batch["x"] - params["w"][None]) ** 2), {}


STEP = training.make_step(loss, OPTIMIZER, ema_decay=0.9)
with training.Checkpoints(WORK / "run" / "checkpoints") as checkpoints:
    checkpoints.save(STATE, {"config": {"a": 1}})

TRAINING = {
    "adam": call(0.1, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, num_steps=10),
    "muon": call(0.1, momentum=0.9, b2=0.99, iterations=3, num_steps=10),
    "scheduled": call(
        optax.sgd, 0.1, num_steps=10, warmup_steps=2, schedule="cosine", clip_norm=1.0, accumulate=2
    ),
    "skip_exploding": call(OPTIMIZER, factor=10.0, decay=0.9, warmup=5),
    "make_step": call(loss, OPTIMIZER, ema_decay=0.9, aux=False, microbatches=2),
    "compile_step": call(
        STEP,
        parallel="jit",
        mesh=ONE,
        shard="fsdp",
        rules=(("kernel$", ("tensor", None)),),
        steps_per_call=2,
        select=BATCHES.select,
        donate=True,
    ),
    "default_parallel": call("zero1", ONE),
    "make_mesh": call("fsdp", tensor=1, replicas=1, devices=jax.devices()[:2]),
    "on_host": call(PARAMS, free=("tree: None",)),  # a tree without arrays
    "split_cpu_devices": call(2),
    "load": call(str(WORK / "run"), ema=True, dtype="float32", first_from=0),
    "fit": call(
        STEP,
        STATE,
        BATCHES,
        num_steps=2,
        config={"a": 1},
        may_change=("a",),
        options=training.Options(steps_per_call=1, progress=False),
        schedule=optax.constant_schedule(0.1),
        shown="loss",
        callbacks=(),
        mesh=ONE,
        resume=True,
    ),
    "cost.flops": call(jnp.dot, X, X.T, free=("f: ",)),
    "cost.of_run": call(str(WORK / "run")),
    "cost.peak": call(jax.devices()[:1]),
    "ema.warmup": call(0.9),
    "ema.power": call(6.94),
    "ema.gamma_of_width": call(0.1),
}
EXAMPLES = {f"training.{name}": example for name, example in TRAINING.items()}
