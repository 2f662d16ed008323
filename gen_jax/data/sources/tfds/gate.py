"""What a prepared data set says is held to what one can say, before TFDS reads it.

TFDS imports any module that `features.json` names, and makes paths of what `dataset_info.json` says. So each place of a
name is looked at first: features are of classes that are loaded already, names are no paths, and files are in the
directory that they seem to be in.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from gen_jax import small_files

CLASSES = ("type", "pythonClassName", "python_class_name")
"""Where the class of a feature is named: in JSON of old versions, and in both spellings of protobuf."""
NAMES = ("name", "version", "configName", "config_name", "fileFormat", "file_format")
"""Where `dataset_info.json`, or a split in it, has a name that becomes a part of a path."""
TEMPLATES = ("filepathTemplate", "filepath_template")
_DEPTH = 3  # the name, perhaps a config, the version


def check(data_dir: Path, name: str) -> bool:
    """Whether there are files of a data set of this name; ValueError for what they must not have."""
    asked = plain(name.partition("/")[0].partition(":")[0])
    places = list(data_dir.iterdir()) if data_dir.is_dir() else []
    found = [place for place in places if plain(place.name) == asked]  # TinyColour and tiny_colour are one
    for place in found:
        for directory in _directories(place, _DEPTH):
            _check_directory(directory)
    return bool(found)


def is_name(text: object) -> bool:
    """Whether it is one part of a path, which leads nowhere else."""
    return isinstance(text, str) and text not in (".", "..") and not set(text) & set("/\\\0")


def plain(name: str) -> str:
    """A name of which all spellings are one."""
    return name.replace("_", "").lower()


def _directories(directory: Path, depth: int) -> Iterator[Path]:
    if directory.is_dir():
        yield directory
        for inner in sorted(directory.iterdir()) if depth > 1 else ():
            yield from _directories(inner, depth - 1)


def _check_directory(directory: Path) -> None:
    if (file := directory / "metadata.json").exists() and directory.name == ".config":
        _check_names(file, small_files.json_of(file), ("defaultConfigName", "default_config_name"))
    if not any((directory / name).exists() for name in ("features.json", "dataset_info.json")):
        return
    real = directory.resolve()
    for file in directory.iterdir():
        if not file.is_dir() and (not file.is_file() or file.resolve().parent != real):
            raise ValueError(
                f"{file} is no file of this directory, but a link out of it, or no file at all: copy the file to "
                "there, or prepare the data set again."
            )
    if (file := directory / "dataset_info.json").exists():
        said = small_files.json_of(file)
        splits = said.get("splits", [])
        for part in (said, *(splits if isinstance(splits, list) else ())):
            _check_names(file, part, (*NAMES, *TEMPLATES))
    if (file := directory / "features.json").exists():
        _check_features(file, small_files.json_of(file), known())


def _check_names(file: Path, said: object, names: tuple[str, ...]) -> None:
    there = said if isinstance(said, Mapping) else {}
    for name in names:
        if name in there and not is_name(there[name]):
            raise ValueError(f"{file}: expected a name without a path as {name}, got {there[name]!r:.100}.")


def _check_features(file: Path, said: object, classes: frozenset[str]) -> None:
    """Of a feature and of all inside it."""
    if isinstance(said, list):
        for each in said:
            _check_features(file, each, classes)
    elif isinstance(said, dict):
        for name, value in said.items():
            if name in CLASSES and isinstance(value, str) and value not in classes:
                raise ValueError(
                    f"{file} names the class {value[:100]!r}, which is not loaded: features of TFDS can be read, and "
                    "those of a module of your own once you have imported it."
                )
            if not all(map(is_name, name.split("/"))):  # "image/filename" is one that there is
                raise ValueError(f"{file}: expected the name of a feature, got {name[:100]!r}.")
            _check_features(file, value, classes)


def known() -> frozenset[str]:
    """The names of all classes of features in this process, and what they were called before."""
    import tensorflow_datasets as tfds

    found, rest = set[str](), [tfds.features.FeatureConnector]
    while rest:
        each = rest.pop()
        found |= {f"{each.__module__}.{each.__name__}", *vars(each).get("ALIASES", ())}
        rest += each.__subclasses__()
    return frozenset(found)
