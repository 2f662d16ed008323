"""What steps 7 and 8 share: images as a likelihood takes them, the bounds on a test set, and pictures."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from gen_jax import data, likelihoods, plots, training
from gen_jax.labels import check

Binarize = Literal["dynamic", "static", "none"]
LIKELIHOODS: dict[str, likelihoods.Likelihood] = {
    "bernoulli": likelihoods.Bernoulli(),
    "gaussian": likelihoods.Gaussian(squash=True),
    "gaussian_learned": likelihoods.Gaussian(None, squash=True),
    "discretized_gaussian": likelihoods.DiscretizedGaussian(),
    "discretized_logistic": likelihoods.DiscretizedLogistic(),
    "logistic_mixture": likelihoods.LogisticMixture(),
}
STATIC_KEY = 0
"""Of bits that are drawn once: the same in every run, so that runs can be compared."""


def load_images(
    dataset: str, data_dir: Path | None, *, labels: bool, binarize: Binarize
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int | None]:
    """Train and test arrays, and the number of classes where `labels` are asked for.

    Without a test split the last tenth of the images is kept for testing. With "static" the images come as bits, 0 and
    255; the test images do with "dynamic", too.
    """
    try:
        splits = [data.load(dataset, split=split, data_dir=data_dir) for split in ("train", "test")]
    except ValueError:
        splits = [
            data.load(dataset, split=split, data_dir=data_dir) for split in ("train[:90%]", "train[90%:]")
        ]
    num_classes = data.info(dataset, data_dir=data_dir).num_classes if labels else None
    if labels and num_classes is None:
        raise ValueError(f"{dataset} has no labels: train without --labels.")
    train, test = ({k: arrays[k] for k in ("image", "label")[: 1 + labels]} for arrays in splits)
    if num_classes is not None:
        check(np.concatenate([train["label"], test["label"]]), num_classes)
    for i, arrays in enumerate((train, test)):
        if binarize == "static" or (binarize == "dynamic" and arrays is test):
            arrays["image"] = bits(jax.random.fold_in(jax.random.key(STATIC_KEY), i), arrays["image"])
    return train, test, num_classes


def bits(key: jax.Array, images: np.ndarray) -> np.ndarray:
    """`data.binarize` as bytes, 0 and 255."""
    return np.asarray(jax.jit(lambda x: data.from_zero_one(data.binarize(key, x)))(images))


def parameters_of(workdir: Path, like: Any, restore: Callable[[Any], Any]) -> Any:
    """The parameters that a run has ended with (their average), to start another from.

    Raises ValueError unless they are of the shapes of `like`.
    """
    params = restore(training.load(workdir).params)
    shapes = [[(p, x.shape) for p, x in jax.tree.leaves_with_path(tree)] for tree in (params, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"--start-from {workdir} holds the parameters of another model: it takes the same network, the same latents "
            "and likelihood, and images of one size."
        )
    return params


def preparer(binarize: Binarize) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`(key, image) -> x`: bytes as training takes them."""
    return data.binarize if binarize == "dynamic" else lambda key, image: data.to_zero_one(image)


def meaning(likelihood: str, binarize: Binarize, images: np.ndarray) -> str:
    """What the figures in nats are the log of."""
    grey = bool(((images[:1000] > 0) & (images[:1000] < 255)).any())
    if likelihood == "bernoulli" and binarize == "none" and grey:
        return (
            "minus a cross-entropy with grey values, not a likelihood of them: a Bernoulli distribution gives these "
            "no probability, and no published figure may be compared with this; --binarize dynamic or static for one"
        )
    if likelihood == "bernoulli":
        how = {
            "dynamic": "drawn anew at each step",
            "static": "drawn once",
            "none": "as they are in the data",
        }
        return f"probability of an image's bits, {how[binarize]}"
    if likelihood.startswith("gaussian"):
        return "density of an image's values in [0, 1]"
    return "probability of an image's 8-bit values"


def book_loss(elbo: Mapping[str, Any], dims: int) -> Any:
    """`|x_hat - x|^2 + 2 KL`, the book's loss: `-2 ELBO - D log(2 pi)` under a Gaussian of unit deviation."""
    return -2 * elbo["elbo"] - dims * math.log(2 * math.pi)


def evaluate(
    bounds: Callable[..., dict[str, jax.Array]],
    params: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    limit: int | None,
    key: jax.Array,
    chunk: int = 500,
) -> dict[str, float]:
    """Means of `bounds(params, key, batch, index)`, each `[B]`, over test images, and standard errors of the means.

    Args:
        bounds: named figures of each example; `batch` holds images in [0, 1], `index` their numbers.
        params: its first argument.
        arrays: images, bytes, and what else an example has.
        limit: how many of them, the first ones; None for all.
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
        if time.perf_counter() - began > 30 and jax.process_index() == 0:
            print(f"test images: {min(start + chunk, count)} of {count}", flush=True)
            began = time.perf_counter()
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    means = {name: float(x.mean()) for name, x in each.items()}
    return means | {f"{name}_standard_error": float(x.std() / len(x) ** 0.5) for name, x in each.items()}


def to_bytes(x: jax.Array) -> np.ndarray:
    """Pictures in [0, 1], whatever their leading axes, as bytes."""
    return np.asarray(data.from_zero_one(x))


def save_terms(path: Path, metrics: Path, terms: Mapping[str, str]) -> None:
    """The loss's terms against the step: `terms` are metrics and what they are called, a panel each."""
    lines = [line for line in plots.read_metrics(metrics) if all(line[name] is not None for name in terms)]
    with plots.figure(path, width=4 * len(terms), height=3.5, ncols=len(terms), squeeze=False) as axes:
        for axis, (name, label) in zip(axes[0], terms.items(), strict=True):
            axis.plot(
                [line["step"] for line in lines],
                [line[name] for line in lines],
                "." if len(lines) < 50 else "-",
            )
            axis.set(xlabel="step", ylabel=label)
            axis.grid(alpha=0.3)


def save_pairs(path: Path, images: np.ndarray, rebuilt: np.ndarray) -> None:
    """Originals over their reconstructions, in rows of eight."""
    rows = [part for i in range(0, len(images), 8) for part in (images[i : i + 8], rebuilt[i : i + 8])]
    plots.save_grid(path, np.concatenate(rows), columns=8)
