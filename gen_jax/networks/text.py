"""CLIP's text encoder: `net.apply(params, ids) -> TextOutput(hidden, last, pooled)`.

    net = text.clip_l.build()                                   # of Stable Diffusion 1.x
    params = net.init(key, ids)                                 # ids [B, L]
    context = net.apply(params, ids).last                       # [B, L, K], for cross-attention

It is the transformer of Radford et al. 2021 (CLIP, Section 2.4), with causal attention, without dropout, and with a norm
before each part. Padding is not masked: a text encoder reads it like any other token. The names of the parameters are
those of the `transformers` library, `layers_{i}` standing for `encoder.layers.{i}`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gen_jax import checks
from gen_jax.networks import dtypes
from gen_jax.networks.layers import Dtypes
from gen_jax.networks.transformer import ACTIVATIONS
from gen_jax.types import Activation

__all__ = ["CLIPText", "CLIPTextConfig", "TextOutput", "clip_l", "openclip_bigg", "openclip_h"]


@checks.checked
@dataclass(frozen=True)
class CLIPTextConfig:
    """The hyperparameters of a text encoder; a hashable value with a JSON form (`gen_jax.model.to_dict`).

    With fewer `layers` than the parameters have, the last ones are not used: `dataclasses.replace(clip_l, layers=11)` is
    what web UIs call "CLIP skip 2".
    """

    vocab_size: int = 49_408
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    """Features within the two-layer network of each layer."""
    length: int = 77
    """Tokens that a text has at most."""
    act: Activation = "quick_gelu"
    """`quick_gelu`, `x sigmoid(1.702 x)`, of OpenAI's CLIP, or the exact `gelu` of OpenCLIP."""
    projection: int | None = None
    """Size of the pooled output after a linear map; None for no map."""
    end: int | None = None
    """Id of the end of a text, where the pooled output is taken. None: the highest id in the text, which it is in a
    vocabulary of CLIP without tokens added to it."""
    dtype: DTypeLike = "float32"
    """Type of the computation, such as "bfloat16"; norms and softmax are in float32."""
    param_dtype: DTypeLike = "float32"
    remat: bool = False
    """Recompute each layer in the backward pass instead of storing its activations."""

    def __post_init__(self) -> None:
        dtypes.keep_names(self)
        sizes = (self.vocab_size, self.width, self.layers, self.heads, self.hidden, self.length)
        if min(*sizes, 1 if self.projection is None else self.projection) < 1 or self.width % self.heads:
            raise ValueError(
                f"CLIPTextConfig expects positive sizes and a width that heads divide, got {self}."
            )
        if self.act not in ("quick_gelu", "gelu"):
            raise ValueError(f'act must be "quick_gelu" or "gelu", got {self.act!r}.')

    def build(self) -> "CLIPText":
        """The module of this configuration."""
        return CLIPText(self)


clip_l = CLIPTextConfig()
"""CLIP ViT-L/14, 123 M parameters: Stable Diffusion 1.x, which takes `last`; the first of XL, `hidden[-2]`."""

openclip_h = CLIPTextConfig(width=1024, layers=23, heads=16, hidden=4096, act="gelu")
"""OpenCLIP ViT-H/14 without its 24th layer, 340 M parameters: Stable Diffusion 2.x, which takes `last`."""

openclip_bigg = CLIPTextConfig(width=1280, layers=32, heads=20, hidden=5120, act="gelu", projection=1280)
"""OpenCLIP ViT-bigG/14, 695 M parameters: the second of Stable Diffusion XL, which takes `hidden[-2]` and `pooled`."""


class TextOutput(NamedTuple):
    """What an encoder says of texts; inside `jit` what is not used is not computed."""

    hidden: tuple[Float[Array, "B L K"], ...]
    """The embeddings, then the output of each layer, without the final norm."""
    last: Float[Array, "B L K"]
    """The output of the last layer after the final norm."""
    pooled: Float[Array, "B P"]
    """`last` at the end of each text, and its linear map where the configuration has one."""


class CLIPText(nn.Module):
    """Maps the ids of texts to vectors, each of which depends on the tokens up to its own."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, ids: Int[Array | np.ndarray, "B L"]) -> TextOutput:
        """Encode texts of at most `config.length` tokens. ValueError if there are more.

        An id that is not in the vocabulary is a ValueError, and in compiled code gives NaN.
        """
        c = self.config
        checks.within("ids", ids, 0, c.vocab_size - 1)
        ids = jnp.where(ids < 0, c.vocab_size, ids)
        if ids.shape[1] > c.length:
            raise ValueError(f"expected texts of at most {c.length} tokens, got {ids.shape[1]}.")
        kind: Dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        embed = lambda n, std, name: nn.Embed(
            n, c.width, embedding_init=nn.initializers.normal(std), name=name, **kind
        )
        h = embed(c.vocab_size, 0.02, "token_embedding")(ids)
        h = h + embed(c.length, 0.01, "position_embedding")(jnp.arange(ids.shape[1]))[None]
        hidden = [h]
        layer = nn.remat(CLIPLayer) if c.remat else CLIPLayer
        for i in range(c.layers):
            hidden.append(layer(c, name=f"layers_{i}")(hidden[-1]))
        last = norm("final_layer_norm", c)(hidden[-1])
        end = jnp.argmax(ids if c.end is None else ids == c.end, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if c.projection is not None:
            init = nn.initializers.normal(c.width**-0.5)
            project = nn.Dense(c.projection, use_bias=False, kernel_init=init, name="text_projection", **kind)
            pooled = project(pooled)
        return TextOutput(tuple(hidden), last, pooled)


class CLIPLayer(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; initialised as by Radford et al. 2021 (their code)."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L K"]) -> Float[Array, "B L K"]:
        """Each position attends to itself and to those before it."""
        c = self.config
        inward, outward = c.width**-0.5, (2 * c.layers * c.width) ** -0.5
        dense = lambda features, std, name: nn.Dense(
            features,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            kernel_init=nn.initializers.normal(std),
            name=name,
        )
        h = norm("layer_norm1", c)(x)
        query, key, value = (
            dense(c.width, inward, f"{part}_proj")(h).reshape(*h.shape[:2], c.heads, -1) for part in "qkv"
        )
        h = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(h.shape)
        x = x + dense(c.width, outward, "out_proj")(h)
        h = dense(c.hidden, (2 * c.width) ** -0.5, "fc1")(norm("layer_norm2", c)(x))
        return x + dense(c.width, outward, "fc2")(ACTIVATIONS[c.act][1](h))


def norm(name: str, config: CLIPTextConfig) -> nn.LayerNorm:
    """A layer norm, with statistics in float32 of centred numbers."""
    return nn.LayerNorm(
        1e-5, dtype=config.dtype, param_dtype=config.param_dtype, use_fast_variance=False, name=name
    )
