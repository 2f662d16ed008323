"""What is asked of a source."""

import os
from dataclasses import dataclass
from typing import Literal

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class Request:
    """The arguments of `data.source`, which describes them."""

    name: str
    split: str = "train"
    data_dir: str | os.PathLike[str] | None = None
    cache_dir: str | os.PathLike[str] | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    unreadable: Literal["raise", "skip"] = "raise"
