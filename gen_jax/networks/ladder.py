"""The network of a ladder of latents: up once from the data, down again with a latent drawn at every level.

    bottom_up   x -> d_s                       features of the data, one map a stage
    prior       h -> (mean, log_std), h        what the levels above say of z_l
    posterior   d_s, h -> (mean, log_std)      and what the data say
    push        h, z_l -> h                    the latent told to the levels below
    output      h -> out                       what a likelihood takes

A stage is a resolution. With `patch` the size of the image, or `halvings` until nothing is left to halve, its maps have
one position, its convolutions are affine maps, and the ladder is one of multilayer perceptrons. There is no
normalisation: the last map of each of `N` residual blocks starts with its variance divided by `N`, so that the sum of
all is as large at 50 levels as at 5 (Child 2021, Section 3.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gen_jax.networks import layers

Pair = tuple[Float[Array, "B *z"], Float[Array, "B *z"]]
"""Mean and raw log deviation."""


@dataclass(frozen=True)
class Stage:
    """The levels at one resolution."""

    width: int
    """Channels of the features."""
    latents: Sequence[int]
    """Channels of the latent of each level, the level nearest the data first."""
    blocks: int = 1
    """Residual blocks on the way up, and after each level on the way down."""
    halvings: int = 0
    """How often the maps of the stage below are halved; none in the first, whose positions are the patches."""
    hidden: int | None = None
    """Channels inside a block (default: `width`)."""


class Map(nn.Module):
    """`W_2 a(K a(x))`: a convolution, an affine map of the channels, the last with its variance scaled."""

    features: int
    hidden: int
    kernel: int
    scale: float = 1.0
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Map the channels."""
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inner = (
            nn.Dense(self.hidden, **kind)
            if self.kernel == 1
            else layers.Conv(self.hidden, self.kernel, **kind)
        )
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        return nn.Dense(self.features, kernel_init=init, **kind)(self.activation(inner(self.activation(x))))


class Level(nn.Module):
    """Prior, posterior and what comes after the draw, at one level."""

    stage: Stage
    latent: int
    kernel: int
    depth: int
    """Residual blocks on the whole way down."""
    kind: Any

    def setup(self):
        """The layers."""
        width, hidden = self.stage.width, self.stage.hidden or self.stage.width
        block = lambda features, scale: Map(features, hidden, self.kernel, scale, **self.kind)
        # small at the start: the prior near N(0, 1), the posterior near the prior
        self.says = block(2 * self.latent + width, 0.1)
        self.sees = block(2 * self.latent, 0.1)
        init = nn.initializers.variance_scaling(1 / self.depth, "fan_in", "truncated_normal")
        dtypes = {name: self.kind[name] for name in ("dtype", "param_dtype")}
        self.tells = nn.Dense(width, kernel_init=init, **dtypes)
        self.blocks = [block(width, 1 / self.depth) for _ in range(self.stage.blocks)]

    def prior(self, h):
        """`(mean, raw log_std), h`."""
        out = self.says(h)
        mean, raw, change = jnp.split(out, [self.latent, 2 * self.latent], axis=-1)
        return (mean, raw), h + change

    def posterior(self, d, h):
        """`mean, raw log_std`."""
        return tuple(jnp.split(self.sees(d if h is None else jnp.concatenate([h, d], axis=-1)), 2, axis=-1))

    def push(self, h, z):
        """`h` with the latent told."""
        h = h + self.tells(z.astype(h.dtype))
        for block in self.blocks:
            h = h + block(h)
        return h


class Ladder(nn.Module):
    """Level `l` of `levels` is nearest the data for `l = 0`; the other arguments say what the maps look like.

    Use it through `hvae.Ladder`, or call its methods through `bind`.
    """

    shape: Sequence[int]
    """`(H, W, C)` of the data."""
    outputs: int
    """Numbers that the likelihood asks for at a pixel: `likelihood.outputs(C)`."""
    stages: Sequence[Stage]
    """From the data up."""
    patch: int = 1
    """Side of the squares of pixels that become one position; of the whole image, the network has no space at all."""
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        """The layers."""
        if not self.stages or any(not s.latents or min(s.latents) < 1 for s in self.stages):
            raise ValueError(
                f"each stage needs a level, and each level a latent of at least 1 channel, got {self.stages}."
            )
        if self.stages[0].halvings:
            raise ValueError("the first stage is not halved: give the network a larger patch.")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kind = {"activation": self.activation, **dtypes}
        kernels = [1 if size == (1, 1) else 3 for size in self.sizes]
        place = list(zip(self.stages, kernels, strict=True))
        up, down = (
            sum(s.blocks for s in self.stages),
            sum((s.blocks + 1) * len(s.latents) for s in self.stages),
        )
        self.enters = [nn.Dense(s.width, **dtypes) for s in self.stages]
        self.ups = [
            [Map(s.width, s.hidden or s.width, k, 1 / up, **kind) for _ in range(s.blocks)] for s, k in place
        ]
        self.rungs = [Level(s, latent, k, down, kind) for s, k in place for latent in s.latents]
        self.biases = [
            self.param(f"bias_{i}", nn.initializers.zeros, (1, *size, s.width), self.param_dtype)
            for i, (s, size) in enumerate(zip(self.stages, self.sizes, strict=True))
        ]
        self.leaves = [nn.Dense(s.width, **dtypes) for s in self.stages[:-1]]
        self.last = nn.Dense(self.patch**2 * self.outputs, **dtypes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of the maps of each stage."""
        sizes = [(-(-self.shape[0] // self.patch), -(-self.shape[1] // self.patch))]
        for stage in self.stages[1:]:
            sizes.append(_halved(sizes[-1], stage.halvings)[-1])
        return sizes

    @property
    def levels(self) -> int:
        """How many latents there are."""
        return sum(len(stage.latents) for stage in self.stages)

    @property
    def stage_of(self) -> list[int]:
        """The stage of each level."""
        return [i for i, stage in enumerate(self.stages) for _ in stage.latents]

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of the latent of each level."""
        return [(*n, c) for n, s in zip(self.sizes, self.stages, strict=True) for c in s.latents]

    def bottom_up(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "B ..."]]:
        """Features of `x` in [0, 1], for each stage."""
        d, features = layers.space_to_depth(2 * x.astype(self.dtype) - 1, self.patch), []
        for i, stage in enumerate(self.stages):
            for _ in range(stage.halvings):
                d = layers.pool(d)
            d = self.enters[i](d)
            for block in self.ups[i]:
                d = d + block(d)
            features.append(d)
        return features

    def top(self, n: int) -> Float[Array, "n h w D"]:
        """Where the way down starts: the same for all."""
        return jnp.broadcast_to(self.biases[-1], (n, *self.biases[-1].shape[1:])).astype(self.dtype)

    def prior(self, level: int, h: Float[Array, "B h w D"]) -> tuple[Pair, Float[Array, "B h w D"]]:
        """Of the level's latent, and `h` with what the prior's network has found out."""
        return self.rungs[level].prior(h)

    def posterior(
        self, level: int, d: list[Float[Array, "B ..."]], h: Float[Array, "B h w D"] | None = None
    ) -> Pair:
        """Of the level's latent, by the data's features alone or by what came from above as well."""
        return self.rungs[level].posterior(d[self.stage_of[level]], h)

    def push(
        self, level: int, h: Float[Array, "B h w D"], z: Float[Array, "B h w Z"]
    ) -> Float[Array, "B ..."]:
        """Tell `h` the latent, and bring it to the resolution of the level below."""
        h, stage = self.rungs[level].push(h, z), self.stage_of[level]
        if level == 0 or self.stage_of[level - 1] == stage:
            return h
        h = self.leaves[stage - 1](h)
        for size in reversed(_halved(self.sizes[stage - 1], self.stages[stage].halvings)[:-1]):
            h = layers.upsample(h, (len(h), *size))
        return h + self.biases[stage - 1].astype(h.dtype)

    def output(self, h: Float[Array, "B h w D"]) -> Float[Array, "B H W O"]:
        """What the likelihood takes."""
        return layers.depth_to_space(self.last(self.activation(h)), self.patch, (len(h), *self.shape[:2]))


def _halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """The sizes on the way, from `size` itself to what is left after so many halvings, as `layers.pool` does them."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
