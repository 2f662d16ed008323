"""A TFDS data set by name: found where it is prepared, or prepared, or said why neither."""

import contextlib
import difflib
import importlib.util
import logging
import os
import shlex
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gen_jax import paths
from gen_jax.data.fetching import copy_of, fetched
from gen_jax.data.sources.tfds import gate

Builder = Any
"""A `tfds.core.DatasetBuilder`; TFDS is imported when it is needed, and has no types."""
_log = logging.getLogger(__name__)


def find(name: str, data_dir: str | os.PathLike | None = None) -> Builder:
    """The `tfds.core.DatasetBuilder` of a prepared data set, prepared now if it was not.

    `name` is `name[/config][:version]`, looked for in `data_dir`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`
    (the first that is given). A set that stands there is read even where the code that made it is unknown. A
    name known as code alone (a data set of TFDS, or a builder class that has been imported) is prepared in
    array_record form.

    A `ValueError` says what is wrong: no such name (with the nearest ones), version or config, no TensorFlow
    to prepare with, no network, files that are damaged or lead elsewhere.
    """
    import tensorflow_datasets as tfds

    # Read here, not left to TFDS: it looks at the variable once, when it is imported.
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    where = _here(name, place) if paths.is_url(place) else os.path.expanduser(os.fspath(place))
    there = gate.check(Path(where), name)
    try:
        with tidy():
            builder = tfds.builder(name, data_dir=where)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(_unknown(name, where)) from None
    except Exception as error:  # no such version or config; code that needs more; damaged files
        if not there or (builder := _from_files(name, where)) is None:
            raise ValueError(f'the data set "{name}" can not be used. {error}') from None
    if builder.is_prepared():
        return builder
    if _of_tfds(builder) and (older := _from_files(name, where)) is not None:
        _log.warning("reading %s: %s is not prepared", older.info.full_name, builder.info.full_name)
        return older  # another version than the one TFDS knows now: it is what its owner has
    _prepare(builder)
    return builder


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """No empty directory is left in the temporary one: TFDS makes one for each builder of a set that is not prepared.

    It is for files of a bucket, which are not fetched unless the user has TFDS do so.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import gcs_utils

    before = tfds.core.DatasetInfo.initialize_from_bucket

    def fetch(info: Any) -> None:
        if gcs_utils.gcs_dataset_info_files(info.full_name):
            before(info)

    tfds.core.DatasetInfo.initialize_from_bucket = fetch
    try:
        yield
    finally:
        tfds.core.DatasetInfo.initialize_from_bucket = before


def _here(name: str, place: str | os.PathLike) -> str:
    """The copy of a directory in a bucket, with the set of this name, as far as it is there."""
    found, asked = paths.path_of(place), gate.plain(name.partition("/")[0].partition(":")[0])
    for each in found.iterdir() if found.exists() else ():
        if gate.plain(each.name) == asked:
            fetched(each)
    return os.fspath(copy_of(found))


def _from_files(name: str, where: str) -> Builder | None:
    """The builder of what is prepared, made of the files alone; None where there is nothing."""
    import tensorflow_datasets as tfds

    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=where)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # TFDS and protobuf have errors of every kind
        raise ValueError(
            f'the files of the data set "{name}" in {where} can not be read: {type(error).__name__}: {error}. '
            "They are damaged or of a TFDS before 4.0: delete them and prepare the data set again."
        ) from None


def _of_tfds(builder: Builder) -> bool:
    return type(builder).__module__.startswith("tensorflow_datasets.")


def _prepare(builder: Builder) -> None:
    """Download and prepare in array_record form, with an answer in seconds where it can not work."""
    have_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if not have_tensorflow and _of_tfds(builder):
        raise ValueError(_no_tensorflow(builder))  # they all unpack archives, which TFDS does with TensorFlow
    try:
        _check_network(builder)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        causes = list(_chain(error))
        if not have_tensorflow and any(isinstance(e, ImportError) and "tensorflow" in str(e) for e in causes):
            raise ValueError(_no_tensorflow(builder)) from None
        if any(isinstance(e, _network_errors()) for e in causes):
            raise ValueError(_no_network(builder, error, have_tensorflow)) from None
        raise


def _check_network(builder: Builder) -> None:
    """Ask once for the first file of a download: TFDS would repeat it for minutes before it gives up."""
    import requests

    downloads = Path(builder.data_dir_root) / "downloads"
    urls = [url for url in (builder.url_infos or {}) if url.startswith("http")]
    kept = any(path.is_file() for path in downloads.rglob("*"))  # perhaps all that is needed
    if urls and not kept:
        try:
            requests.head(urls[0], timeout=10)
        except requests.ConnectionError:
            raise
        except requests.RequestException:
            pass  # an answer of a kind: the download itself will tell


def _network_errors() -> tuple[type[BaseException], ...]:
    import requests

    broken = (requests.ConnectionError, requests.Timeout)
    return (*broken, ConnectionError, TimeoutError, socket.gaierror, urllib.error.URLError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def prepare_command(builder: Builder, data_dir: str | os.PathLike | None = None) -> str:
    """The shell command that prepares this data set, in `data_dir` or where it was looked for.

    Not `tfds build`, which wants apache_beam as well.
    """
    spec, root = builder.info.full_name.rsplit("/", 1)[0], os.fspath(data_dir or builder.data_dir_root)
    call = f'tfds.builder("{spec}", data_dir="{root}").download_and_prepare(file_format="array_record")'
    return f"python -c {shlex.quote(f'import tensorflow_datasets as tfds; {call}')}"


def _no_tensorflow(builder: Builder) -> str:
    return (
        f'the data set "{builder.name}" is known but not prepared in {builder.data_dir}, and preparing it '
        "needs TensorFlow, which is not installed (reading it afterwards does not). Either\n"
        "  pip install 'gen-jax[prepare]'\n"
        "and run this again, or prepare it on any machine that has TensorFlow,\n"
        f"  {prepare_command(builder)}\n"
        "copy the directory and name it with data_dir= or TFDS_DATA_DIR."
    )


def _no_network(builder: Builder, error: Exception, have_tensorflow: bool) -> str:
    also = "" if have_tensorflow else " It may also need TensorFlow: pip install 'gen-jax[prepare]'."
    return (
        f'the data set "{builder.name}" is not prepared in {builder.data_dir} and can not be downloaded: no '
        f"network, or the server does not answer ({error}). Try again with a connection, or prepare it on a "
        "machine that has one,\n"
        f"  {prepare_command(builder)}\n"
        f"copy the directory and name it with data_dir= or TFDS_DATA_DIR.{also}"
    )


def _unknown(name: str, where: str) -> str:
    import tensorflow_datasets as tfds

    root = Path(where)
    prepared = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    names = {"mnist", *tfds.list_builders(with_community_datasets=False), *prepared} - {"downloads"}
    asked = name.split("/")[0].split(":")[0].lower()
    near = difflib.get_close_matches(asked, sorted(names), n=5, cutoff=0.6)
    hint = f"Nearest: {', '.join(near)}." if near else "No name is near."
    path = f"; nor is there a folder or file {os.path.abspath(name)}" if "/" in name else ""
    return (
        f'no data set is called "{name}", neither among the {len(names)} builders that TFDS knows nor '
        f"prepared in {root}{path}. {hint} A directory of prepared sets is named with data_dir= or TFDS_DATA_DIR; "
        "a builder of your own must be imported first."
    )
