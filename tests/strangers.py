"""A data set of TFDS that somebody else has prepared: no code of it is known afterwards."""

import numpy as np
import tensorflow_datasets as tfds

from gen_jax.data.sources.tfds import prepared

NAME = "strangers"


class Strangers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What is prepared without TensorFlow; afterwards no code of it is known."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def _info(self):
        image = tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8)
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 3}


def prepare(data_dir):
    """The directory of its version; no TensorFlow is needed."""
    with prepared.tidy():
        Strangers(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir / NAME / "1.0.0"
