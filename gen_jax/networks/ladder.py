"""The network of a ladder VAE: bottom-up features of the data, then top-down a latent at every level.

    bottom_up   x -> d_s                       features of the data, one map for each stage
    prior       h -> (mean, log_std), h        p(z_l | z_{>l})
    posterior   d_s, h -> (mean, log_std)      q(z_l | z_{>l}, x)
    push        h, z_l -> h                    add the latent to the features of the levels below
    output      h -> out                       the input of the likelihood

A level is one of the latents `z_1, ..., z_L`; a stage is a resolution, with one or more levels. If the patch is the whole
image, or after enough halvings, a map has one pixel and its convolutions are affine maps: the network is then made of
multilayer perceptrons. There is no normalisation. Instead the last map of each of the `N` residual blocks starts with its
variance divided by `N`, so that their sum is as large for 50 levels as for 5 (Child 2021, Section 3.2).

The submodules have explicit names: those are the paths of their parameters in checkpoints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.networks import layers

__all__ = ["Ladder", "LatentLevel", "Residual", "Stage"]

Pair = tuple[Float[Array, "B *z"], Float[Array, "B *z"]]
"""Mean and log standard deviation, the latter before any bound."""


@checks.checked
@dataclass(frozen=True)
class Stage:
    """The levels at one resolution."""

    width: int
    """Channels of the features."""
    latents: Sequence[int]
    """Channels of the latent at each level, the level nearest the data first."""
    blocks: int = 1
    """Residual blocks on the way up, and after each level on the way down."""
    halvings: int = 0
    """How often the maps of the stage below are halved; 0 in the first stage, whose pixels are the patches."""
    hidden: int | None = None
    """Channels inside a block (default: `width`)."""


class Residual(nn.Module):
    """The residual branch `W_2 a(K a(x))`: a convolution `K`, then an affine map whose initial variance is scaled."""

    features: int
    hidden: int
    kernel: int
    scale: float = 1.0
    """Factor of the initial variance of `W_2`."""
    activation: Callable[[Array], Array] = nn.silu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """The branch alone, without `x`."""
        kind: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inner = (
            nn.Dense(self.hidden, **kind)
            if self.kernel == 1
            else layers.Conv(self.hidden, self.kernel, **kind)
        )
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        return nn.Dense(self.features, kernel_init=init, **kind)(self.activation(inner(self.activation(x))))


class LatentLevel(nn.Module):
    """Prior and posterior of one latent, and the blocks that follow it."""

    stage: Stage
    latent: int
    """Channels of the latent."""
    kernel: int
    depth: int
    """Number of residual blocks on the whole way down."""
    activation: Callable[[Array], Array] = nn.silu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers."""
        width, hidden = self.stage.width, self.stage.hidden or self.stage.width
        dtypes: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = lambda name, features, scale: Residual(
            features, hidden, self.kernel, scale, self.activation, name=name, **dtypes
        )
        # small at the start: the prior is near N(0, 1), the posterior near the prior
        self.prior_net = block("says", 2 * self.latent + width, 0.1)
        self.posterior_net = block("sees", 2 * self.latent, 0.1)
        init = nn.initializers.variance_scaling(1 / self.depth, "fan_in", "truncated_normal")
        self.latent_map = nn.Dense(width, kernel_init=init, name="tells", **dtypes)
        self.blocks = [block(f"blocks_{i}", width, 1 / self.depth) for i in range(self.stage.blocks)]

    def prior(self, h: Float[Array, "B h w D"]) -> tuple[Pair, Float[Array, "B h w D"]]:
        """`(mean, log_std), h`."""
        mean, log_std, change = jnp.split(self.prior_net(h), [self.latent, 2 * self.latent], axis=-1)
        return (mean, log_std), h + change

    def posterior(self, d: Float[Array, "B h w D"], h: Float[Array, "B h w D"] | None) -> Pair:
        """`mean, log_std`."""
        out = self.posterior_net(d if h is None else jnp.concatenate([h, d], axis=-1))
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, log_std

    def push(self, h: Float[Array, "B h w D"], z: Float[Array, "B h w Z"]) -> Float[Array, "B h w D"]:
        """`h` with the latent added, after the residual blocks."""
        h = h + self.latent_map(z.astype(h.dtype))
        for block in self.blocks:
            h = h + block(h)
        return h


class Ladder(nn.Module):
    """The network of all levels. Level 0 is the latent nearest the data, `z_1`.

    Use it through `hvae.Ladder`, or call its methods through `bind`.
    """

    shape: Sequence[int]
    """`(H, W, C)` of the data."""
    outputs: int
    """Numbers that the likelihood takes for each pixel, `likelihood.outputs(C)`."""
    stages: Sequence[Stage]
    """From the data up."""
    patch: int = 1
    """Side of the square patches that the first map folds into channels; with the size of the image, it has one pixel."""
    activation: Callable[[Array], Array] = nn.silu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The layers."""
        if not self.stages or any(not s.latents or min(s.latents) < 1 for s in self.stages):
            raise ValueError(
                f"each stage needs a level, and each level a latent of at least 1 channel, got {self.stages}."
            )
        if self.stages[0].halvings:
            raise ValueError("the first stage is not halved: give the network a larger patch.")
        dtypes: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kernels = [1 if size == (1, 1) else 3 for size in self.sizes]
        place = list(zip(self.stages, kernels, strict=True))
        up = sum(s.blocks for s in self.stages)
        down = sum((s.blocks + 1) * len(s.latents) for s in self.stages)
        self.up_maps = [nn.Dense(s.width, name=f"enters_{i}", **dtypes) for i, s in enumerate(self.stages)]
        self.up_blocks = [
            [
                Residual(
                    s.width, s.hidden or s.width, k, 1 / up, self.activation, name=f"ups_{i}_{j}", **dtypes
                )
                for j in range(s.blocks)
            ]
            for i, (s, k) in enumerate(place)
        ]
        each = [(s, latent, k) for s, k in place for latent in s.latents]
        self.latent_levels = [
            LatentLevel(s, latent, k, down, self.activation, name=f"rungs_{i}", **dtypes)
            for i, (s, latent, k) in enumerate(each)
        ]
        self.biases = [
            self.param(f"bias_{i}", nn.initializers.zeros, (1, *size, s.width), self.param_dtype)
            for i, (s, size) in enumerate(zip(self.stages, self.sizes, strict=True))
        ]
        self.down_maps = [
            nn.Dense(s.width, name=f"leaves_{i}", **dtypes) for i, s in enumerate(self.stages[:-1])
        ]
        self.out = nn.Dense(self.patch**2 * self.outputs, name="last", **dtypes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the maps of each stage."""
        sizes = [(-(-self.shape[0] // self.patch), -(-self.shape[1] // self.patch))]
        for stage in self.stages[1:]:
            sizes.append(_halved(sizes[-1], stage.halvings)[-1])
        return sizes

    @property
    def levels(self) -> int:
        """Number of latents."""
        return sum(len(stage.latents) for stage in self.stages)

    @property
    def stage_of(self) -> list[int]:
        """The stage of each level."""
        return [i for i, stage in enumerate(self.stages) for _ in stage.latents]

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of the latent at each level."""
        return [(*n, c) for n, s in zip(self.sizes, self.stages, strict=True) for c in s.latents]

    def bottom_up(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "B ..."]]:
        """Features of `x` in [0, 1], for each stage."""
        d, features = layers.space_to_depth(2 * x.astype(self.dtype) - 1, self.patch), []
        for stage, up_map, blocks in zip(self.stages, self.up_maps, self.up_blocks, strict=True):
            for _ in range(stage.halvings):
                d = layers.pool(d)
            d = up_map(d)
            for block in blocks:
                d = d + block(d)
            features.append(d)
        return features

    def top(self, n: int) -> Float[Array, "n h w D"]:
        """The features at the top, a learned constant, for `n` examples."""
        return jnp.broadcast_to(self.biases[-1], (n, *self.biases[-1].shape[1:])).astype(self.dtype)

    def prior(self, level: int, h: Float[Array, "B h w D"]) -> tuple[Pair, Float[Array, "B h w D"]]:
        """The prior of the latent, and `h` updated by the prior's network."""
        return self.latent_levels[level].prior(h)

    def posterior(
        self, level: int, d: list[Float[Array, "B ..."]], h: Float[Array, "B h w D"] | None = None
    ) -> Pair:
        """The posterior of the latent, from the features `d` of the data and, if given, the features `h` from above."""
        return self.latent_levels[level].posterior(d[self.stage_of[level]], h)

    def push(
        self, level: int, h: Float[Array, "B h w D"], z: Float[Array, "B h w Z"]
    ) -> Float[Array, "B ..."]:
        """Add the latent to `h`, and bring `h` to the resolution of the level below."""
        h, stage = self.latent_levels[level].push(h, z), self.stage_of[level]
        if level == 0 or self.stage_of[level - 1] == stage:
            return h
        h = self.down_maps[stage - 1](h)
        for size in reversed(_halved(self.sizes[stage - 1], self.stages[stage].halvings)[:-1]):
            h = layers.upsample(h, (len(h), *size))
        return h + self.biases[stage - 1].astype(h.dtype)

    def output(self, h: Float[Array, "B h w D"]) -> Float[Array, "B H W O"]:
        """The input of the likelihood."""
        return layers.depth_to_space(self.out(self.activation(h)), self.patch, (len(h), *self.shape[:2]))


def _halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """`size` and the sizes after 1, ..., `times` halvings, rounded up as by `layers.pool`."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
