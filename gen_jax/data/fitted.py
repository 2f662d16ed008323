"""Sources whose images are resized and cropped to one size, and given other channels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gen_jax.data import images
from gen_jax.data.protocol import Example, Info, Source, Stored, read


class Fitted:
    """The images of a source at one size and number of channels; None leaves either as it is."""

    def __init__(self, source: Source, size: tuple[int, int] | None, channels: int | None = None):
        self._source = source
        self._size = size
        self._channels = channels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """The examples of these rows, cropped at the centre."""
        return [self._fit(example) for example in read(self._source, rows)]

    def info(self) -> Info:
        """That of the source, with the shape of the images as they come out of here."""
        info = self._source.info()
        height, width, channels = info.image_shape
        height, width = self._size or (height, width)
        return replace(info, image_shape=(height, width, self._channels or channels))

    def entry(self) -> Path | None:
        """Its place in the cache, one for each size and number of channels."""
        entry = self._source.entry() if isinstance(self._source, Stored) else None
        size = "x".join(map(str, self._size or ()))
        return entry and entry.with_name(f"{entry.name}-{size}c{self._channels or ''}")

    def _fit(self, example: Example, at: tuple[float, float] = (0.5, 0.5)) -> Example:
        image = np.asarray(example["image"])
        if self._channels is not None:
            image = images.to_channels(image, self._channels)
        if self._size is not None:
            image = images.resize(image, self._size, at)
        return {**example, "image": image}


class Placed(Fitted):
    """The same, and under "place" what part of which picture each image is, float32 [4].

    They are height and width of the picture, top and left of the window in the resized picture: the first of the sizes
    that Stable Diffusion XL is told (`conditioning.Text`).
    """

    def entry(self) -> Path | None:
        """As of `Fitted`."""
        entry = super().entry()
        return entry and entry.with_name(f"{entry.name}-placed")

    def _fit(self, example: Example, at: tuple[float, float] = (0.5, 0.5)) -> Example:
        height, width = np.shape(example["image"])[:2]
        top, left = images.corner((height, width), self._size or (height, width), at)
        return {**super()._fit(example, at), "place": np.array([height, width, top, left], np.float32)}


def placed(source: Source) -> Source:
    """A source of resized and cropped images with the place of each, `Placed`; any other one as it is."""
    return Placed(source._source, source._size, source._channels) if type(source) is Fitted else source


class RandomlyCropped(Fitted):
    """The same with the window at another place each time an example is drawn, uniformly."""

    def draw(self, rows: Sequence[int], generators: Sequence[np.random.Generator]) -> list[Example]:
        """The examples of these rows, each cropped where its generator says."""
        examples = read(self._source, rows)
        return [
            self._fit(example, (generator.random(), generator.random()))
            for example, generator in zip(examples, generators, strict=True)
        ]
