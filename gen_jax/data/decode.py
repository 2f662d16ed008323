"""Examples of a TFDS data set as arrays: which feature is the image, and how it is read, no TensorFlow."""

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

CHUNK = 256
"""Examples decoded at a time."""
_COUNTED = 10_000  # examples looked at, at least, to say which shapes are mixed
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's names by the number of channels


class Features(NamedTuple):
    """What is taken from each example: the names of the features and how to read them."""

    image: str
    has_label: bool
    num_classes: int | None  # None: the set does not say
    parser: Any  # tfds.features.FeaturesDict of these features alone


def choose(name: str, features: Any) -> Features:
    """The image and the label among the features of a data set.

    The image is the feature "image", or else the only one of that kind: a `tfds.features.Image`, or a
    `tfds.features.Tensor` of rank 2 (no channel) or 3. The label is the feature "label" where it is one
    integer. No image, or several and none called "image", is a `ValueError` that lists the features.
    """
    import tensorflow_datasets as tfds

    table = dict(features.items()) if hasattr(features, "items") else {}
    images = [key for key, feature in table.items() if _is_image(feature)]
    if "image" in images:
        images = ["image"]
    if len(images) != 1:
        listed = ", ".join(
            f'"{key}" ({type(f).__name__}, {f.shape}, {f.np_dtype})' for key, f in table.items()
        )
        raise ValueError(
            f'"{name}" has {len(images) or "no"} image features: expected one called "image", or a single '
            f"8-bit Image (or Tensor of rank 2 or 3), got {listed or features!r}. Choose another data set or "
            "config, or rename the feature in its builder."
        )
    label = table.get("label")
    has_label = label is not None and label.shape == () and np.issubdtype(label.np_dtype, np.integer)
    keys = [*images, "label"] if has_label else images
    return Features(
        image=images[0],
        has_label=has_label,
        num_classes=getattr(label, "num_classes", None) if has_label else None,
        parser=tfds.features.FeaturesDict({key: table[key] for key in keys}),
    )


def chunks(name: str, source: Any, features: Features) -> Iterator[dict[str, np.ndarray]]:
    """The examples in order, `CHUNK` at a time: `{"image": [n, H, W, C], "label": int32 [n]}`.

    `source` yields serialized examples. Pixels are uint8: integers of another type must lie in 0..255,
    booleans become 0 and 255; floating-point images stay as they are, in float32. A record that can not be
    read, and images of more than one shape, are a `ValueError`.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    for start in range(0, len(source), CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        examples = _read(name, source, features, rows)
        images = [_pixels(name, example[features.image]) for example in examples]
        shapes.update(image.shape for image in images)
        if len(shapes) > 1:  # go on, for the message to count them all
            if rows.stop < len(source) and rows.stop < _COUNTED:
                continue
            raise ValueError(_mixed(name, shapes, rows.stop))
        chunk = {"image": np.stack(images)}
        if features.has_label:
            chunk["label"] = np.asarray([example["label"] for example in examples], np.int32)
        yield chunk


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return len(feature.shape) == 3 and feature.np_dtype != np.uint16  # PIL has no 16-bit colour
    # By exact type: ClassLabel, Text, BBox and others are subclasses.
    tensor = type(feature) is tfds.features.Tensor and len(feature.shape) in (2, 3)
    return tensor and np.dtype(feature.np_dtype).kind in "buif"


def _read(name: str, source: Any, features: Features, rows: range) -> list[dict[str, Any]]:
    """Parse the records of these rows and decode their images."""
    import tensorflow_datasets as tfds

    feature = features.parser[features.image]
    encoded = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    skip = {features.image: tfds.decode.SkipDecoding()} if encoded else None
    try:
        records = source.__getitems__(rows)
        examples = [features.parser.deserialize_example_np(record, decoders=skip) for record in records]
        if encoded:
            for example in examples:
                example[features.image] = _decode(example[features.image], feature.shape[-1])
    except Exception as error:  # array_record, protobuf and PIL each have errors of their own
        raise ValueError(
            f'examples {rows.start} to {rows.stop - 1} of "{name}" can not be read: {type(error).__name__}: '
            f"{error}. The files in {source.dataset_info.data_dir} are damaged or incomplete: delete that "
            "directory and prepare the data set again."
        ) from error
    return examples


def _decode(encoded: bytes, channels: int | None) -> np.ndarray:
    """An encoded image as uint8 [H, W, C].

    TFDS's own decoder without TensorFlow returns a palette's indices as pixels, and one channel where an
    image of a colour set is grey; with TensorFlow it converts to the declared channels, and so does this.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        if channels is None:
            channels = len(image.getbands()) if image.mode in _MODES.values() else 3
        pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixels(name: str, image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] of any type as uint8 or float32 [H, W, C]."""
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32)
    if image.size and (image.min() < 0 or image.max() > 255):
        raise ValueError(
            f'expected 8-bit images in "{name}", got {image.dtype} with values from {image.min()} to '
            f"{image.max()}: scale them to 0..255 (or to floating-point numbers) in its builder."
        )
    return image.astype(np.uint8)


def _mixed(name: str, shapes: Counter[tuple[int, ...]], seen: int) -> str:
    common = ", ".join(f"{shape} in {count:,}" for shape, count in shapes.most_common(5))
    more = f" and {len(shapes) - 5} more" if len(shapes) > 5 else ""
    return (
        f'the images of "{name}" have {len(shapes)} shapes: {common}{more}, among the first {seen:,} '
        "examples. A batch is one array, so expected one shape: resize or crop the images in the builder "
        "that prepares the set, or choose a "
        'data set or config of one size (such as "imagenet_resized/64x64").'
    )
