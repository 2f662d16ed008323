"""Time an epoch of the book's VAE against the same model and loop in PyTorch, data in memory, alternating.

    python benchmarks/vae.py [--rounds 5] [--steps 1875]

Both sides: 784-200-20 with ReLU, a sigmoid at the end, the loss `|x_hat - x|^2 + 2 KL`, Adam at 3e-4, batches of 32 of
60,000 images that are shuffled anew each epoch; the parameter counts are compared. Ours runs as `training.fit` runs it, a
round in one call. Printed: seconds a round of `steps` steps (medians), and how many times PyTorch's speed ours is (median
of the pairs' ratios); an epoch is 1875 steps. Needs the extra `bench`.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from gen_jax import data, likelihoods, training, vae
from gen_jax.networks import autoencoder

HIDDEN, LATENT, BATCH, RATE = 200, 20, 32, 3e-4


@dataclass(frozen=True)
class Config:
    """What to time."""

    rounds: int = 5
    steps: int = 1875
    """Steps a round; 1875 are an epoch."""


class TorchVAE(nn.Module):
    """The book's model."""

    def __init__(self):
        super().__init__()
        self.encode, self.posterior = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 2 * LATENT)
        self.decode, self.out = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, 784)

    def loss(self, x):
        """The book's loss, mean over the batch."""
        mean, log_std = self.posterior(F.relu(self.encode(x))).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        x_hat = torch.sigmoid(self.out(F.relu(self.decode(z))))
        kl = -torch.sum(1 + 2 * log_std - mean**2 - (2 * log_std).exp())
        return (F.mse_loss(x_hat, x, reduction="sum") + kl) / len(x)


def torch_round(config: Config, images: np.ndarray) -> tuple[Callable[[], None], int]:
    """A round of PyTorch, and its parameter count."""
    net = TorchVAE()
    optimizer = torch.optim.Adam(net.parameters(), RATE, fused=True)
    x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)

    def run() -> None:
        order = torch.randperm(len(x))
        for i in range(config.steps):
            optimizer.zero_grad(set_to_none=True)
            net.loss(x[order[i * BATCH : (i + 1) * BATCH]]).backward()
            optimizer.step()

    return run, sum(p.numel() for p in net.parameters())


def jax_round(config: Config, images: np.ndarray) -> tuple[Callable[[], None], int]:
    """The same of ours."""
    model = vae.VAE(
        autoencoder.MLPEncoder(LATENT, (HIDDEN,)),
        autoencoder.MLPDecoder((28, 28, 1), (HIDDEN,)),
        likelihoods.Gaussian(squash=True),
        LATENT,
    )
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    optimizer, _ = training.adam(RATE, num_steps=10**6, clip_norm=None, schedule="constant")
    loss = vae.loss(model, prepare=lambda key, image: data.to_zero_one(image))
    feed = data.batches({"image": images}, BATCH, key=jax.random.key(1))
    compiled = training.compile_step(
        training.make_step(loss, optimizer, ema_decay=None), steps_per_call=config.steps, select=feed.select
    )
    arrays = compiled.put(dict(feed.arrays))
    state = training.TrainState.create(params, optimizer, jax.random.key(2))

    def run() -> None:
        nonlocal state
        state, _ = compiled(state, arrays)
        jax.block_until_ready(state)

    return run, sum(p.size for p in jax.tree.leaves(params))


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(config: Config) -> dict:
    """Print the medians as one JSON line."""
    images = data.load("mnist")["image"]
    if not 1 <= config.steps <= len(images) // BATCH:
        raise ValueError(f"steps must be from 1 to {len(images) // BATCH}, an epoch, got {config.steps}.")
    (ours, count), (theirs, torch_count) = jax_round(config, images), torch_round(config, images)
    if count != torch_count:
        raise ValueError(f"the two models differ: {count} parameters here, {torch_count} in PyTorch")
    ours()
    theirs()
    rounds = [(seconds(ours), seconds(theirs)) for _ in range(config.rounds)]
    result = {
        "model": "vae",
        "parameters": count,
        "steps": config.steps,
        "seconds_a_round": round(statistics.median(r[0] for r in rounds), 3),
        "seconds_a_round_torch": round(statistics.median(r[1] for r in rounds), 3),
        "times_torch": round(statistics.median(r[1] / r[0] for r in rounds), 2),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
