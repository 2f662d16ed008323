import numpy as np
import pytest

from gen_jax import data


@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [
        ("heights", (3000, 1), [165.190]),
        ("height_weight", (247, 2), [177.745, 78.145]),
        ("old_faithful", (272, 2), [3.488, 70.897]),
    ],
)
def test_embedded_tables(name, shape, mean):
    x = data.table(name)
    assert x.shape == shape
    assert x.dtype == np.float64
    np.testing.assert_allclose(x.mean(0), mean, atol=1e-3)


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n3.5,-4e1\n", "1 2\n3.5\t-40\n\n", "1,2\n3.5,-40"], ids=["csv", "txt", "no header"]
)
def test_tables_of_the_reader(tmp_path, text):
    path = tmp_path / "table.txt"
    path.write_text(text)
    np.testing.assert_array_equal(data.table(path), [[1, 2], [3.5, -40]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n4,x\n", "lines 3, 4"),
        ("1 2\nnan 3\n", "lines 2"),
        ("a,b\n", "no rows"),
    ],
)
def test_tables_that_are_not_numbers(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        data.table(path)


def test_table_that_is_not_there():
    with pytest.raises(ValueError, match="heights, height_weight, old_faithful"):
        data.table("height")
