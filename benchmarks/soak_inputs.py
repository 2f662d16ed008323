"""Mutated files of other people: what is read is what an independent reader finds there, or an error says why not."""

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import soak_damage
import soak_mutations as mutations
from PIL import Image
from soak_worker import Wrong

from gen_jax import data
from gen_jax.pretrained import safetensors

METADATA = (
    "meta/metadata",
    "_CHECKPOINT_METADATA",
    "ema_params/_METADATA",
    "ema_params/array_metadatas/process_0",
)


class Cases(soak_damage.Cases):
    """Case `i`: a kind of file, a sound one of it, and changes drawn by the number."""

    kinds = ("config.json", "checkpoint metadata", ".npz", ".csv", "PNG", "safetensors")

    def warm(self) -> None:
        """Sound files of each kind, and what is in them."""
        super().warm()
        self._inputs = self._place / "cases" / "inputs"
        rng = np.random.default_rng(self._seed)
        self._npz = [_npz(rng, save) for save in (np.savez, np.savez_compressed)]
        self._png = [_png(rng, mode) for mode in ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")]
        self._csv = [_csv(rng), b"1.5 2\n3 4\n5 6\n", b"a;b\n1,5;2\n2,5;3\n"]
        self._tensors = [_tensors(rng)]
        self._scratch = self._copy("model", "mutated")
        for number in range(len(self.kinds)):
            self._read(self.kinds[number], random.Random(number), sound=True)

    def __call__(self, number: int) -> str:
        """Mutates and reads."""
        return self._read(self.kinds[number % len(self.kinds)], random.Random(f"{self._seed} {number}"))

    def _read(self, kind: str, rng: random.Random, sound: bool = False) -> str:
        read: dict[str, Callable[[random.Random, bool], str]] = {
            "config.json": lambda rng, sound: self._run(rng, sound, "config.json"),
            "checkpoint metadata": lambda rng, sound: self._run(
                rng, sound, f"checkpoints/{rng.choice((2, 4, 6))}/{rng.choice(METADATA)}"
            ),
            ".npz": self._read_npz,
            ".csv": self._read_csv,
            "PNG": self._read_png,
            "safetensors": self._read_tensors,
        }
        return read[kind](rng, sound)

    def _run(self, rng: random.Random, sound: bool, name: str) -> str:
        """A run with another text in a file of JSON."""
        file = self._scratch / name
        raw = file.read_bytes()
        try:
            if not sound:
                change = (
                    mutations.of_json
                    if rng.random() < 0.7
                    else lambda rng, raw: mutations.of_bytes(rng, raw, raw)
                )
                file.write_bytes(change(rng, raw))
            return f"{name}: {self._draw(self._scratch)}"
        finally:
            shutil.rmtree(self._scratch / "checkpoints.damaged", ignore_errors=True)
            file.write_bytes(raw)

    def _mutated(
        self, rng: random.Random, sound: bool, seeds: list[bytes], change: Callable[..., bytes], end: str
    ) -> Path:
        shutil.rmtree(self._inputs, ignore_errors=True)
        self._inputs.mkdir(parents=True)
        path = self._inputs / f"input{end}"
        raw = rng.choice(seeds)
        path.write_bytes(raw if sound else change(rng, raw, rng.choice(seeds)))
        return path

    def _read_npz(self, rng: random.Random, sound: bool) -> str:
        path = self._mutated(rng, sound, self._npz, mutations.of_npz, ".npz")
        found = data.load(path)
        with np.load(path) as theirs:  # which verifies checksums
            only = theirs.files[0] if len(theirs.files) == 1 else "image"
            for name, array in found.items():
                expected = theirs[only if name == "image" else name]
                if not np.array_equal(np.asarray(array).ravel(), _pixels(expected).ravel()):
                    raise Wrong(f"{name} is another array than numpy reads")
        return f"arrays of {len(found['image'])} examples"

    def _read_csv(self, rng: random.Random, sound: bool) -> str:
        path = self._mutated(rng, sound, self._csv, mutations.of_csv, ".csv")
        found = data.table(path)
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        words = [word for cut in (r"[,;\s\"]+", r"[;\s\"]+") for word in re.split(cut, text)]
        there = {x for word in words for x in (_float(word), _float(word.replace(",", "."))) if x is not None}
        if found.ndim != 2 or not np.isfinite(found).all() or not set(found.ravel().tolist()) <= there:
            raise Wrong("it has numbers that are not in the text")
        if len(found) > len(text.splitlines()):
            raise Wrong("it has more rows than the text has lines")
        return f"a table {found.shape}"

    def _read_png(self, rng: random.Random, sound: bool) -> str:
        path = self._mutated(rng, sound, self._png, mutations.of_png, ".png")
        channels: Literal[1, 3, 4] = rng.choice((1, 3, 4))
        try:
            found = data.load(self._inputs, channels=channels, cache_dir=self._place / "cases" / "cache")[
                "image"
            ]
        finally:
            shutil.rmtree(self._place / "cases" / "cache", ignore_errors=True)
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != channels:
            raise Wrong(f"an image of {found.dtype} {found.shape}")
        if path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n":
            try:
                list(mutations.chunks(path.read_bytes()))
            except ValueError as error:
                raise Wrong(f"pixels, although {error}") from None
        return f"an image {found.shape}"

    def _read_tensors(self, rng: random.Random, sound: bool) -> str:
        path = self._mutated(rng, sound, self._tensors, mutations.of_safetensors, ".safetensors")
        found = safetensors.read(path)
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        header.pop("__metadata__", None)
        if found.keys() != header.keys():
            raise Wrong("it has other names than its header")
        for name, array in found.items():
            begin, stop = header[name]["data_offsets"]
            if array.tobytes() != raw[end + begin : end + stop] or list(array.shape) != header[name]["shape"]:
                raise Wrong(f"{name} is another array than its bytes")
        return f"{len(found)} tensors"


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _pixels(array: np.ndarray) -> np.ndarray:
    """As `data.load` gives them: bits as 0 and 255, numbers with points as float32."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _npz(rng: np.random.Generator, save: Callable[..., None]) -> bytes:
    out = io.BytesIO()
    images, labels = rng.integers(0, 256, (6, 5, 4, 3), np.uint8), rng.integers(0, 3, 6)
    save(out, image=images, label=labels, text=np.array([f"number {i}" for i in range(6)]))
    return out.getvalue()


def _png(rng: np.random.Generator, mode: str) -> bytes:
    out = io.BytesIO()
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, (7, 9), np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 256, (7, 9, 4), np.uint8)).convert(mode)
    picture.save(out, "PNG", dpi=(72, 72))
    return out.getvalue()


def _csv(rng: np.random.Generator) -> bytes:
    rows = [",".join(f"{x:.4g}" for x in row) for row in rng.standard_normal((12, 3))]
    return "\n".join(["one,two,three", *rows, ""]).encode()


def _tensors(rng: np.random.Generator) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape, kind, code in (
        ("a.weight", (3, 4), np.float32, "F32"),
        ("a.bias", (4,), np.float16, "F16"),
        ("n", (), np.int64, "I64"),
    ):
        raw = np.asarray(rng.standard_normal(shape) * 9).astype(kind).tobytes()
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
