"""Calls of the functions in `networks`."""

import jax
import numpy as np

from gen_jax.networks import monotone, quantize
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.transformer import Transformer
from tests.api.walk import call

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(2, 4, 6, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
BOOK = quantize.create(KEY, 4, 3)
CODES = quantize.codes(BOOK)
Z = RNG.normal(size=(6, 3)).astype(np.float32)
INDICES = quantize.nearest(CODES, Z)
NET = AutoencoderKLConfig(1, 1, (4, 4), blocks=1, latent_channels=2, groups=2, middle_attention=False).build()
IMAGES = RNG.normal(size=(1, 8, 8, 1)).astype(np.float32)
PARAMS = jax.jit(NET.init)(KEY, IMAGES)
LATENTS = RNG.normal(size=(1, 4, 4, 2)).astype(np.float32)
READS = Transformer(1, 2, 3, groups=2)
CONTEXT = RNG.normal(size=(2, 5, 3)).astype(np.float32)
SEEN = READS.init_with_output(KEY, MAP, CONTEXT, mutable=["params", "intermediates"])[1]
LAYERS = {
    "conv_enlarged": call(MAP, KERNEL),
    "depth_to_space": call(MAP, 2, (2, 8, 11, 1)),
    "dropped": call(KEY, MAP, 0.25),
    "pool": call(MAP),
    "sinusoidal": call(np.array([1.0, 2.0], np.float32), 4, 1e4, cosines_first=True, endpoint=False),
    "space_to_depth": call(MAP, 2),
    "upsample": call(MAP, (2, 8, 11, 4)),
}
QUANTIZE = {
    "codes": call(BOOK),
    "create": call(KEY, 4, 3),
    "follow": call(BOOK, BOOK),
    "fsq": call(Z, (3, 4, 5)),
    "fsq_codes": call((3, 4, 5)),
    "nearest": call(CODES, Z),
    "perplexity": call(np.array([0.5, 0.25, 0.25], np.float32)),
    "straight_through": call(Z, Z + 1),
    "update": call(KEY, BOOK, Z, INDICES, decay=0.9, dead=0.03),
    "usage": call(INDICES, 4),
}
TILING = {
    "decode": call(NET, PARAMS, LATENTS, tile=4, overlap=2, margin=0),
    "encode": call(NET, PARAMS, IMAGES, tile=4, overlap=2, margin=0),
    "tiled": call(lambda x: x, MAP, tile=2, overlap=1, margin=0, cell=2, to_cell=2),
}
EXAMPLES = {
    **{f"networks.layers.{name}": example for name, example in LAYERS.items()},
    **{f"networks.quantize.{name}": example for name, example in QUANTIZE.items()},
    **{f"networks.tiling.{name}": example for name, example in TILING.items()},
    "networks.conv.conv": call(MAP, KERNEL, 1, centred=False),
    "networks.monotone.fix_ends": call(monotone.Monotone().init(KEY, 0.5)),
    "networks.transformer.attention_maps": call(SEEN["intermediates"], (4, 6)),
}
