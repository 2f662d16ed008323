"""Images as data of a likelihood, what the likelihood is of, and the means of bounds over a test set."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree

from gen_jax import data, launch, likelihoods, training, vae
from gen_jax.conditioning import check_labels

Arrays: TypeAlias = dict[str, np.ndarray]
Binarize: TypeAlias = Literal["dynamic", "static", "none"]
Bounds: TypeAlias = Callable[..., dict[str, jax.Array]]
"""`(params, key, batch, index) -> figures`, each `[B]`; `batch` has images in [0, 1], `index` their numbers."""

LIKELIHOODS: dict[str, likelihoods.Likelihood] = {
    "bernoulli": likelihoods.Bernoulli(),
    "gaussian": likelihoods.Gaussian(squash=True),
    "gaussian_learned": likelihoods.Gaussian(None, squash=True),
    "discretized_gaussian": likelihoods.DiscretizedGaussian(),
    "discretized_logistic": likelihoods.DiscretizedLogistic(),
    "logistic_mixture": likelihoods.LogisticMixture(),
}
STATIC_KEY = 0
"""Seed of bits that are drawn once: the same in every run, so that runs can be compared."""


def load_images(
    options: launch.Data, *, labels: bool, binarize: Binarize
) -> tuple[Arrays, Arrays, int | None]:
    """Train and test arrays, and the number of classes if `labels` are asked for.

    A data set without a test split is cut: the last tenth of the images is for testing. With "static" the images become
    bits, 0 and 255; with "dynamic" only the test images do.
    """
    sources = [options.source("train")]
    try:
        sources.append(options.source("test"))
    except data.NoSplit:
        sources = [options.source("train[:90%]"), options.source("train[90%:]")]
    num_classes = sources[0].info().num_classes if labels else None
    if labels and num_classes is None:
        raise ValueError(f"{options.dataset} has no labels: train without them, by --no-labels.")
    train, test = ({k: data.load(s)[k] for k in ("image", "label")[: 1 + labels]} for s in sources)
    if num_classes is not None:
        check_labels(np.concatenate([train["label"], test["label"]]), num_classes)
    for i, arrays in enumerate((train, test)):
        if binarize == "static" or (binarize == "dynamic" and arrays is test):
            arrays["image"] = bits(jax.random.fold_in(jax.random.key(STATIC_KEY), i), arrays["image"])
    return train, test, num_classes


def bits(key: jax.Array, images: np.ndarray) -> np.ndarray:
    """`data.binarize` as bytes, 0 and 255."""
    return np.asarray(jax.jit(lambda x: data.from_zero_one(data.binarize(key, x)))(images))


def preparer(binarize: Binarize) -> vae.Prepare:
    """`(key, image) -> x`: from the bytes of a batch to data of the likelihood."""
    return data.binarize if binarize == "dynamic" else lambda key, image: data.to_zero_one(image)


def meaning(likelihood: str, binarize: Binarize, images: np.ndarray) -> str:
    """What the figures in nats are the log of."""
    grey = bool(((images[:1000] > 0) & (images[:1000] < 255)).any())
    if likelihood == "bernoulli" and binarize == "none" and grey:
        return (
            "minus a cross-entropy with grey values, not a likelihood of them: a Bernoulli distribution gives them no "
            "probability, so no published figure compares with this; use --binarize dynamic or static"
        )
    if likelihood == "bernoulli":
        how = {"dynamic": "drawn at each step", "static": "drawn once", "none": "as they are in the data"}
        return f"probability of an image's bits, {how[binarize]}"
    if likelihood.startswith("gaussian"):
        return "density of an image's values in [0, 1]"
    return "probability of an image's 8-bit values"


def evaluate(
    bounds: Bounds,
    params: PyTree,
    arrays: Mapping[str, np.ndarray],
    *,
    limit: int | None,
    key: jax.Array,
    chunk: int = 500,
) -> dict[str, float]:
    """Means of the figures over test images, and the standard errors of the means.

    Args:
        bounds: the figures of each example.
        params: its first argument.
        arrays: images, bytes, and what else an example has.
        limit: take only so many of them, the first ones; None for all.
        key: of all noise.
        chunk: examples in a call, which are split over the devices.
    """
    layout = training.Layout()
    count = min(limit or len(arrays["image"]), len(arrays["image"]))
    chunk = -(-min(chunk, count) // layout.shards) * layout.shards

    @functools.partial(jax.jit, out_shardings=layout.sharding())
    def call(params, key, batch, index):
        batch, index = jax.lax.with_sharding_constraint((batch, index), layout.batch_sharding(False))
        return bounds(params, key, {**batch, "image": data.to_zero_one(batch["image"])}, index)

    params, parts, began = layout.put_data(params), [], time.perf_counter()
    for start in range(0, count, chunk):
        rows = np.minimum(np.arange(start, start + chunk), count - 1)
        batch = layout.put_data({name: array[rows] for name, array in arrays.items()})
        part = jax.device_get(call(params, key, batch, layout.put_data(rows.astype(np.int32))))
        parts.append({name: np.float64(x[: count - start]) for name, x in part.items()})
        if time.perf_counter() - began > 30:
            launch.say(f"test images: {min(start + chunk, count)} of {count}")
            began = time.perf_counter()
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    means = {name: float(x.mean()) for name, x in each.items()}
    return means | {f"{name}_standard_error": float(x.std() / len(x) ** 0.5) for name, x in each.items()}


def to_bytes(x: jax.Array) -> np.ndarray:
    """Images in [0, 1], with any leading axes, as bytes."""
    return np.asarray(data.from_zero_one(x))
