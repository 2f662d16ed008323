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
        ("a,b\n1,2\n3\n4,x\n", "not so in 2: line 3 has 1 cell, line 4 has 'x' in column 2"),
        ("1 2\nnan 3\n", "line 2 has 'nan' in column 1. A value is missing there"),
        ("a,b\n1,2\n3,NA\n", "line 3 has 'NA' in column 2. A value is missing there"),
        ("a,b\n1,2\n3,1cm\n", "line 3 has '1cm' in column 2. Write the unit into the name"),
        ('a,b\n1,2\n3,"1,500"\n', "line 3 has '1,500' in column 2. Write thousands without a comma"),
        ("day,b\n1,2\n2024-03-01,2\n", "line 3 has '2024-03-01' in column 1. Make a number of a date"),
        ("1\n2\nx\n", "expected 1 finite number in every line, not so in 1: line 3 has 'x' in column 1"),
        ("1\n" + "x\n" * 7, r"not so in 7: line 2 .*line 6 has 'x' in column 1, \.\.\."),
        ("1\ninf\n", "line 2 has 'inf' in column 1"),
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


A, B = [1.5, 2.0, 3.25], [70.0, 8.5, -9.0]
BOTH = np.stack([A, B], 1)
FILES = {  # what programs write, and what it means
    "a mark of UTF-8": ("\ufeff1.5,70\n2,8.5\n3.25,-9\n", BOTH),
    "a mark, one column": ("\ufeff1.5\n2\n3.25\n", np.array(A)[:, None]),
    "pandas": (",height,weight\n0,1.5,70\n1,2,8.5\n2,3.25,-9\n", BOTH),
    "pandas, some rows": (",height,weight\n3,1.5,70\n7,2,8.5\n9,3.25,-9\n", BOTH),
    "pandas, read and written again": ("Unnamed: 0,height,weight\n0,1.5,70\n1,2,8.5\n2,3.25,-9\n", BOTH),
    "R": ('"height" "weight"\n"1" 1.5 70\n"2" 2 8.5\n"3" 3.25 -9\n', BOTH),
    "R, csv": ('"","height","weight"\n"1",1.5,70\n"2",2,8.5\n"3",3.25,-9\n', BOTH),
    "decimal commas, semicolons": ("height;weight\n1,5;70\n2;8,5\n3,25;-9\n", BOTH),
    "decimal commas, tabs": ("height\tweight\n1,5\t70\n2\t8,5\n3,25\t-9\n", BOTH),
    "decimal commas, blanks": ("1,5 70\n2 8,5\n3,25 -9\n", BOTH),
    "commas and blanks": ("height, weight\n1.5, 70\n2,  8.5\n3.25 , -9\n", BOTH),
    "a comma at each end": ("height,weight,\n1.5,70,\n2,8.5,\n3.25,-9,\n", BOTH),
    "tabs to align": ("height\tweight\n1.5\t\t70\n2\t\t8.5\n3.25\t\t-9\n", BOTH),
    "names in quotes": ('"height, m","weight, kg"\n"1.5","70"\n"2","8.5"\n"3.25","-9"\n', BOTH),
    "numpy's names": ("# height,weight\n1.5,70\n2,8.5\n3.25,-9\n", BOTH),
    "a column that counts": ("n,height\n0,1.5\n1,2\n2,3.25\n", np.stack([range(3), A], 1)),
    "names with blanks": ("height in m\n1.5\n2\n3.25\n", np.array(A)[:, None]),
    "ends of Windows": ("height,weight\r\n1.5,70\r\n2,8.5\r\n3.25,-9\r\n", BOTH),
}


@pytest.mark.parametrize(("text", "values"), FILES.values(), ids=FILES)
def test_tables_are_read_as_they_are_meant(tmp_path, text, values):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(data.table(path), values)
    path.write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    np.testing.assert_array_equal(data.table(path), values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,\n,2\n",
            "line 2 has nothing in column 2, line 3 has nothing in column 1. A value is missing there",
        ),
        ("1,,3\n,2,3\n1,2,\n", "not so in 3: line 1 has nothing in column 2, .* A value is missing"),
        ("a;b\n1;2\n3;\n", "line 3 has nothing in column 2. A value is missing"),
        ("a\tb\tc\n1\t\t2\n3\t4\t5\n", "line 2 has nothing in column 2. A value is missing"),
        ("a,b\n1,NA\n", "line 2 has 'NA' in column 2"),
        ("height\n1,5\n2,5\n", "a name for each of 2 columns, got 1: height.*part the columns by semicolons"),
        ("height,weight\n1,5,70\n2,5,80\n", "a name for each of 3 columns, got 2"),
        ("1.234,5;2\n3;4\n", "line 1 has '1.234,5' in column 1"),
    ],
)
def test_tables_with_gaps_are_not_shifted(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        data.table(path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"\x80\x81\x82")
    with pytest.raises(ValueError, match=r"table\.csv is not a text file in UTF-8"):
        data.table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ('1,2\n3,"' + "9" * 140_000 + "\n", "is no table"),
        (
            "1,2\n3,4_5\n",
            "expected 2 finite numbers in every line, not so in 1: line 2 has '4_5' in column 2",
        ),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text, said):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"table\.csv:? {said}"):
        data.table(tmp_path / "table.csv")
