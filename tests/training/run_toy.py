"""A run of the toy problem in a process of its own: `python run_toy.py workdir out.npz [options]`."""

import argparse
import sys
import time

sys.modules["torch"] = None  # tensorboardX imports it where it is installed, which takes seconds

parser = argparse.ArgumentParser()
parser.add_argument("workdir")
parser.add_argument("out")
parser.add_argument("--num-steps", type=int, default=60)
parser.add_argument("--seconds-per-call", type=float, default=0.0)
parser.add_argument("--parallel", default="jit")
parser.add_argument("--fsdp", action="store_true")
parser.add_argument("--stream", action="store_true")
options = parser.parse_args()

from gen_jax import training

training.initialize_distributed()

import jax
import numpy as np
import toy


class Wait(training.Callback):
    def on_sample(self, step, state):
        time.sleep(options.seconds_per_call)


step, _, schedule = toy.setup(options.num_steps)
state = training.fit(
    step,
    lambda: toy.setup(options.num_steps)[1],
    toy.Stream() if options.stream else toy.InMemory(),
    num_steps=options.num_steps,
    workdir=options.workdir,
    config={"batch_size": toy.BATCH},
    schedule=schedule,
    options=training.Options(
        parallel=options.parallel,
        fsdp=options.fsdp,
        steps_per_call=5,
        log_every=5,
        checkpoint_every=10,
        sample_every=5,
    ),
    callbacks=[Wait()],
)
state = jax.jit(lambda s: s, out_shardings=training.Layout().sharding())(state)  # gather what is sharded
if jax.process_index() == 0:
    np.savez(options.out, *toy.leaves(state))
