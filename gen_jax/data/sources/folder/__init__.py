"""A folder of image files.

**Files.** Every format that Pillow reads, in the folder and below it, in the bytewise order of their relative paths.
Hidden files are left out, links are followed. `images.load` says how modes and orientation are treated.

**Size.** Without `image_size` all images must have one size.

**Channels.** Grey, 1, where all images are grey; else RGB, 3. What is transparent is laid over white, unless channels=4
asks for it.

**Splits.** Where the folder has no images of its own, and two of its subfolders (or the only one) are called "train",
"test", "validation", "val" or "valid", the subfolders are the splits. Else all is one split, "train".

**Classes.** Where all images lie in subfolders (of their split) and there is no metadata file, the first subfolder is the
class. Labels count the sorted names of these over all splits.

**Captions.** From `metadata.jsonl` or `metadata.csv` with `file_name` and `text`, as in Hugging Face's ImageFolder, or
from `NAME.txt` beside `NAME.png`.

The headers of all files are read once, for an index in the cache; later only their sizes and times are compared with it.
"""

import logging
import os
import posixpath
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from gen_jax.data import cache, images, splits
from gen_jax.data.protocol import Example, Info, Source, Unreadable
from gen_jax.data.sources.folder import captions, index
from gen_jax.data.sources.request import Request

_log = logging.getLogger(__name__)
SPLITS = ("train", "test", "validation", "val", "valid")


def find(request: Request) -> Source | None:
    """The images of the folder of this name, where it is a path, or a folder here that has images."""
    root = Path(request.name).expanduser()
    explicit = request.name.startswith(("/", ".", "~")) or request.name.count("/") > 1
    if not request.name:
        return None
    if not root.is_dir():
        if explicit or root.exists():
            why = "" if root.exists() else ": it does not exist"
            raise ValueError(
                f"name {str(root.absolute())!r} is not a folder of images{why}. Expected a folder, or a .npz or .npy."
            )
        return None
    if not explicit and "/" not in request.name and not index.has_images(root):
        return None  # a name of TFDS
    return _open(request, root.resolve())


class Folder:
    """The images of a split, decoded when they are asked for."""

    def __init__(
        self,
        info: Info,
        root: Path,
        names: Sequence[str],
        labels: np.ndarray | None,
        texts: Mapping[str, str | Path] | None,
        entry: Path,
    ):
        """`names` are paths relative to `root`; `labels` has one for each name, `texts` a caption by name."""
        self._info = info
        self._root = root
        self._names = names
        self._labels = labels
        self._texts = texts
        self._entry = entry

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """The examples of these rows; `Unreadable` names those of them that can not be decoded."""
        examples: list[Example] = []
        problems: dict[str, str] = {}
        for row in rows:
            try:
                examples.append(self._read(row))
            except Exception as error:  # decoders raise errors of every kind
                problems[self._names[row]] = index.why(error)
        if problems:
            raise Unreadable(self._info.name, problems)
        return examples

    def info(self) -> Info:
        """From the index."""
        return self._info

    def entry(self) -> Path:
        """Its place in the cache, which changes when one of its files does."""
        return self._entry

    def _read(self, row: int) -> Example:
        name = self._names[row]
        example = {"image": images.load(self._root / name, self._info.image_shape[2])}
        label = {} if self._labels is None else {"label": self._labels[row]}
        return example | label | ({} if self._texts is None else {"text": captions.text(self._texts[name])})


def _open(request: Request, root: Path) -> Source:
    listing = index.listing(root)
    if not listing.images:
        raise ValueError(
            f"no images in {root} and its subfolders, among {listing.others + len(listing.texts)} files: expected files "
            "that Pillow reads, such as .png, .jpg or .webp."
        )
    _log.info("%s: %d images; %d other files are ignored", root, len(listing.images), listing.others)
    place = index.directory(root, request.cache_dir)
    files = index.build(root, listing.images, place, decode=request.unreadable == "skip")
    files = _readable(request, files)
    groups = _groups(list(files))
    sizes = {split: len(names) for split, names in groups.items()}
    parts = splits.select(request.name, request.split, sizes)
    names = [name for split, rows in parts for name in groups[split][rows]]
    if request.image_size is None:
        _check_sizes(request.name, [files[name] for name in names])

    texts = captions.of_each(root, names, captions.find(root, list(files), list(listing.texts)))
    labels, class_names = _classes(request, groups, names, listing.texts)
    grey = all(files[name].mode in images.GREY for name in names)
    channels = request.channels or (1 if grey else 3)
    first = files[names[0]]
    info = Info(
        name=request.name,
        num_examples=len(names),
        image_shape=(first.height, first.width, channels),
        num_classes=None if class_names is None else len(class_names),
        class_names=class_names,
        has_text=texts is not None,
    )
    stamps = {name: files[name][:2] for name in names} | (listing.texts if texts else {})
    contents = [f"{channels} {class_names}", *(f"\n{name} {stamp}" for name, stamp in stamps.items())]
    entry = Path(cache.entry(os.fspath(place), request.split, contents))
    return Folder(info, root, names, labels, texts, entry)


def _readable(request: Request, files: dict[str, index.File]) -> dict[str, index.File]:
    problems = {name: file.problem for name, file in files.items() if file.problem}
    rest = {name: file for name, file in files.items() if not file.problem}
    if problems and (request.unreadable == "raise" or not rest):
        raise Unreadable(request.name, problems)
    if problems:
        warnings.warn(
            f"{len(problems):,} of the {len(files):,} images of {request.name} can not be read and are left out: "
            f"{captions.some(list(problems))}.",
            stacklevel=2,
        )
    return rest


def _groups(names: Sequence[str]) -> dict[str, list[str]]:
    """The names of each split."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    known = [split for split in SPLITS if split in tops]
    if any("/" not in name for name in names) or not (len(known) > 1 or len(known) == len(tops) == 1):
        return {"train": list(names)}
    groups: dict[str, list[str]] = {split: [] for split in [*known, *sorted(tops - set(known))]}
    for name in names:
        groups[name.partition("/")[0]].append(name)
    return groups


def _classes(
    request: Request, groups: Mapping[str, Sequence[str]], names: Sequence[str], texts: Collection[str]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The label of each of `names`, and the names of the classes."""
    if any(posixpath.basename(text) in captions.METADATA for text in texts):
        return None, None
    divided = list(groups) != ["train"] or all(name.startswith("train/") for name in groups["train"])
    folder = {
        name: (name.partition("/")[2] if divided else name).rpartition("/")[0].partition("/")[0]
        for group in groups.values()
        for name in group
    }
    class_names = sorted(set(folder.values()))
    if class_names == [""]:
        return None, None
    if "" in class_names:
        warnings.warn(
            f"{request.name} has no classes: {sum(not f for f in folder.values()):,} of its images lie beside the "
            "subfolders, not in them.",
            stacklevel=2,
        )
        return None, None
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[folder[name]] for name in names], np.int32)
    if "[" in request.split and len(np.unique(labels)) < len(class_names):
        _log.warning(
            'split "%s" of %s has images of %d of its %d classes: they are sorted by name',
            request.split,
            request.name,
            len(np.unique(labels)),
            len(class_names),
        )
    return labels, tuple(class_names)


def _check_sizes(name: str, files: Sequence[index.File]) -> None:
    sizes = Counter((file.height, file.width) for file in files)
    if len(sizes) > 1:
        common = ", ".join(f"{h}x{w} ({n:,} images)" for (h, w), n in sizes.most_common(5))
        more = f" and {len(sizes) - 5:,} more" if len(sizes) > 5 else ""
        raise ValueError(
            f"the images of {name} have {len(sizes):,} sizes (height x width): {common}{more}. Give image_size, such as "
            "image_size=64, to resize and crop them."
        )
