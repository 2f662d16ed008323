"""The classifier of digits in scenes: trained here on training digits of MNIST, in both sizes, slightly moved."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt8

from gen_jax import checks, data, keys, paths, training
from gen_jax.data import cache as store
from gen_jax.data.sources.scenes import drawing
from gen_jax.networks.classifier import Classifier
from gen_jax.types import AnyPath, Count

SIDE = 24
"""Side of a crop: that of a large digit."""
_SHIFT = 2  # pixels, at most, to each side in training
_CHUNK = 512  # crops that are read in one call
_NET = Classifier(10, channels=(32, 64, 128), embedding=32)


Judge: TypeAlias = Callable[[UInt8[np.ndarray, "M 24 24 1"]], Float[np.ndarray, "M 10"]]
"""Probabilities of the ten digits for crops, each with a brightest pixel of 255 (`brightened`)."""


@checks.checked
def train(workdir: str | AnyPath | None = None, *, steps: Count = 800, batch_size: Count = 128) -> Judge:
    """The judge, trained or from its checkpoint where there is one.

    `workdir` is by default in the cache (`$GEN_JAX_CACHE`, `~/.cache/gen_jax`), another one for other settings.
    `ValueError` where it has the checkpoint of another `batch_size`.
    """
    place = (
        store.root() / f"judge_of_scenes-{steps}-{batch_size}" if workdir is None else paths.path_of(workdir)
    )
    params = _trained(place, steps)
    return partial(probabilities, _fit(place, steps, batch_size) if params is None else params)


@checks.checked
def accuracy(judge: Judge) -> Float[np.ndarray, "2 10"]:
    """Share of the test digits of MNIST that are read right, by size (small, large) and digit."""
    arrays = crops("test")
    right = judge(arrays["image"]).argmax(1) == arrays["label"]
    by_size = right.reshape(2, -1), arrays["label"].reshape(2, -1)
    return np.array([[r[of == digit].mean() for digit in range(10)] for r, of in zip(*by_size, strict=True)])


def crops(split: str) -> dict[str, np.ndarray]:
    """The digits of a split of MNIST as crops of scenes: `{"image": uint8 [2 M, 24, 24, 1], "label": int32}`.

    The first half are small ones. Each is scaled so that its brightest pixel is 255.
    """
    digits = drawing.pictures("train" if split == "train" else "test")
    label = np.repeat(np.arange(10), np.diff(digits.first)).astype(np.int32)
    margins = [(SIDE - x.shape[1]) // 2 for x in digits.resized]
    images = [
        np.pad(brightened(x), [(0, 0), (margin, margin), (margin, margin)])
        for x, margin in zip(digits.resized, margins, strict=True)
    ]
    return {"image": np.concatenate(images)[..., None], "label": np.tile(label, 2)}


def brightened(grey: UInt8[np.ndarray, "M H W"]) -> UInt8[np.ndarray, "M H W"]:
    """Each image scaled so that its brightest pixel is 255; black stays black."""
    most = np.maximum(grey.max((1, 2)), 1).astype(np.float32)
    scaled: np.ndarray = np.rint(grey * (255 / most)[:, None, None]).astype(np.uint8)
    return scaled


def probabilities(params: PyTree, images: UInt8[np.ndarray, "M H W 1"]) -> Float[np.ndarray, "M 10"]:
    """Of the ten digits, by the trained classifier."""
    if not len(images):
        return np.zeros((0, 10), np.float32)
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % _CHUNK, 0)])
    parts = [_apply()(params, padded[i : i + _CHUNK]) for i in range(0, len(padded), _CHUNK)]
    found: np.ndarray = np.concatenate(jax.device_get(parts))[: len(images)]
    return found


def shift(key: Key[Array, ""], images: UInt8[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
    """Move each image by up to 2 pixels to each side, rows and columns alone, and fill with black.

    The places of image `i` come from `fold_in(key, i)`.
    """
    n, height, width, channels = images.shape
    padded = jnp.pad(images, [(0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)])

    def cut(key: Key[Array, ""], image: UInt8[Array, "h w C"]) -> UInt8[Array, "H W C"]:
        row, column = jax.random.randint(key, (2,), 0, 2 * _SHIFT + 1)
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, channels))

    return jax.vmap(cut)(keys.per_example(key, n), padded)


def _trained(workdir: AnyPath, steps: int) -> PyTree:
    """Parameters of a run that is complete, or None."""
    try:
        loaded = training.load(workdir)
    except training.CheckpointError:
        return None
    return loaded.params if loaded.step == steps else None


def _fit(workdir: AnyPath, steps: int, batch_size: int) -> PyTree:
    optimizer, schedule = training.muon(5e-3, num_steps=steps, warmup_steps=min(100, steps // 10))
    example = jnp.zeros((1, SIDE, SIDE, 1)), jnp.zeros(1)
    state = training.fit(
        training.make_step(_loss, optimizer, ema_decay=0.99),
        lambda: training.TrainState.create(
            _NET.init(jax.random.key(0), *example), optimizer, jax.random.key(1)
        ),
        data.batches(crops("train"), batch_size, key=jax.random.key(2)),
        num_steps=steps,
        workdir=workdir,
        config={"steps": steps, "batch_size": batch_size},
        schedule=schedule,
        options=training.Options(checkpoint_every=steps),
    )
    return jax.device_get(state.ema_params)


def _loss(
    params: PyTree, key: Key[Array, ""], batch: Mapping[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    logits = _logits(params, shift(key, batch["image"]))
    right = logits.argmax(1) == batch["label"]
    wrong = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return wrong.mean(), {"accuracy": right.mean(dtype=jnp.float32)}


def _logits(params: PyTree, images: UInt8[Array, "B H W 1"]) -> Float[Array, "B 10"]:
    apply = cast("Callable[..., Array]", _NET.apply)
    return apply(params, data.to_unit(images), jnp.zeros(len(images)))


@cache
def _apply() -> Callable[[PyTree, np.ndarray], Array]:
    return jax.jit(lambda params, images: jax.nn.softmax(_logits(params, images)))
