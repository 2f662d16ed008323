"""Weights in safetensors files, memory-mapped: nothing is read or copied before an array is used.

tensors = safetensors.read("unet")                       # a file, an index of shards, or the folder of either
tensors.shapes["conv_in.weight"], tensors.dtypes["conv_in.weight"], tensors.metadata
jnp.asarray(tensors["conv_in.weight"])                   # reads this one
safetensors.write("new.safetensors", {"weight": array})  # the bytes that the package `safetensors` writes
"""

from gen_jax.pretrained.safetensors.reading import Tensors, read
from gen_jax.pretrained.safetensors.writing import write

__all__ = ["Tensors", "read", "write"]
