"""Images, labels and tables of any type, shape and spelling: the right value, or a ValueError that names what came."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gen_jax import data
from gen_jax.conditioning import Labels

TYPES = st.sampled_from(["u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "?", "c8", "U2"])
SIDES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=2)
FOLDER = Path(tempfile.mkdtemp(prefix="gen_jax-tables-"))
FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


def images(x):
    """Integers from 0 to 255 are bytes, nothing else is."""
    is_bytes = x.dtype.kind in "iu" and (x.size == 0 or (x.min() >= 0 and x.max() <= 255))
    if is_bytes:
        np.testing.assert_allclose(data.to_unit(x), x / 127.5 - 1, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="images must be uint8"):
            data.to_unit(x)


def labels(x):
    """Integers from 0 to 4, one for each example, are labels of 5 classes, nothing else is."""
    are = x.ndim == 1 and x.dtype.kind in "iu" and (x.size == 0 or (x.min() >= 0 and x.max() < 5))
    if are:
        y = Labels(5).prepare({"label": x})["label"]
        assert y.dtype == np.int32
        np.testing.assert_array_equal(y, x)
    else:
        with pytest.raises(ValueError, match="label"):
            Labels(5).prepare({"label": x})


def tables(values, comma, separator, names, index, mark):
    """Written as spreadsheets do, with decimal commas where something else parts the columns."""
    index = index and names
    comma = comma and separator != "," and (index or values.shape[1] > 1)
    number = lambda x: str(float(x)).replace(".", "," if comma else ".")
    rows = [[number(x) for x in row] for row in values]
    if index:
        rows = [[str(i), *row] for i, row in enumerate(rows)]
    if names:
        rows.insert(0, [""] * index + [f"x{i}" for i in range(values.shape[1])])
    path = FOLDER / "table.csv"
    path.write_bytes(("\ufeff" * mark + "\n".join(separator.join(row) for row in rows)).encode())
    np.testing.assert_array_equal(data.table(path), values)


ARRAYS = TYPES.flatmap(lambda dtype: hnp.arrays(dtype, SIDES))
MATRICES = hnp.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=FINITE)
SEPARATORS = st.sampled_from([";", ",", "\t"])
CASES = {
    "images": given(ARRAYS)(images),
    "labels": given(ARRAYS)(labels),
    "tables": given(MATRICES, st.booleans(), SEPARATORS, st.booleans(), st.booleans(), st.booleans())(tables),
}


@pytest.mark.parametrize("name", CASES)
def test_anything_is_right_or_named(name):
    settings(max_examples=60, deadline=None, database=None)(CASES[name])()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_things_are_right_or_named(name):
    settings(max_examples=10_000, deadline=None, database=None)(CASES[name])()
