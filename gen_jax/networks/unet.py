"""The one U-Net of all diffusion models here: `net.apply(params, x_t, t, cond, context, mask) -> array like x_t`.

    net = unet.mnist_small.build()
    params = net.init(key, x_t, t)

It is the network of Ho et al. 2020 (Appendix B), by default with FiLM in place of an added time embedding (Dhariwal &
Nichol 2021, Section 3). An optional stem turns space into depth. With transformers at some of its levels it reads a
context, such as an encoded text (Rombach et al. 2022); `sd15`, `sd21`, `sdxl` and `sdxl_refiner` are those of Stable
Diffusion.

It knows nothing of diffusion: `t` has one number for each example, and `time_scale` sets its unit. It has no mutable
state.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from gen_jax import checks
from gen_jax.networks import layers
from gen_jax.networks.transformer import Transformer
from gen_jax.networks.unet_config import (
    UNetConfig,
    cifar10,
    mnist,
    mnist_best,
    mnist_small,
    scenes,
    sd15,
    sd21,
    sdxl,
    sdxl_refiner,
)

__all__ = [
    "UNet",
    "UNetConfig",
    "cifar10",
    "mnist",
    "mnist_best",
    "mnist_small",
    "scenes",
    "sd15",
    "sd21",
    "sdxl",
    "sdxl_refiner",
]


class UNet(nn.Module):
    """Maps images, times and optional conditions to images of the same size; zero at initialisation."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Num[Array, " T"],
        cond: Num[Array, "B ..."] | None = None,
        context: Float[Array, "A L K"] | None = None,
        mask: Shaped[Array, "M S"] | None = None,
        *,
        guidance: Num[Array, " G"] | None = None,
    ) -> Float[Array, "B H W D"]:
        """Map `x` at times `t`.

        Args:
            x: images.
            t: a time for each image, integer or floating.
            cond: labels, int `[B]`, or vectors, `[B, cond_features]`; None is the null condition. Another label is a
                ValueError, and in compiled code gives NaN.
            context: tokens, `[B, L, context_features]`, to which the transformers attend. None is as no token.
            mask: bool `[B, L]`, True for the tokens that are attended to. An image with none is mapped as if there were
                no cross-attention.
            guidance: a weight for each image, at which a distilled network imitates guidance. The embedding is that of
                1000 times it (Luo et al. 2023, LCM, Section 4.2), whose `w` is a weight of `gen_jax.guidance` less 1.
                None is as if there were no embedding of it.

        Raises:
            ValueError: `t`, `cond`, `context`, `mask` or `guidance` does not fit the images or the configuration.
        """
        c = self.config
        conv: layers.Dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        kind: layers.GroupDtypes = {"groups": c.groups, "exact_norm": c.exact_norm, **conv}
        block_type = nn.remat(layers.ResBlock) if c.remat else layers.ResBlock
        transformer_type = nn.remat(Transformer) if c.remat else Transformer
        emb = self._embed(x, t, cond, guidance)
        self._check_context(len(x), context, mask)

        def block(h: Array, level: int, name: str) -> Array:
            return block_type(c.channels[level], c.dropout, time=c.time, name=name, **kind)(h, emb)

        def attend(h: Array, level: int, name: str) -> Array:
            depth, heads = c.transformer(level)
            if depth:
                name = f"{name}_transformer"
                return transformer_type(depth, heads, c.context_features, name=name, **kind)(h, context, mask)
            if c.middle_attention if level == -1 else level in c.attention:
                return layers.Attention(c.head_features, name=f"{name}_attention", **kind)(h)
            return h

        h = layers.space_to_depth(x.astype(c.dtype), c.patch)
        depth, last = c.patch**2 * (c.out_channels or x.shape[-1]), len(c.channels) - 1
        h = layers.Conv(c.channels[0], name="stem", **conv)(h)
        skips = [h] if c.dense_skips else []
        for level in range(last + 1):
            for i in range(c.blocks):
                h = attend(block(h, level, f"down_{level}_{i}"), level, f"down_{level}_{i}")
                skips.append(h)
            if level < last:
                if c.resample_conv:
                    name, centred = f"down_{level}", c.resample_centred
                    h = layers.Conv(c.channels[level], stride=2, centred=centred, name=name, **conv)(h)
                else:
                    h = layers.pool(h)
                if c.dense_skips:
                    skips.append(h)

        h = attend(block(h, -1, "middle_0"), -1, "middle")
        h = block(h, -1, "middle_1")

        for level in reversed(range(last + 1)):
            for i in range(c.blocks + c.dense_skips):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_{i}")
                h = attend(h, level, f"up_{level}_{i}")
            if level > 0 and c.resample_conv:
                whole = skips[-1].shape[1:3] == (2 * h.shape[1], 2 * h.shape[2])  # else it is cropped
                h = h if whole else layers.upsample(h, skips[-1].shape)
                h = layers.Conv(c.channels[level], enlarge=whole, name=f"up_{level}", **conv)(h)
            elif level > 0:  # reduce the channels first: there are still few pixels
                h = nn.Dense(c.channels[level - 1], name=f"up_{level}", **conv)(h)
                h = layers.upsample(h, skips[-1].shape)

        h = nn.silu(layers.GroupNorm(name="out_norm", **kind)(h))
        h = layers.Conv(depth, zero_init=True, name="out", **conv)(h)
        return layers.depth_to_space(h, c.patch, x.shape).astype(x.dtype)

    def _embed(self, x: Array, t: Array, cond: Array | None, guidance: Array | None) -> Float[Array, "B E"]:
        """The embedding of each example's time, guidance and condition."""
        c = self.config
        dense = lambda name: nn.Dense(c.embedding, dtype=c.dtype, param_dtype=c.param_dtype, name=name)
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"Expected one time for each of {x.shape[0]} images, t of shape {x.shape[:1]}, got {t.shape}."
            )
        time = t * c.time_scale
        emb = layers.sinusoidal(
            time + c.time_offset if c.time_offset else time,
            c.sinusoid_features or c.embedding,
            cosines_first=c.sinusoid_cosines_first,
            endpoint=c.sinusoid_endpoint,
        )
        emb = self._add_guidance(emb, guidance)
        emb = dense("time_1")(nn.silu(dense("time_0")(emb)))
        if c.num_classes is not None:
            cond = jnp.full(t.shape, c.num_classes) if cond is None else cond
            if cond.shape != t.shape or not jnp.issubdtype(cond.dtype, jnp.integer):
                raise ValueError(
                    f"Expected integer labels of shape {t.shape}, got {cond.dtype} of shape {cond.shape}."
                )
            checks.within("cond", cond, 0, c.num_classes)
            cond = jnp.where(
                cond < 0, c.num_classes + 1, cond
            )  # NaN, as for any other label that there is not
            embed = nn.Embed(c.num_classes + 1, c.embedding, param_dtype=c.param_dtype, name="label")
            return emb + embed(cond).astype(c.dtype)
        if c.cond_features is not None:
            if cond is not None and cond.shape != (*t.shape, c.cond_features):
                raise ValueError(f"Expected cond of shape {(*t.shape, c.cond_features)}, got {cond.shape}.")
            vector = jnp.zeros((*t.shape, c.cond_features)) if cond is None else cond
            if c.cond_layers == 2:
                return emb + dense("cond_1")(nn.silu(dense("cond_0")(vector)))
            null = self.param("null_cond", nn.initializers.normal(0.02), (c.embedding,), c.param_dtype)
            known = dense("cond")(vector)  # also without a vector: the parameters do not depend on the call
            return emb + (null.astype(c.dtype)[None] if cond is None else known)
        if cond is not None:
            raise ValueError(
                "This network takes no condition: set num_classes or cond_features in its UNetConfig."
            )
        return emb

    def _add_guidance(self, emb: Array, guidance: Array | None) -> Float[Array, "B F"]:
        """The sinusoid of time, and a linear map of that of the guidance weight."""
        c = self.config
        if guidance is not None and (c.guidance_features is None or guidance.shape != emb.shape[:1]):
            raise ValueError(
                f"Expected a guidance weight for each of {len(emb)} images, and guidance_features in the UNetConfig; got "
                f"guidance of shape {guidance.shape} and guidance_features={c.guidance_features}."
            )
        if c.guidance_features is None or (guidance is None and not self.is_initializing()):
            return emb
        weight = jnp.zeros(len(emb)) if guidance is None else guidance  # parameters do not depend on the call
        dense = nn.Dense(
            emb.shape[-1], use_bias=False, dtype=c.dtype, param_dtype=c.param_dtype, name="guidance"
        )
        return emb + dense(layers.sinusoidal(1000.0 * weight, c.guidance_features))

    def _check_context(self, batch: int, context: Array | None, mask: Array | None) -> None:
        features = self.config.context_features
        if context is None and mask is None:
            return
        if features is None:
            raise ValueError("This network takes no context: set context_features in its UNetConfig.")
        if context is None or (len(context), context.shape[2]) != (batch, features):
            got = "a mask alone" if context is None else context.shape
            raise ValueError(f"Expected a context of shape ({batch}, L, {features}), got {got}.")
        if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != bool):
            raise ValueError(
                f"Expected a mask of bool and shape {context.shape[:2]}, True for the tokens that are attended to; got "
                f"{mask.dtype} of shape {mask.shape}."
            )
