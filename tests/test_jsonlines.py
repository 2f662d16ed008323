import json

import pytest

from gen_jax import jsonlines

GOOD = {"step": 5, "loss": 0.1, "kl": None, "count": 3}


@pytest.mark.parametrize(
    "bad",
    [
        *(b"{", b"[1]", b"null", b"7", b'"step"', b"\xff\xfe", b"\0", b"{}", b'{"loss": 1}', b"[" * 100_000),
        *(b'{"step": "5"}', b'{"step": 5.0}', b'{"step": true}', b'{"step": null}', b'{"step": NaN}'),
        *(b'{"step": 5, "loss": "x"}', b'{"step": 5, "loss": Infinity}', b'{"step": 5, "loss": 1e999}'),
        *(b'{"step": 5, "loss": [1]}', b'{"step": 5, "loss": true}', b'{"step": 1%s}' % (b"0" * 5000)),
        b'{"step": 5, "loss": 1%s}' % (b"0" * 400),
    ],
)
def test_a_line_that_is_none_is_told_from_those_that_are(tmp_path, bad):
    line = json.dumps(GOOD).encode()
    (tmp_path / "lines").write_bytes(line + b"\n" + bad + b"\r\n\n" + line)
    good, found = jsonlines.read(tmp_path / "lines")
    assert good == [GOOD, GOOD]
    assert found == [bad + b"\r"]


def test_a_huge_file_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "MOST", 100)
    line = json.dumps(GOOD).encode()
    (tmp_path / "lines").write_bytes(b"\0" * 1000 + b"\n" + line + b"\n" + b"x\n" * 500)
    good, bad = jsonlines.read(tmp_path / "lines")
    assert good == [GOOD]
    assert bad == [b"\0" * 100]


def test_no_file_has_no_lines(tmp_path):
    assert jsonlines.read(tmp_path / "none") == ([], [])
