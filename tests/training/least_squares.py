"""The least problem that `fit` can train: `mean((w - x)^2)` of a vector `w`, in one device's steps without a sound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy

from gen_jax import training
from gen_jax.training import TrainState, make_step

KEY = jax.random.key(0)
QUIET = training.Options(steps_per_call=1, progress=False, parallel="jit")
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def quadratic(params, key, batch):
    return jnp.mean((params["w"][None] - batch["x"]) ** 2), {}


def state_of(optimizer, w=None):
    return TrainState.create({"w": jnp.zeros(3)} if w is None else w, optimizer, KEY, ema=False)


def fit(loss=quadratic, optimizer=None, batches=None, num_steps=4, options=QUIET, state=None, **more):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    step = loss if hasattr(loss, "parts") else make_step(loss, optimizer, ema_decay=None)
    state = state_of(optimizer) if state is None else state
    batches = [{"x": X}] if batches is None else batches
    return training.fit(step, state, batches, num_steps=num_steps, options=options, mesh=toy.ONE, **more)
