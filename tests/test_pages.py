"""What the benchmarks share; it needs no extra."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "pages.py"
SPEC = importlib.util.spec_from_file_location("pages", PATH)
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


def test_what_is_kept_is_found_once(tmp_path):
    path, calls = tmp_path / "kept.json", []

    def find():
        calls.append(None)
        return {"distance": 1.5}

    of = {"minutes": 4.0, "marks": (0.5, 1.0)}
    for _ in range(2):  # the second time from the file
        kept = pages.Kept(path, of)
        assert [kept("one", find), kept("one", find)] == [{"distance": 1.5}] * 2
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"not of .*5.0.*remove it"):
        pages.Kept(path, of | {"minutes": 5.0})


def test_nothing_is_written_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pages.Kept(None)("one", lambda: 1) == 1
    assert not list(tmp_path.iterdir())
