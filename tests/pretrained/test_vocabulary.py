"""CLIP's vocabulary for a file that comes without one."""

import gzip
from pathlib import Path

import pytest

from gen_jax import text
from gen_jax.pretrained import vocabulary

WORDS = ["a small red seven", "a large blue three"]


@pytest.fixture(scope="module")
def merges():
    return text.train(WORDS, num_merges=20).merges


def installed(root, package, merges):
    """A package that ships merges as those of `vocabulary.PACKAGES` do, with a head and more than CLIP takes."""
    place = root / package / "inner"
    place.mkdir(parents=True)
    (root / package / "__init__.py").write_text("1 / 0  # nobody imports it\n")
    lines = ["#version", *merges, "not used"]
    (place / vocabulary.FILE).write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.mark.parametrize("package", vocabulary.PACKAGES)
def test_merges_are_found_in_an_installed_package(package, merges, tmp_path, monkeypatch):
    installed(tmp_path, package, merges)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vocabulary, "PACKAGES", {package: vocabulary.PACKAGES[package]})
    monkeypatch.setattr(vocabulary, "MERGES", len(merges))
    found = vocabulary.tokenizers(["text_encoder"], second=False, beside=tmp_path, given=None)
    assert found["text_encoder"].merges == merges


@pytest.mark.parametrize(
    ("second", "pads"), [(False, ("<|endoftext|>", "!")), (True, ("!", "!"))], ids=["1 and XL", "2"]
)
def test_a_folder_beside_the_file_comes_first(second, pads, merges, tmp_path, monkeypatch):
    (tmp_path / "tokenizer").mkdir()
    text.Tokenizer(merges).save(tmp_path / "tokenizer")
    monkeypatch.setattr(vocabulary, "_installed", None)
    parts = ("text_encoder", "text_encoder_2")
    found = vocabulary.tokenizers(parts, second=second, beside=tmp_path, given=None)
    assert tuple(found[part].pad for part in parts) == pads
    assert {found[part].merges for part in parts} == {merges}


def test_no_vocabulary_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGES", {"no_such_package": "no-such-package"})
    with pytest.raises(ValueError, match=r"give config=.*or install one of no-such-package"):
        vocabulary.tokenizers(["text_encoder"], second=False, beside=Path("/nowhere"), given=None)
