"""Texts for networks: a tokenizer, merges learned from captions, prompts with weights.

    tokenizer = text.train(captions, num_merges=100, length=16)     # or text.Tokenizer.load(folder)
    ids = tokenizer.tokens(captions)                                # int32 [N, 16]
    net = networks.text.CLIPTextConfig(tokenizer.vocab_size, width=128, layers=2, heads=4, hidden=512, length=16).build()
    net.apply(params, ids).last                                     # [N, 16, 128], a context for cross-attention
    found = text.prompts.read(tokenizer, ["a (red:1.3) seven"])     # with weights, of any length

The encoder is a network like others, `gen_jax.networks.text`.
"""

from gen_jax.text import prompts
from gen_jax.text.learn import train
from gen_jax.text.prompts import Encoded, Prompts
from gen_jax.text.tokenizer import Tokenizer

__all__ = ["Encoded", "Prompts", "Tokenizer", "prompts", "train"]
