"""Time an epoch of the book's VAE and HVAE against the same model and loop in PyTorch, data in memory, alternating.

    python benchmarks/vae.py [--models vae hvae] [--rounds 5] [--steps 1875]

Both sides: the VAE is 784-200-20, the HVAE 784-100-20-100-20, both with ReLU and a sigmoid at the end, the loss
`|x_hat - x|^2 + 2 KL`, Adam at 3e-4, batches of 32 of 60,000 images that are shuffled anew each epoch; the parameter
counts are compared. Ours runs as `training.fit` runs it, a round in one call. Printed, one JSON line a model: seconds a
round of `steps` steps (medians), and how many times PyTorch's speed ours is (median of the pairs' ratios); an epoch is
1875 steps. Needs the extra `bench`.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from gen_jax import data, hvae, likelihoods, training, vae
from gen_jax.networks import autoencoder
from gen_jax.networks.mlp import MLP

LATENT, BATCH, RATE = 20, 32, 3e-4


@dataclass(frozen=True)
class Config:
    """What to time."""

    models: tuple[Literal["vae", "hvae"], ...] = ("vae", "hvae")
    rounds: int = 5
    steps: int = 1875
    """Steps a round; 1875 are an epoch."""


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """A hidden layer with ReLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def drawn(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """A draw of `N(mean, std^2)`."""
    return mean + log_std.exp() * torch.randn_like(mean)


def twice_kl(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """`2 KL(N(mean, std^2) || N(0, I))`, summed."""
    return -torch.sum(1 + 2 * log_std - mean**2 - (2 * log_std).exp())


class TorchVAE(nn.Module):
    """The book's model of step 7."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = two_layers(784, 200, 2 * LATENT), two_layers(LATENT, 200, 784)

    def loss(self, x):
        """The book's loss, mean over the batch."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        x_hat = torch.sigmoid(self.decoder(drawn(mean, log_std)))
        return (F.mse_loss(x_hat, x, reduction="sum") + twice_kl(mean, log_std)) / len(x)


class TorchHVAE(nn.Module):
    """The book's model of step 8."""

    def __init__(self):
        super().__init__()
        self.encoder1, self.encoder2 = two_layers(784, 100, 2 * LATENT), two_layers(LATENT, 100, 2 * LATENT)
        self.decoder1, self.decoder2 = two_layers(LATENT, 100, 784), two_layers(LATENT, 100, LATENT)

    def loss(self, x):
        """The book's loss, mean over the batch."""
        mean1, log_std1 = self.encoder1(x).chunk(2, 1)
        z1 = drawn(mean1, log_std1)
        mean2, log_std2 = self.encoder2(z1).chunk(2, 1)
        z1_hat = self.decoder2(drawn(mean2, log_std2))
        x_hat = torch.sigmoid(self.decoder1(z1))
        kl = twice_kl(mean1 - z1_hat, log_std1) + twice_kl(mean2, log_std2)
        return (F.mse_loss(x_hat, x, reduction="sum") + kl) / len(x)


def torch_round(config: Config, net: nn.Module, images: np.ndarray) -> tuple[Callable[[], None], int]:
    """A round of PyTorch, and its parameter count."""
    optimizer = torch.optim.Adam(net.parameters(), RATE, fused=True)
    x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)

    def run() -> None:
        order = torch.randperm(len(x))
        for i in range(config.steps):
            optimizer.zero_grad(set_to_none=True)
            net.loss(x[order[i * BATCH : (i + 1) * BATCH]]).backward()
            optimizer.step()

    return run, sum(p.numel() for p in net.parameters())


def our_vae() -> tuple[vae.VAE, training.Loss]:
    """The model of step 7 and its loss."""
    model = vae.VAE(
        autoencoder.MLPEncoder(LATENT, (200,)),
        autoencoder.MLPDecoder((28, 28, 1), (200,)),
        likelihoods.Gaussian(squash=True),
        LATENT,
    )
    return model, vae.loss(model, prepare=lambda key, image: data.to_zero_one(image))


def our_hvae() -> tuple[hvae.HVAE, training.Loss]:
    """The model of step 8 and its loss."""
    model = hvae.HVAE(
        (autoencoder.MLPEncoder(LATENT, (100,)), autoencoder.MLPEncoder(LATENT, (100,))),
        (autoencoder.MLPDecoder((28, 28, 1), (100,)), MLP((100, LATENT))),
        likelihoods.Gaussian(squash=True),
        (LATENT, LATENT),
        "neighbours",
    )
    return model, hvae.loss(model, scale=2.0, prepare=lambda key, image: data.to_zero_one(image))


MODELS = {"vae": (our_vae, TorchVAE), "hvae": (our_hvae, TorchHVAE)}


def jax_round(
    config: Config, model: vae.VAE | hvae.HVAE, loss: training.Loss, images: np.ndarray
) -> tuple[Callable[[], None], int]:
    """The same of ours."""
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    optimizer, _ = training.adam(RATE, num_steps=10**6, clip_norm=None, schedule="constant")
    feed = data.batches({"image": images}, BATCH, key=jax.random.key(1))
    compiled = training.compile_step(
        training.make_step(loss, optimizer, ema_decay=None), steps_per_call=config.steps, select=feed.select
    )
    arrays = compiled.put(dict(feed.arrays))
    state = training.TrainState.create(params, optimizer, jax.random.key(2), ema=False)

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


def compare(config: Config, name: str, images: np.ndarray) -> dict[str, float | str]:
    """Alternating rounds of one model."""
    make, peer = MODELS[name]
    (ours, count), (theirs, torch_count) = (
        jax_round(config, *make(), images),
        torch_round(config, peer(), images),
    )
    if count != torch_count:
        raise ValueError(f"the two models differ: {count} parameters here, {torch_count} in PyTorch")
    ours()
    theirs()
    rounds = [(seconds(ours), seconds(theirs)) for _ in range(config.rounds)]
    return {
        "model": name,
        "parameters": count,
        "steps": config.steps,
        "seconds_a_round": round(statistics.median(r[0] for r in rounds), 3),
        "seconds_a_round_torch": round(statistics.median(r[1] for r in rounds), 3),
        "times_torch": round(statistics.median(r[1] / r[0] for r in rounds), 2),
    }


def main(config: Config) -> list[dict[str, float | str]]:
    """Print the medians, one JSON line a model."""
    images = data.load("mnist")["image"]
    if not 1 <= config.steps <= len(images) // BATCH:
        raise ValueError(f"steps must be from 1 to {len(images) // BATCH}, an epoch, got {config.steps}.")
    results = []
    for name in config.models:
        results.append(compare(config, name, images))
        print(json.dumps(results[-1]), flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
