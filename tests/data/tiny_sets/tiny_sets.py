"""Small TFDS builders, one for each case that `load` tells apart; only the last needs TensorFlow."""

import io
from typing import ClassVar

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image

SIZES = {"train": 40, "test": 10}


def pixels(i, shape=(27, 31, 3)):
    """The image of example `i`."""
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


class _Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar = {}

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in SIZES.items()}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, self.example(i)


class TinyColour(_Tiny):
    FEATURES: ClassVar = {  # the last two must not be in the way
        "image": tfds.features.Tensor(shape=(27, 31, 3), dtype=np.uint8),
        "label": tfds.features.ClassLabel(num_classes=7),
        "name": tfds.features.Text(),
        "box": tfds.features.BBoxFeature(),
    }

    def example(self, i):
        return {
            "image": pixels(i),
            "label": i % 4,
            "name": f"{i}",
            "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        }


class TinyUnlabelled(_Tiny):
    FEATURES: ClassVar = {"picture": tfds.features.Tensor(shape=(9, 8), dtype=np.uint8)}

    def example(self, i):
        return {"picture": pixels(i, (9, 8))}


class TinyFloat(_Tiny):
    FEATURES: ClassVar = {
        "image": tfds.features.Tensor(shape=(6, 5, 1), dtype=np.float64),
        "label": tfds.features.Tensor(shape=(), dtype=np.int64),
    }

    def example(self, i):
        return {"image": pixels(i, (6, 5, 1)) / 10.0, "label": i % 3}


class TinyBinary(_Tiny):
    FEATURES: ClassVar = {"image": tfds.features.Tensor(shape=(6, 5, 1), dtype=np.bool_)}

    def example(self, i):
        return {"image": pixels(i, (6, 5, 1)) > 127}


class TinyDeep(_Tiny):
    FEATURES: ClassVar = {"image": tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint16)}

    def example(self, i):
        return {"image": np.full((6, 5, 1), 100 * i, np.uint16)}


class TinyMixed(_Tiny):
    FEATURES: ClassVar = {
        "image": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding="zlib")
    }

    def example(self, i):
        return {"image": pixels(i, (27 + (i % 4 == 0), 31, 3))}


class TinyNumbers(_Tiny):
    FEATURES: ClassVar = {"x": tfds.features.Tensor(shape=(3,), dtype=np.float32), "label": np.int64}

    def example(self, i):
        return {"x": np.zeros(3, np.float32), "label": i}


class TinyPair(_Tiny):
    FEATURES: ClassVar = {
        side: tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8) for side in ("left", "right")
    }

    def example(self, i):
        return {side: pixels(i, (4, 4, 1)) for side in ("left", "right")}


class TinyEncoded(_Tiny):
    """A colour set of PNG files of which one in four is grey, one has a palette and one has transparency."""

    FEATURES: ClassVar = {"image": tfds.features.Image(shape=(12, 10, 3))}
    MODES = ("RGB", "L", "P", "RGBA")

    @classmethod
    def picture(cls, i):
        return Image.fromarray(pixels(i, (12, 10, 3))).convert(cls.MODES[i % 4])

    def example(self, i):
        file = io.BytesIO()
        self.picture(i).save(file, "PNG")
        return {"image": io.BytesIO(file.getvalue())}


class TinyOffline(TinyColour):
    def _split_generators(self, dl_manager):
        try:
            raise requests.ConnectionError("Failed to resolve 'example.org'")
        except requests.ConnectionError as error:
            raise RuntimeError("download failed") from error


class TinyBroken(TinyColour):
    def example(self, i):
        raise KeyError("a mistake in the builder")


class TinyArrays(_Tiny):
    """Encoding arrays as PNG is what TFDS needs TensorFlow for."""

    FEATURES: ClassVar = {"image": tfds.features.Image(shape=(12, 10, 3))}

    def example(self, i):
        return {"image": pixels(i, (12, 10, 3))}
