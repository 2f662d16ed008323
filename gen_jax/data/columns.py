"""What the arrays of a data set are for: images, labels and captions have one name each, others are left alone."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import checks

LIKE_LABELS = (
    "labels",
    "y",
    "class",
    "classes",
    "target",
    "targets",
    "label_id",
    "class_id",
    "category",
    "fine_label",
)
"""Names that labels have elsewhere."""


def no_label(columns: Mapping[str, Any]) -> str:
    """Why arrays have no labels, with the one that may be meant."""
    listed = ", ".join(f'"{key}" {_shown(array)}' for key, array in columns.items()) or "nothing"
    meant = [key for key in columns if key.lower() in LIKE_LABELS]
    return f"there are {listed}" + (
        f'; rename "{meant[0]}" to "label"{label_hint(columns[meant[0]])}' if meant else ""
    )


def label_hint(label: Any) -> str:
    """What makes integers `[N]` of labels of another form, to end a message with."""
    shape, kind = np.shape(label), getattr(label, "dtype", np.dtype(object)).kind
    if len(shape) == 2 and shape[1] == 1:
        return "; take [:, 0]"
    if kind == "f" and len(shape) in (1, 2) and (wrong := _not_whole(label)):
        return wrong
    if len(shape) == 2 and kind in "biuf":
        return "; of one-hot codes take .argmax(-1)"
    if len(shape) == 1 and kind in "OSU":
        return "; of names take np.unique(names, return_inverse=True)[1]"
    if len(shape) == 1 and kind in "fb":
        return "; take .astype(np.int32)"
    return ""


def _not_whole(label: Any) -> str:
    """What is wrong with the values of floats, where they are known; of a file they are read, to say that."""
    if isinstance(label, jax.core.Tracer):
        return ""
    values = np.asarray(label.read() if hasattr(label, "read") else label, np.float64)
    if not values.size:
        return ""
    if said := checks.not_finite(values):
        return f"; it has {said}: give these a class, or leave them out"
    rows = np.flatnonzero((values != np.round(values)).reshape(len(values), -1).any(1))
    if not len(rows) or values.ndim > 1:
        return ""
    return (
        f"; {len(rows):,} of {len(values):,} are no whole numbers, such as {values[rows[0]]:g} in row {rows[0]}: labels "
        "are numbers of classes, from 0 on"
    )


def has_labels(columns: Mapping[str, Any]) -> bool:
    """Whether there are integers `[N]` under "label"."""
    label: Any = columns.get("label")
    return len(np.shape(label)) == 1 and getattr(label, "dtype", np.dtype(object)).kind in "iu"


def warn_of_labels(where: str, columns: Mapping[str, Any]) -> None:
    """Warn where arrays that look like labels are left out, since they have another name or form."""
    if has_labels(columns):
        return
    if "label" in columns:
        label = columns["label"]
        text = f'"label" is {_shown(label)}: it is left out, as labels are integers [N]{label_hint(label)}'
    elif any(key.lower() in LIKE_LABELS for key in columns):
        text = f'it has no "label": {no_label(columns)}'
    else:
        return
    warnings.warn(f"{where}: {text}.", stacklevel=3)


def _shown(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)} {list(np.shape(array))}"
