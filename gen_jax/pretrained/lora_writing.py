"""A LoRA that was trained here as a file that diffusers and web UIs read, in the layout of kohya-ss/sd-scripts.

    lora_writing.write("lora.safetensors", low, weights["network"], alpha=8.0, xl=False)

For each matrix there are `NAME.lora_down.weight` [r, in], `NAME.lora_up.weight` [out, r] and `NAME.alpha`. NAME is
"lora_unet_" and diffusers' name of the matrix with "_" for ".", of Stable Diffusion XL its name in one file. What is
added to a matrix is `alpha / r up down`.
"""

import os
from collections.abc import Mapping

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from gen_jax.pretrained import names, safetensors, single_names

__all__ = ["tensors", "write"]


def write(
    path: str | os.PathLike[str],
    low: PyTree,
    network: PyTree,
    *,
    alpha: float,
    xl: bool,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the tensors of `tensors` to `path`, a `.safetensors` file, with kohya's metadata and those that are given."""
    made = tensors(low, network, alpha=alpha, xl=xl)
    rank = len(next(x for name, x in made.items() if name.endswith("lora_down.weight")))
    said = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    safetensors.write(path, made, {"format": "pt", **said, **(metadata or {})})


def tensors(low: PyTree, network: PyTree, *, alpha: float, xl: bool) -> dict[str, np.ndarray]:
    """The tensors of a LoRA of a U-Net by their names in a file.

    Args:
        low: as of `training.lora.init`.
        network: the parameters that it is of, or their shapes.
        alpha: `scale * r`, with the scale of `training.lora.merge`.
        xl: whether the network is that of a Stable Diffusion XL.

    Raises:
        ValueError: the network is none of Stable Diffusion, or `low` is of another one.
    """
    entries = names.entries(network, "unet")
    called = {entry.path: name for name, entry in entries.items()}
    if xl:
        single, _ = single_names.to_single("unet", {name: entry.theirs() for name, entry in entries.items()})
        old = {how.names[0]: name for name, how in single.items()}
        called = {path: old[name] for path, name in called.items()}
    flat, found = traverse_util.flatten_dict(low["params"]), {}
    for path in sorted({path[:-1] for path in flat}):
        if path not in called:
            raise ValueError(f"{'/'.join(path)} is no parameter of this network.")
        name = "lora_unet_" + called[path].removesuffix(".weight").replace(".", "_")
        down, up = (np.asarray(flat[(*path, side)], np.float32) for side in ("down", "up"))
        rank = len(up)
        found[f"{name}.lora_down.weight"] = np.ascontiguousarray(down.reshape(-1, rank).T)
        found[f"{name}.lora_up.weight"] = np.ascontiguousarray(up.reshape(rank, -1).T)
        found[f"{name}.alpha"] = np.array(alpha, np.float32)
    return found
