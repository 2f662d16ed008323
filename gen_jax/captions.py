"""Captions of a data set, read once by frozen text encoders, for a network that is trained to attend to them.

    source = latent.encode_all(codec, weights["autoencoder"], source, "run/latents")
    source = captions.encode_all(condition, weights["text"], source, "run/captions")   # {"context", "pooled", "sizes"}
    empty = captions.empty(condition, weights["text"])
    asked = captions.of_batch(condition, key, batch, empty)                 # inside jit, as condition.of_batch
    y = net.apply(params, x_t, t, *condition.tell(None, asked))

A text encoder is as large as a third of the U-Net of Stable Diffusion XL, and needs not be there while that is trained.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gen_jax import checks, paths
from gen_jax.codec import Batch
from gen_jax.conditioning import Text
from gen_jax.conditioning.text import Asked
from gen_jax.data import Arrays, cache
from gen_jax.generate import local_mesh
from gen_jax.text.prompts import Encoded
from gen_jax.training.layout import Layout
from gen_jax.types import AnyPath, Count


@checks.checked
def encode_all(
    condition: Text,
    params: PyTree,
    source: Arrays,
    directory: str | AnyPath | None = None,
    *,
    batch_size: Count = 64,
) -> Arrays:
    """The examples of a source with what the encoders say of each caption in place of it.

    Captions are cut to what the encoders read, and brackets in them are characters like any other.

    Args:
        condition: its readers read.
        params: of the encoders, `weights["text"]`.
        source: with captions under "text". Where it has the "place" of each image (`data.fitted.Placed`), this is told as
            its sizes.
        directory: where the result is kept, in an entry that is complete or not there, and is found again by the same
            texts and weights; None: only in memory.
        batch_size: captions at a time.

    Returns:
        A source of "context", float32 `[N, S, K]`; where the condition has sizes "pooled" `[N, P]` and "sizes"; and the
        arrays that were there, but for "text" and "place".

    Raises:
        ValueError: there are no captions.
    """
    checks.tree("params", params)
    if "text" not in source.arrays:
        raise ValueError(f'source must have captions under "text", got {sorted(source.arrays)}.')
    texts = [str(text) for text in source.arrays["text"]]
    entry = None if directory is None else paths.path_of(directory) / _fingerprint(condition, params, texts)
    read = cache.kept(entry, partial(_encoded, condition, params, texts, batch_size), len(texts))()
    rest = {name: x for name, x in source.arrays.items() if name not in ("text", "place")}
    return Arrays({**rest, **read, **_sizes(condition, source)}, source.info())


@checks.checked
def empty(condition: Text, params: PyTree) -> Encoded:
    """What the network is told of no text, `[1, S, K]` and `[1, P]`: that of the empty one, or zeros."""
    checks.tree("params", params)
    read = next(_encoded(condition, params, [""], 1))
    found = _ready(read)
    zeros: Encoded = jax.tree.map(jnp.zeros_like, found)
    return zeros if condition.zero_null else found


@checks.checked
def of_batch(condition: Text, key: Key[Array, ""], batch: Batch, empty: Encoded) -> Asked:
    """The condition of each example of a batch of `encode_all`, or with probability `dropout` that of no text.

    With the same key the same examples lose theirs as by `condition.of_batch`. May be called inside `jit`.
    """
    ready = _ready(batch)
    want, have = (1, *ready.context.shape[1:]), empty.context.shape
    if want != have:
        raise ValueError(f"empty must be that of the encoders of the batch, of shape {want}, got {have}.")
    dropped = condition.dropped(key, len(ready.context))
    pick = lambda none, x: jnp.where(dropped.reshape(-1, *[1] * (x.ndim - 1)), none, x)
    return Asked((jax.tree.map(pick, empty, ready),), batch.get("sizes"))


def _ready(batch: Batch) -> Encoded:
    """What a batch has of it."""
    if "context" not in batch:
        raise ValueError(f'expected a batch of encode_all, with "context", got {checks.came(batch)}.')
    pooled = batch.get("pooled")
    return Encoded(jnp.asarray(batch["context"]), None if pooled is None else jnp.asarray(pooled))


def _encoded(condition: Text, params: PyTree, texts: list[str], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows in order, `size` at a time, over all devices of this process."""
    layout = Layout(mesh=local_mesh())
    size = -(-size // layout.shards) * layout.shards
    params = layout.put_data(params)
    encode = _encoder(replace(condition, dropout=0.0, zero_null=False))
    for start in range(0, len(texts), size):
        rows = texts[start : start + size]
        tokens = condition.prepare({"text": np.array(rows + [""] * (size - len(rows)), object)})
        found = jax.device_get(encode(params, jax.device_put(tokens, layout.batch_sharding(False))))
        yield {name: x[: len(rows)] for name, x in found.items()}


@lru_cache(maxsize=16)
def _encoder(condition: Text) -> Callable[[PyTree, PyTree], PyTree]:
    """`(params, tokens)` to what the network is told, compiled."""

    def encode(params: PyTree, tokens: PyTree) -> PyTree:
        said = condition.encode(params, condition.of_batch(jax.random.key(0), tokens))
        found = {"context": said.context} | ({"pooled": said.pooled} if condition.sizes else {})
        return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    return jax.jit(encode)


def _sizes(condition: Text, source: Arrays) -> dict[str, np.ndarray]:
    """The numbers that the network is told of each image: its place where it is known, else those of the condition."""
    if not condition.sizes:
        return {}
    sizes = np.tile(np.asarray(condition.sizes, np.float32), (len(source), 1))
    if "place" in source.arrays:
        sizes[:, :4] = source.arrays["place"]
    return {"sizes": sizes}


def _fingerprint(condition: Text, params: PyTree, texts: list[str]) -> str:
    """A name for these encodings: of the weights, the configuration and all texts."""
    readers = [(reader.encoder, reader.hidden) for reader in condition.readers]
    digest = hashlib.sha256(f"{readers} {bool(condition.sizes)} {texts}".encode())
    for x in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
