"""Where the parts of a Stable Diffusion are among the weights of a model, by the names of diffusers' folders.

places = parts.places(model)             # "unet", "vae", "text_encoder", "text_encoder_2"
places["text_encoder"].path              # ("text", "text_encoder"): weights["text"]["text_encoder"]
parts.family(model)                      # "sd1", "sd2", "sdxl" or "sdxl_refiner"
"""

from typing import NamedTuple

from jaxtyping import PyTree

from gen_jax.codec import Latents
from gen_jax.conditioning import Text
from gen_jax.model import Model
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig
from gen_jax.pretrained import components, names
from gen_jax.pretrained.names import Entry, Part
from gen_jax.pretrained.single_file import Family

__all__ = ["Place", "checked", "family", "places", "within"]


class Place(NamedTuple):
    """Of one part."""

    path: tuple[str, ...]
    """Of its tree among the weights."""
    rows: Part
    """Of the table of names."""
    config: UNetConfig | AutoencoderKLConfig | CLIPTextConfig
    channels: int | None = None
    """That a U-Net reads."""

    def entries(self) -> dict[str, Entry]:
        """What each of its tensors is, by diffusers' names."""
        return names.entries(components.parameters(self.config, self.channels), self.rows)


def places(model: Model) -> dict[str, Place]:
    """The parts of a model. ValueError, with the part, where it is none of those of Stable Diffusion."""
    network, text, codec = checked(model)
    encoders = ("text_encoder_2",) if family(model) == "sdxl_refiner" else text.names
    readers = zip(encoders, text.names, text.readers, strict=True)
    autoencoder = codec.autoencoder
    assert isinstance(autoencoder, AutoencoderKLConfig)
    return {
        "unet": Place(("network",), "unet", network, codec.shape[-1] + model.beside),
        "vae": Place(("autoencoder",), "vae", autoencoder),
        **{part: Place(("text", name), "text", reader.encoder) for part, name, reader in readers},
    }


def family(model: Model) -> Family:
    """Which Stable Diffusion a model is like: by its text encoders, and of 1 and 2 by the activation of theirs."""
    _, text, _ = checked(model)
    if len(text.readers) == 2:
        return "sdxl"
    if text.sizes:
        return "sdxl_refiner"
    return "sd1" if text.readers[0].encoder.act == "quick_gelu" else "sd2"


def checked(model: Model) -> tuple[UNetConfig, Text, Latents]:
    """The network, the condition and the codec of a Stable Diffusion. ValueError for a model with others."""
    network, condition, codec = model.network, model.condition, model.codec
    autoencoder = codec.autoencoder if isinstance(codec, Latents) else codec
    wrong = {
        "network": (network, UNetConfig, "a UNetConfig"),
        "condition": (condition, Text, "Text"),
        "codec": (autoencoder, AutoencoderKLConfig, "Latents with an AutoencoderKLConfig"),
    }
    for name, (value, wanted, said) in wrong.items():
        if not isinstance(value, wanted):
            raise ValueError(
                f"the {name} of this model is of {type(value).__name__}, and that of a Stable Diffusion is {said}: other "
                "models have no files of this kind."
            )
    assert isinstance(network, UNetConfig)
    assert isinstance(condition, Text)
    assert isinstance(codec, Latents)
    if len(condition.readers) > 2:
        raise ValueError(
            f"expected one or two text encoders in a Stable Diffusion, got {len(condition.readers)}."
        )
    return network, condition, codec


def within(weights: PyTree, path: tuple[str, ...]) -> PyTree:
    """The tree of a part. ValueError where the weights do not have it."""
    tree = weights
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            inside = "".join(f"[{each!r}]" for each in path)
            raise ValueError(f"expected the weights of the model, with weights{inside}; there is none.")
        tree = tree[name]
    return tree
