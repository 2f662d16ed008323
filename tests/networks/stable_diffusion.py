"""The U-Nets of Stable Diffusion by the names and shapes of diffusers, and where each tensor is in the U-Net here."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

TABLE = {
    "conv_in": "stem",
    "conv_norm_out": "out_norm",
    "conv_out": "out",
    "time_embedding.linear_1": "time_0",
    "time_embedding.linear_2": "time_1",
    "time_embedding.cond_proj": "guidance",
    "add_embedding.linear_1": "cond_0",
    "add_embedding.linear_2": "cond_1",
    "down_blocks.{l}.resnets.{i}": "down_{l}_{i}",
    "down_blocks.{l}.attentions.{i}": "down_{l}_{i}_transformer",
    "down_blocks.{l}.downsamplers.0.conv": "down_{l}",
    "mid_block.resnets.{i}": "middle_{i}",
    "mid_block.attentions.0": "middle_transformer",
    "up_blocks.{m}.resnets.{i}": "up_{l}_{i}",
    "up_blocks.{m}.attentions.{i}": "up_{l}_{i}_transformer",
    "up_blocks.{m}.upsamplers.0.conv": "up_{l}",
    # inside a residual block
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time_emb_proj": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "conv_shortcut": "Dense_1",
    # inside a transformer
    "norm": "norm",
    "proj_in": "proj_in",
    "proj_out": "proj_out",
    "transformer_blocks.{i}.norm{n}": "block_{i}/{branch}_norm",
    "transformer_blocks.{i}.attn{n}.to_q": "block_{i}/{branch}_query",
    "transformer_blocks.{i}.attn{n}.to_k": "block_{i}/{branch}_key",
    "transformer_blocks.{i}.attn{n}.to_v": "block_{i}/{branch}_value",
    "transformer_blocks.{i}.attn{n}.to_out.0": "block_{i}/{branch}_out",
    "transformer_blocks.{i}.ff.net.0.proj": "block_{i}/mlp_in",
    "transformer_blocks.{i}.ff.net.2": "block_{i}/mlp_out",
}
"""A name of diffusers is an entry on the left, or one and then another inside it, and so it is here. `m` counts levels
from the coarsest, `l` from the finest; branch 1, 2, 3 is self, cross, mlp."""
PATTERNS = [
    (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(left)) + r"(?:\.|$)"), right)
    for left, right in TABLE.items()
]


def place(name, shape, levels):
    """Path of a tensor here, and its shape there after the axes are in the order of linen."""
    module, leaf = name.rsplit(".", 1)
    path = []
    while module:
        found, right = next(
            ((match, right) for pattern, right in PATTERNS if (match := pattern.match(module))), (None, None)
        )
        if found is None:
            raise ValueError(f"{name}: no entry for {module}")
        n = {key: int(value) for key, value in found.groupdict().items()}
        level = n.pop("l", levels - 1 - n.pop("m", 0))
        path.append(right.format(l=level, branch=("self", "cross", "mlp")[n.pop("n", 1) - 1], **n))
        module = module[found.end() :]
    if leaf == "weight":
        leaf = "scale" if len(shape) == 1 else "kernel"
    return "/".join([*path, leaf]), tuple(shape[i] for i in axes(len(shape)))


def axes(ndim):
    """The order of the axes of a torch tensor in linen: [O, I, h, w] to [h, w, I, O], [O, I] to [I, O]."""
    return (2, 3, 1, 0) if ndim == 4 else tuple(reversed(range(ndim)))


def fits(theirs, ours):
    """Whether a tensor of the first shape, its axes in order, is one of the second but for heads and 1 x 1 kernels."""
    if len(theirs) == 4 and len(ours) == 2:
        return theirs == (1, 1, *ours)
    if len(theirs) == 2 and len(ours) == 3:
        return theirs in ((ours[0], ours[1] * ours[2]), (ours[0] * ours[1], ours[2]))
    return theirs == ours


def flat(params):
    """`{"down_0_0/Conv_0/kernel": leaf}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params["params"])
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def load(tensors, shapes, levels):
    """Parameters of the `shapes` out of torch's tensors by name."""
    filled, expected = {}, flat(shapes)
    for name, tensor in tensors.items():
        path, shape = place(name, tensor.shape, levels)
        if path in filled or path not in expected or not fits(shape, expected[path].shape):
            raise ValueError(f"{name} {tensor.shape} does not fit {path} {expected.get(path)}")
        filled[path] = jnp.asarray(tensor.transpose(axes(tensor.ndim)).reshape(expected[path].shape))
    if missing := set(expected) - set(filled):
        raise ValueError(f"nothing for {sorted(missing)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: filled["/".join(key.key for key in path[1:])], shapes
    )


def drawn(shapes):
    """Tensors by name, a function of names and shapes alone; norms have scales about 1."""
    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            noise /= np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.2
        tensors[name] = noise.astype(np.float32)
    return tensors
