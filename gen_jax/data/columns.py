"""What the arrays of a data set are for: images, labels and captions have one name each, others are left alone."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

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
    if len(shape) == 2 and kind in "biuf":
        return "; of one-hot codes take .argmax(-1)"
    if len(shape) == 1 and kind in "OSU":
        return "; of names take np.unique(names, return_inverse=True)[1]"
    if len(shape) == 1 and kind in "fb":
        return "; take .astype(np.int32)"
    return ""


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
