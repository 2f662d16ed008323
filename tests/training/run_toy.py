"""A run of the toy problem in a process of its own: `python run_toy.py workdir out.npz [options]`."""

import argparse
import resource
import sys
import time

sys.modules["torch"] = None  # tensorboardX imports it where it is installed, which takes seconds

parser = argparse.ArgumentParser()
parser.add_argument("workdir")
parser.add_argument("out")
parser.add_argument("--num-steps", type=int, default=60)
parser.add_argument("--seconds-per-call", type=float, default=0.0)
parser.add_argument("--parallel", default="jit")
parser.add_argument("--shard")
parser.add_argument("--stream", action="store_true")
parser.add_argument("--checkpoint-every", type=int, default=10)
parser.add_argument("--keep", type=int, default=3)
parser.add_argument("--hold-at", type=int, help="the step at which to wait for a minute")
parser.add_argument("--clock-back-at", type=int, help="the step at which the clock jumps back by an hour")
parser.add_argument("--full-from", type=int, help="the step from which on files of 32 KiB are too large")
parser.add_argument("--lease", type=float, help="seconds after which a lease lapses")
options = parser.parse_args()

from gen_jax import ending, training
from gen_jax.training import lock

lock.LEASE = options.lease or lock.LEASE

training.initialize_distributed()

import absl.logging
import jax
import numpy as np
import toy


class Wait(training.Callback):
    def on_sample(self, step, state):
        time.sleep(60 if step == options.hold_at else options.seconds_per_call)
        if step == options.clock_back_at:
            back = time.time
            time.time, time.time_ns = lambda: back() - 3600, lambda: int((back() - 3600) * 1e9)
        if step == options.full_from:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, resource.RLIM_INFINITY))


step, _, schedule = toy.setup(options.num_steps)
fit = lambda: training.fit(
    step,
    lambda: toy.setup(options.num_steps)[1],
    toy.Stream() if options.stream else toy.InMemory(),
    num_steps=options.num_steps,
    workdir=options.workdir,
    config={"batch_size": toy.BATCH},
    schedule=schedule,
    options=training.Options(
        parallel=options.parallel,
        shard=options.shard,
        steps_per_call=5,
        log_every=15,  # most checkpoints lie inside of an interval of the log
        checkpoint_every=options.checkpoint_every,
        keep=options.keep,
        sample_every=5,
    ),
    callbacks=[Wait()],
)
absl.logging.set_verbosity(absl.logging.FATAL)
with ending.said("run_toy"):
    state = fit()
state = jax.jit(lambda s: s, out_shardings=training.Layout().sharding())(state)  # gather what is sharded
if jax.process_index() == 0:
    np.savez(options.out, *toy.leaves(state))
