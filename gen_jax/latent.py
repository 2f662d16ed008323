"""The data of latent diffusion: a data set of images, encoded once by a frozen autoencoder.

    codec = Latents(shape, scale, shift, autoencoder=autoencoder_kl.scenes)      # scale and shift: vae.latent.measure
    source = latent.encode_all(codec, params, data.source("scenes"), "checkpoints/run/latents")
    batches = data.batches(source, 128, key=key)                                 # {"latent", "latent_deviation"}
    x_0 = codec.encode(batch, key=key)                                           # z = mean + deviation eps, drawn anew

An encoder says of an image what its latents are distributed like, `z ~ N(mean, deviation^2)`. Both are kept, so each
epoch draws others. Where images are changed at random before they are encoded, or there is no room for their latents,
give the images themselves to `codec.encode`, with the parameters of the autoencoder, which are then an argument of the
step (`training.Aux.frozen`).
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, PyTree

from gen_jax import checks, paths, programs
from gen_jax.codec import Latents
from gen_jax.data import Arrays, Random, Source, cache
from gen_jax.data.protocol import Stored, read, stack
from gen_jax.generate import local_mesh
from gen_jax.training.layout import Layout
from gen_jax.types import AnyPath, Count


@checks.checked
def encode_all(
    codec: Latents,
    params: PyTree,
    source: Source,
    directory: str | AnyPath | None = None,
    *,
    batch_size: Count = 256,
) -> Arrays:
    """The examples of a source with the mean and the deviation of their latents in place of the image.

    Args:
        codec: with an autoencoder. Its `scale` and `shift` are not applied here, but by `codec.encode`.
        params: of the autoencoder.
        source: of uint8 images; its other arrays, such as labels and captions, stay.
        directory: where they are kept, in an entry that is complete or not there, and is found again by the same images
            and weights; None: only in memory.
        batch_size: images at a time.

    Returns:
        A source of arrays `name` and `name_deviation`, float32 `[N, *codec.shape]`, and the other ones.

    Raises:
        ValueError: the codec has no autoencoder, the images are of another size than it expects, or they are drawn anew
            each epoch.
    """
    checks.tree("params", params)
    check(codec, source)
    if isinstance(source, Random):
        raise ValueError(
            "the images of this source are drawn anew each epoch, so their latents can not be kept: give the images to "
            "codec.encode as they come."
        )
    entry = None if directory is None else paths.path_of(directory) / _fingerprint(codec, params, source)
    kept = cache.kept(entry, partial(_encoded, codec, params, source, batch_size), len(source))
    return Arrays(kept if entry is not None else kept(), source.info())


@checks.checked
def check(codec: Latents, source: Source) -> None:
    """ValueError for images of another size than the codec's, before an autoencoder is trained for them."""
    height, width, channels = codec.image_shape
    found = source.info().image_shape
    if found != (height, width, channels):
        raise ValueError(
            f"the autoencoder and {codec.shape} latents are for images of {(height, width, channels)}, the data set has "
            f"{found}: give image_size, or another autoencoder."
        )


def _encoded(codec: Latents, params: PyTree, source: Source, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of the source in order, `size` at a time, over all devices of this process."""
    assert codec.autoencoder is not None
    layout, name = Layout(mesh=local_mesh()), codec.name
    size = -(-size // layout.shards) * layout.shards
    params = layout.put_data(params)
    encode = partial(programs.run, _encoder, codec, ())
    for start in range(0, len(source), size):
        batch = stack(read(source, range(start, min(start + size, len(source)))))
        image = batch.pop("image")
        filled = np.concatenate([image, np.repeat(image[-1:], size - len(image), axis=0)])
        mean, deviation = jax.device_get(encode(params, jax.device_put(filled, layout.batch_sharding(False))))
        yield {name: mean[: len(image)], f"{name}_deviation": deviation[: len(image)], **batch}


def _encoder(codec: Latents) -> Callable[[PyTree, Array], PyTree]:
    """`(params, image)` to mean and deviation."""
    return lambda params, image: codec.moments({"image": image}, params)


def _fingerprint(codec: Latents, params: PyTree, source: Source) -> str:
    """A name for these latents: of the weights, the configuration, and what is known of the images."""
    digest = hashlib.sha256(f"{codec.autoencoder} {codec.name} {source.info()}".encode())
    if isinstance(source, Stored) and (entry := source.entry()) is not None:
        digest.update(entry.name.encode())  # other files have another name there, captions among them
    first_and_last = stack(read(source, [0, len(source) - 1]))["image"]
    for x in (*jax.tree.leaves(params), first_and_last):
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
