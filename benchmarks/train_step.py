"""Time a train step of the `mnist` preset (the book's size) against the same network in PyTorch, alternating.

    python benchmarks/train_step.py [--batch-size 128] [--rounds 7]

Both sides: the same architecture (the parameter counts are compared), batch, loss and Adam, data in memory, all cores
(PyTorch's as threads, ours as devices that share the batch, `pmap`; with `--devices 1` as threads), in float32 and in
bfloat16 (PyTorch by autocast); PyTorch channels-last, ours in microbatches, of 4 images a device. Printed: seconds a
step (median), and how many times PyTorch's speed ours is (median of the pairs' ratios). Needs the extra `bench`.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import torch
import tyro
from jax.typing import DTypeLike
from torch import nn
from torch.nn import functional as F

from gen_jax import training
from gen_jax.diffusion import loss, process
from gen_jax.networks import unet


@dataclass(frozen=True)
class Config:
    """What to time."""

    batch_size: int = 128
    rounds: int = 7
    steps: int = 1
    """Steps a round."""
    devices: int = os.cpu_count() or 1
    """That JAX makes of the cores, as with `JAX_NUM_CPU_DEVICES`."""
    part: int = 4
    """Images of a device in a microbatch of ours (`training.make_step`); as many as it has, and there is one."""


class TorchBlock(nn.Module):
    """`layers.ResBlock`."""

    def __init__(self, inputs: int, features: int, embedding: int):
        super().__init__()
        self.norm_0, self.norm_1 = nn.GroupNorm(32, inputs), nn.GroupNorm(32, features)
        self.conv_0, self.conv_1 = (
            nn.Conv2d(inputs, features, 3, padding=1),
            nn.Conv2d(features, features, 3, padding=1),
        )
        self.film = nn.Linear(embedding, 2 * features)
        self.skip = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()
        nn.init.zeros_(self.conv_1.weight)
        nn.init.zeros_(self.conv_1.bias)

    def forward(self, x, emb):
        """Map `x`, told by `emb`."""
        h = self.conv_0(F.silu(self.norm_0(x)))
        scale, shift = self.film(F.silu(emb))[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.conv_1(F.silu(self.norm_1(h) * (1 + scale) + shift))


class TorchUNet(nn.Module):
    """`unet.mnist`: two levels, one block down and two up, skips from the stem and the pooled map as well."""

    def __init__(self, config: unet.UNetConfig):
        super().__init__()
        (c0, c1), e = config.channels, config.embedding
        self.features = e
        self.time = nn.Sequential(nn.Linear(e, e), nn.SiLU(), nn.Linear(e, e))
        self.stem = nn.Conv2d(1, c0, 3, padding=1)
        self.down_0, self.down_1 = TorchBlock(c0, c0, e), TorchBlock(c0, c1, e)
        self.middle_0, self.middle_1 = TorchBlock(c1, c1, e), TorchBlock(c1, c1, e)
        self.up_1_0, self.up_1_1 = TorchBlock(2 * c1, c1, e), TorchBlock(c1 + c0, c1, e)
        self.narrow = nn.Conv2d(c1, c0, 1)
        self.up_0_0, self.up_0_1 = TorchBlock(2 * c0, c0, e), TorchBlock(2 * c0, c0, e)
        self.norm, self.out = nn.GroupNorm(32, c0), nn.Conv2d(c0, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x, t):
        """Map `x` at times `t`."""
        frequencies = 10_000.0 ** (-torch.arange(self.features // 2) / (self.features // 2 - 1))
        angles = t[:, None] * frequencies
        emb = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        stem = self.stem(x)
        down_0 = self.down_0(stem, emb)
        pooled = F.avg_pool2d(down_0, 2)
        down_1 = self.down_1(pooled, emb)
        h = self.middle_1(self.middle_0(down_1, emb), emb)
        h = self.up_1_0(torch.cat([h, down_1], 1), emb)
        h = self.up_1_1(torch.cat([h, pooled], 1), emb)
        h = F.interpolate(self.narrow(h), scale_factor=2)
        h = self.up_0_0(torch.cat([h, down_0], 1), emb)
        h = self.up_0_1(torch.cat([h, stem], 1), emb)
        return self.out(F.silu(self.norm(h)))


def torch_step(config: Config, autocast: bool) -> tuple[Callable[[], None], int]:
    """One step of PyTorch, and its parameter count."""
    net = TorchUNet(unet.mnist).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x_0 = torch.randn(config.batch_size, 1, 28, 28).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        for _ in range(config.steps):
            t, eps = torch.randint(1, 1001, (len(x_0),)), torch.randn_like(x_0)
            a = alpha_bar[t - 1][:, None, None, None]
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                eps_hat = net(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t.float())
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(eps_hat.float(), eps).backward()
            optimizer.step()

    return step, sum(p.numel() for p in net.parameters())


def microbatches(config: Config) -> int:
    """In how many parts a step of ours takes its batch."""
    return max(1, config.batch_size // (config.devices * config.part))


def jax_step(config: Config, dtype: DTypeLike) -> tuple[Callable[[], None], int]:
    """The same of ours, as `fit` runs it."""
    net, proc = dataclasses.replace(unet.mnist, dtype=dtype).build(), process.DDPM()
    optimizer, _ = training.adam(1e-3, num_steps=10_000, clip_norm=None, schedule="constant")
    params = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))

    def loss_fn(params, key, x_0):
        return loss.denoising(key, lambda x_t, t: net.apply(params, x_t, t), proc, x_0)

    step = training.make_step(loss_fn, optimizer, ema_decay=None, microbatches=microbatches(config))
    compiled = training.compile_step(
        step, steps_per_call=config.steps, parallel="jit" if config.devices == 1 else "pmap"
    )
    shape = (config.batch_size, 28, 28, 1)
    x_0 = compiled.put(
        jax.random.normal(jax.random.key(1), shape if config.steps == 1 else (config.steps, *shape))
    )
    state = training.TrainState.create(params, optimizer, jax.random.key(2), ema=False)

    def run() -> None:
        nonlocal state
        state, _ = compiled(state, x_0)
        jax.block_until_ready(state)

    return run, sum(p.size for p in jax.tree.leaves(params))


def seconds(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(config: Config) -> dict[str, object]:
    """Print the medians as one JSON line."""
    jax.config.update("jax_num_cpu_devices", config.devices)
    (ours, count), (ours_bfloat16, _) = (jax_step(config, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    (float32, torch_count), (bfloat16, _) = (torch_step(config, autocast) for autocast in (False, True))
    if count != torch_count:
        raise ValueError(f"the two networks differ: {count} parameters here, {torch_count} in PyTorch")
    sides = {
        "gen_jax float32": ours,
        "gen_jax bfloat16": ours_bfloat16,
        "torch float32": float32,
        "torch bfloat16": bfloat16,
    }
    for step in sides.values():
        step()
    rounds = [
        {name: seconds(step) / config.steps for name, step in sides.items()} for _ in range(config.rounds)
    ]
    result: dict[str, object] = {"parameters": count, "batch_size": config.batch_size}
    result |= {"devices": config.devices, "microbatches": microbatches(config)}
    result["seconds_a_step"] = {name: round(statistics.median(r[name] for r in rounds), 3) for name in sides}
    for dtype in ("float32", "bfloat16"):
        ratios = [r[f"torch {dtype}"] / r[f"gen_jax {dtype}"] for r in rounds]
        result[f"times_torch_{dtype}"] = round(statistics.median(ratios), 3)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
