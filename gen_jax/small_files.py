"""Small files that somebody else wrote, such as configurations: read within bounds, with errors that name the file.

    said = small_files.json_of(folder / "config.json")
    with small_files.named(folder):
        ...                                     # errors of what is read here begin with the folder

Such a file may be damaged or hostile. So it is read only if it is a file (a pipe says nothing for ever, a device never
ends) and not large, and JSON that would take much memory, or much time, is refused before it is parsed.
"""

import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gen_jax import paths

MOST_BYTES = 100_000_000
"""Of a file; of the header of safetensors as in the `safetensors` package."""
MOST_VALUES = 2_000_000
"""Of JSON, ten for a tensor of a header: as Python objects they take 70 to 200 bytes each, and two bytes make one."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def text_of(path: str | os.PathLike[str], why: str = "") -> str:
    """The text in a file; ValueError, with the path, if there is no file, a large one, or one that is not UTF-8.

    `why` ends the message where there is no file: what it is for.
    """
    path = paths.path_of(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, there is none{why and f': {why}'}.")
    with named(path):
        if (size := paths.size(path)) > MOST_BYTES:
            raise ValueError(f"expected at most {MOST_BYTES:,} bytes, got {size:,}. Is it another file?")
        return decoded(path.read_bytes())


def json_of(path: str | os.PathLike[str], why: str = "") -> dict[str, object]:
    """The JSON object in a file; ValueError as of `text_of` and of `json_object`."""
    text = text_of(path, why)
    with named(path):
        return json_object(text)


def json_object(text: str) -> dict[str, object]:
    """The object that JSON says. Numbers of more than 19 digits are infinite.

    ValueError if it is none, repeats a key, has half a character, or is made to exhaust the machine.
    """
    if is_too_large(text):
        raise ValueError(
            f"it is too large: more than {MOST_VALUES:,} values, or {MOST_BYTES:,} wide characters."
        )
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON: {error.msg} at character {error.pos}. Is it cut off? Fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got a {type(found).__name__}.")
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a lone surrogate).") from None
    return found


def decoded(raw: bytes) -> str:
    """The text that bytes are in UTF-8; ValueError where they are not."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}.") from None


def is_too_large(text: str) -> bool:
    """Whether JSON has too many values (before each stands a comma or a bracket), or takes too much memory as a text."""
    return sum(map(text.count, ",[{")) > MOST_VALUES or sys.getsizeof(text) > 2 * MOST_BYTES + 100


@contextmanager
def named(what: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong inside with a file is a ValueError that begins with `what`, unless it names that already."""
    what = os.fspath(what)
    try:
        yield
    except (ValueError, OSError) as error:
        if type(error) is ValueError and what in str(error):
            raise
        raise ValueError(f"{what}: {error}") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it repeats the key {name[:100]!r}.")
    return found


def _whole(digits: str) -> int | float:
    """An int that fits 64 bits; infinity for -0, and where there are so many digits that they take quadratic time."""
    return int(digits) if len(digits) < 20 and digits != "-0" else math.inf
