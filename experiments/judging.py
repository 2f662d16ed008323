"""What the experiments of step 10 judge samples by: a classifier of clean images, trained once a data set.

It reads which class is seen, and its features say how varied samples of a class are. Not to be confused with a classifier
that guides, which reads noised images and is a part of the model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from gen_jax import data, launch, metrics, training
from gen_jax.data.protocol import read, stack
from gen_jax.networks.classifier import Classifier


class Judge(NamedTuple):
    """A trained classifier."""

    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Images, bytes, to class probabilities `[N, C]` and features `[N, F]`."""
    accuracy: float
    """On images that it was not trained on."""
    diversity: Float[np.ndarray, "C"]
    """Mean distance between the features of two of these of a class."""


def train(
    dataset: str, data_dir: Path | None = None, *, steps: int = 1000, workdir: Path | None = None
) -> Judge:
    """The judge of a data set, from its checkpoint in checkpoints/judge_DATASET where there is one."""
    train_set, held_out, num_classes = split(dataset, data_dir)
    net = Classifier(num_classes)
    workdir = (
        launch.ROOT / "checkpoints" / f"judge_{dataset.replace('/', '_')}" if workdir is None else workdir
    )

    apply_net = cast("Callable[..., Array]", net.apply)

    def loss(
        params: PyTree, key: Key[Array, ""], batch: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        logits = apply_net(params, data.to_unit(batch["image"]), jnp.zeros(len(batch["label"])))
        wrong = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return wrong.mean(), {"accuracy": (logits.argmax(1) == batch["label"]).mean(dtype=jnp.float32)}

    optimizer, schedule = training.muon(5e-3, num_steps=steps, warmup_steps=min(100, steps // 10))
    examples = data.to_unit(train_set["image"][:1]), jnp.zeros(1)
    training.fit(
        training.make_step(loss, optimizer, ema_decay=0.99),
        lambda: training.TrainState.create(
            net.init(jax.random.key(0), *examples), optimizer, jax.random.key(1)
        ),
        data.batches(train_set, 128, key=jax.random.key(2)),
        num_steps=steps,
        workdir=workdir,
        config={"dataset": dataset},
        schedule=schedule,
        options=training.Options(checkpoint_every=steps),
    )
    params = training.load(workdir).params

    @jax.jit
    def apply(params: PyTree, images: Array) -> tuple[Array, Array]:
        x, t = data.to_unit(images), jnp.zeros(len(images))
        return jax.nn.softmax(apply_net(params, x, t)), apply_net(params, x, t, features=True)

    def read(images: UInt8[np.ndarray, "N H W C"], chunk: int = 500) -> tuple[np.ndarray, np.ndarray]:
        pad = np.concatenate([images, np.repeat(images[-1:], -len(images) % chunk, axis=0)])
        parts = [jax.device_get(apply(params, pad[i : i + chunk])) for i in range(0, len(pad), chunk)]
        probabilities, features = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
        return probabilities, features

    probabilities, features = read(held_out["image"])
    accuracy = float((probabilities.argmax(1) == held_out["label"]).mean())
    return Judge(read, accuracy, diversity(features, held_out["label"], num_classes))


def distance(
    options: launch.Data, *, steps: int = 1000, workdir: Path | None = None
) -> Callable[[np.ndarray], float] | None:
    """`distance(images)`: Fréchet's, to at most 10,000 test images, in the features of the judge.

    None where there is no judge: images without labels, or resized ones. It is larger for fewer images, so compare
    only distances of equal numbers.
    """
    if options.image_size is not None or options.source().info().num_classes is None:
        return None
    judge = train(options.dataset, options.data_dir, steps=steps, workdir=workdir)
    moments = lambda images: metrics.moments(judge.read(images)[1])
    test = options.test_source()
    real = moments(stack(read(test, range(min(len(test), 10_000))))["image"])
    return lambda images: metrics.frechet_distance(real, moments(images))


def split(dataset: str, data_dir: Path | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Images to learn from, at most 10,000 others, and the number of classes; ValueError where there are no labels."""
    num_classes, arrays = (
        data.info(dataset, data_dir=data_dir).num_classes,
        data.load(dataset, data_dir=data_dir),
    )
    if num_classes is None:
        raise ValueError(f"{dataset} has no labels, so there are no classes to draw.")
    order = np.random.default_rng(0).permutation(len(arrays["label"]))
    held = min(10_000, len(order) // 5)
    part = lambda rows: {name: arrays[name][rows] for name in ("image", "label")}
    return part(order[held:]), part(order[:held]), num_classes


def diversity(
    features: Float[np.ndarray, "N F"], label: Int[np.ndarray, "N"], num_classes: int, most: int = 500
) -> Float[np.ndarray, "C"]:
    """Mean Euclidean distance between the features of two different images of a class; NaN of fewer than two."""
    found = np.full(num_classes, np.nan)
    for k in range(num_classes):
        x = features[label == k][:most].astype(np.float64)
        if len(x) > 1:
            squares = np.maximum((x**2).sum(1)[:, None] + (x**2).sum(1) - 2 * x @ x.T, 0)
            np.fill_diagonal(squares, 0)
            found[k] = np.sqrt(squares).sum() / (len(x) * (len(x) - 1))
    return found
