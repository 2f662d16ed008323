"""Examples of a TFDS data set as arrays: which feature is the image, and how it is read, no TensorFlow."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gen_jax.data import images
from gen_jax.data.columns import warn_of_labels
from gen_jax.data.protocol import Example

T = TypeVar("T")
Feature = Any
"""A `tfds.features.FeatureConnector`; TFDS is imported when it is needed, and has no types."""
Records = Any
"""Serialized examples with random access, as `tfds.data_source` gives them."""

CHUNK = 256
"""Labels read at a time."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's names by the number of channels


class Features(NamedTuple):
    """What is taken from each example: the names of the features and how to read them."""

    image: str
    shape: tuple[int, int, int] | None  # height, width, channels; None: the set does not say
    has_label: bool
    num_classes: int | None  # None: the set does not say
    class_names: tuple[str, ...] | None
    parser: Feature  # of these features alone


class Header(NamedTuple):
    """What is known of the arrays of all examples."""

    shape: tuple[int | None, ...]
    dtype: np.dtype


def choose(name: str, features: Feature) -> Features:
    """The image and the label among the features of a data set.

    The image is the feature "image", or else the only one of that kind: a `tfds.features.Image`, or a
    `tfds.features.Tensor` of rank 2 (no channel) or 3. The label is the feature "label" where it is one
    integer. No image, or several and none called "image", is a `ValueError` that lists the features.
    """
    import tensorflow_datasets as tfds

    table = dict(features.items()) if hasattr(features, "items") else {}
    pictures = [key for key, feature in table.items() if _is_image(feature)]
    if "image" in pictures:
        pictures = ["image"]
    if len(pictures) != 1:
        listed = ", ".join(
            f'"{key}" ({type(f).__name__}, {f.shape}, {f.np_dtype})' for key, f in table.items()
        )
        raise ValueError(
            f'"{name}" has {len(pictures) or "no"} image features: expected one called "image", or a single '
            f"8-bit Image (or Tensor of rank 2 or 3), got {listed or features!r}. Choose another data set or "
            "config, or rename the feature in its builder."
        )
    images.check_channels(f'"{name}"', table[pictures[0]].shape)
    label = table.get("label")
    has_label = label is not None and label.shape == () and np.issubdtype(label.np_dtype, np.integer)
    plain = {
        k: f for k, f in table.items() if isinstance(f.shape, tuple) and not isinstance(f.np_dtype, dict)
    }
    warn_of_labels(f'"{name}"', {k: Header((-1, *f.shape), np.dtype(f.np_dtype)) for k, f in plain.items()})
    classes = getattr(label, "num_classes", None) if has_label else None
    names = tuple(getattr(label, "names", ())) if classes else None
    keys = [*pictures, "label"] if has_label else pictures
    return Features(
        image=pictures[0],
        shape=_shape(table[pictures[0]].shape),
        has_label=has_label,
        num_classes=classes,
        class_names=None if names == tuple(map(str, range(classes or 0))) else names,
        parser=tfds.features.FeaturesDict({key: table[key] for key in keys}),
    )


def _shape(declared: tuple[int | None, ...]) -> tuple[int, int, int] | None:
    height, width, channels = declared if len(declared) == 3 else (*declared, 1)
    return None if height is None or width is None or channels is None else (height, width, channels)


def examples(name: str, records: Records, features: Features, rows: Sequence[int]) -> list[Example]:
    """The examples of these rows: `{"image": [H, W, C], "label": int32}`, pixels by the rules of `images.to_pixels`.

    `ValueError` where a record can not be read.
    """
    import tensorflow_datasets as tfds

    feature = features.parser[features.image]
    encoded = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    skip = {features.image: tfds.decode.SkipDecoding()} if encoded else None

    def parse(record: bytes) -> dict[str, np.ndarray]:
        example = features.parser.deserialize_example_np(record, decoders=skip)
        image = example[features.image]
        image = _decode(image, feature.shape[-1]) if encoded else image
        return example | {"image": image[..., None] if image.ndim == 2 else image}

    parsed = _parse(name, records, rows, parse)
    pixels = [images.to_pixels(name, example["image"], "in its builder") for example in parsed]
    if not features.has_label:
        return [{"image": image} for image in pixels]
    return [
        {"image": image, "label": np.int32(example["label"])}
        for image, example in zip(pixels, parsed, strict=True)
    ]


def labels(name: str, records: Records, features: Features, rows: Sequence[int]) -> np.ndarray:
    """The labels of these rows, int32, without decoding the images."""
    import tensorflow_datasets as tfds

    parser = tfds.features.FeaturesDict({"label": features.parser["label"]})
    parsed = _parse(name, records, rows, parser.deserialize_example_np)
    return np.asarray([example["label"] for example in parsed], np.int32)


def _parse(name: str, records: Records, rows: Sequence[int], parse: Callable[[bytes], T]) -> list[T]:
    try:
        return [parse(record) for record in records.__getitems__(rows)]
    except Exception as error:  # array_record, protobuf and PIL each have errors of their own
        raise ValueError(
            f'examples {rows[0]} to {rows[-1]} of "{name}" can not be read: {type(error).__name__}: '
            f"{error}. The files in {records.dataset_info.data_dir} are damaged or incomplete: delete that "
            "directory and prepare the data set again."
        ) from error


def _is_image(feature: Feature) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return len(feature.shape) == 3 and feature.np_dtype != np.uint16  # PIL has no 16-bit colour
    # By exact type: ClassLabel, Text, BBox and others are subclasses.
    tensor = type(feature) is tfds.features.Tensor and len(feature.shape) in (2, 3)
    return tensor and np.dtype(feature.np_dtype).kind in "buif"


def _decode(encoded: bytes, channels: int | None) -> np.ndarray:
    """An encoded image as uint8 [H, W, C].

    TFDS's own decoder without TensorFlow returns a palette's indices as pixels, and one channel where an
    image of a colour set is grey; with TensorFlow it converts to the declared channels, and so does this.
    """
    with images.open_image(io.BytesIO(encoded)) as image:
        if channels is None:
            channels = len(image.getbands()) if image.mode in _MODES.values() else 3
        pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)
