"""The tiny autoencoder from its files: TAESD, for previews of latents.

see = previews.tiny(*pretrained.load_tiny("taesd"))             # a folder of diffusers, or one .safetensors file
"""

from pathlib import Path

from jaxtyping import PyTree

from gen_jax import checks, small_files
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import components, names, safetensors


@checks.checked
def load_tiny(path: str | Path) -> tuple[AutoencoderTinyConfig, PyTree]:
    """The configuration and the parameters of a tiny autoencoder, in float32.

    Args:
        path: a folder with config.json, as diffusers writes it, or a `.safetensors` file with the same names, which is
            then of TAESD's size.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    with small_files.named(path):
        said = small_files.json_of(path / "config.json") if path.is_dir() else None
        tensors = safetensors.read(path)
        config = components.tiny(said, names.shapes_of(tensors))
        return config, names.to_linen(tensors, components.parameters(config), part="taesd", dtype="float32")
