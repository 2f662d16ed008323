"""Headers that are damaged or hostile: a clear error before anything is allocated, or the tensors that they say."""

import json
import random
import resource
import tracemalloc

import numpy as np
import pytest

from gen_jax.pretrained import safetensors
from tests.safetensors_files import arrays, entry, framed, parts

ZEROS = bytes(8)
ONE = {"x": entry()}
"""Of eight bytes."""
TEXT = json.dumps(ONE).encode()
HUGE = "9" * 5000


def of(**fields):
    return framed({"x": entry() | fields}, ZEROS)


def two(first, second):
    """Tensors of bytes at two places."""
    spans = {"x": first, "y": second}
    return framed({name: entry("U8", (b - a,), (a, b)) for name, (a, b) in spans.items()}, ZEROS)


HOSTILE = {
    "empty": (b"", r"got b'' at its beginning, of 0 bytes"),
    "seven bytes": (b"\x02" + bytes(6), "at its beginning, of 7 bytes"),
    "no header": (bytes(8), "at its beginning, of 8 bytes"),
    "header beyond the file": (
        (1000).to_bytes(8, "little") + TEXT + ZEROS,
        "its header has 1,000 bytes .* and the file has ",
    ),
    "header of 2^63 bytes": (
        (2**63).to_bytes(8, "little") + TEXT + ZEROS,
        "its header has 9,223,372,036,854,775,808 bytes",
    ),
    "header beyond 100 MB": ((10**8 + 1).to_bytes(8, "little") + TEXT + ZEROS, "at most 100,000,000"),
    "text": (b"GIF89a" + bytes(50), "no safetensors file"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "pointer of Git LFS",
    ),
    "not UTF-8": (framed(b'{"\xff": 1}'), "not UTF-8: .* at byte 2"),
    "not JSON": (framed(b"{'x': 1}"), "not JSON"),
    "half of it": (framed(TEXT[:-1], ZEROS), "not JSON"),
    "two objects": (framed(b"{}{}"), "not JSON: Extra data"),
    "zeros behind": (framed(TEXT + bytes(3), ZEROS), "not JSON"),
    "blank before": (framed(b" " + TEXT, ZEROS), "and then '{'"),
    "a list": (framed(b"[]      "), "and then '{'"),
    "nested": (framed(b'{"x":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "nested too deeply"),
    "nested objects": (framed(b'{"x":' * 10**5 + b"1" + b"}" * 10**5), "nested too deeply"),
    "repeated name": (framed(TEXT[:-1] + b"," + TEXT[1:], ZEROS), "repeats the key 'x'"),
    "repeated field": (framed(TEXT.replace(b'"shape"', b'"dtype"'), ZEROS), "repeats the key 'dtype'"),
    "half a character": (framed(TEXT.replace(b'"x"', rb'"\ud800"'), ZEROS), "half a character"),
    "metadata of a list": (framed(ONE | {"__metadata__": []}, ZEROS), "__metadata__ has to be"),
    "metadata of numbers": (framed(ONE | {"__metadata__": {"a": 1}}, ZEROS), "__metadata__ has to be"),
    "metadata, nothing": (framed(ONE | {"__metadata__": None}, ZEROS), "__metadata__ has to be .* got None"),
    "metadata, a tensor": (framed({"__metadata__": entry()}, ZEROS), "__metadata__ has to be"),
    "no object": (framed({"x": 3}), "'x': expected its dtype, shape and data_offsets, got 3"),
    "no type": (framed({"x": {"shape": [], "data_offsets": [0, 0]}}), "expected its dtype"),
    "one field more": (of(scale=2), "expected its dtype"),
    "unknown type": (of(dtype="F7"), "expected a dtype of U64, .*, got 'F7'"),
    "type in lower case": (of(dtype="f32"), "expected a dtype"),
    "no text": (of(dtype=["F32"]), "expected a dtype"),
    "half a byte": (of(dtype="F4", shape=[16]), "type F4, of less than a byte"),
    "six bits": (of(dtype="F6_E2M3"), "type F6_E2M3, of less than a byte"),
    "shape, a number": (of(shape=2), "expected a shape"),
    "shape of text": (of(shape=["2"]), "expected a shape"),
    "shape of a truth": (of(shape=[True, 2]), "expected a shape"),
    "shape of a fraction": (of(shape=[2.0]), "expected a shape"),
    "negative shape": (of(shape=[-1, -2]), "expected a shape"),
    "minus zero": (framed(TEXT.replace(b"[2]", b"[-0]")), "expected a shape"),
    "shape, not a number": (of(shape=[float("nan")]), "expected a shape"),
    "65 axes": (of(shape=[1] * 65), "at most 64"),
    "100,000 axes": (of(shape=[10**18] * 10**5), "at most 64"),
    "2^64 elements": (of(shape=[2**32, 2**32]), "no array can have"),
    "2^62 elements": (of(shape=[2**31, 2**31]), "no array can have"),
    "2^64 elements and none": (of(shape=[2**32, 2**32, 0], data_offsets=[0, 0]), "no array can have"),
    "5,000 digits": (framed(TEXT.replace(b"[2]", b"[%s]" % HUGE.encode()), ZEROS), "expected a shape"),
    "5,000 digits of bytes": (framed(TEXT.replace(b"8]", b"%s]" % HUGE.encode()), ZEROS), "data_offsets"),
    "large shape": (of(shape=[10**9]), "takes 4,000,000,000 bytes, its place has 8"),
    "small shape": (of(shape=[1]), "takes 4 bytes, its place has 8"),
    "one offset": (of(data_offsets=[8]), r"expected data_offsets \[begin, end\], got \[8\]"),
    "three offsets": (of(data_offsets=[0, 4, 8]), "expected data_offsets"),
    "end before begin": (of(data_offsets=[8, 0]), "expected data_offsets"),
    "negative offset": (of(data_offsets=[-8, 0]), "expected data_offsets"),
    "outside": (of(data_offsets=[0, 16], shape=[4]), "take 16 bytes and the file has 8 .* cut off"),
    "far outside": (of(data_offsets=[2**62, 2**62 + 8]), "leaves a hole"),
    "overlap": (two((0, 5), (4, 8)), "'y' overlaps the tensor before it: it begins at 4 in place of 5"),
    "the same place": (two((0, 8), (0, 8)), "overlaps"),
    "hole": (two((0, 3), (4, 8)), "'y' leaves a hole before it: it begins at 4 in place of 3"),
    "hole in front": (of(shape=[1], data_offsets=[4, 8]), "leaves a hole"),
    "cut off": (framed(ONE, ZEROS[:7]), "cut off"),
    "something behind": (framed(ONE, bytes(9)), "something behind"),
    "no tensors, something behind": (framed({}, b"x"), "something behind"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_read_refuses(name, tmp_path):
    raw, message = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"x.safetensors .*{message}"):
        safetensors.read(path)


SOUND = {
    "no tensors": framed({}),
    "only metadata": framed({"__metadata__": {"a": "b"}}),
    "spaces behind": framed(TEXT + b"   ", ZEROS),
    "tabs within": framed(json.dumps(ONE, indent="\t").encode(), ZEROS),
    "escapes": framed(json.dumps({"ß😀\n": entry()}).encode(), ZEROS),
    "characters": framed(json.dumps({"ß😀": entry()}, ensure_ascii=False).encode(), ZEROS),
    "no axes": framed({"x": entry("F64", (), (0, 8))}, ZEROS),
    "64 axes": framed({"x": entry("F64", [1] * 64, (0, 8))}, ZEROS),
    "nothing in it": framed({"x": entry(shape=(3, 0), offsets=(0, 0))}),
    "nothing between": framed({"x": entry(), "y": entry(shape=[0], offsets=(8, 8))}, ZEROS),
    "nothing in front": framed({"x": entry(), "y": entry(shape=[0], offsets=(0, 0))}, ZEROS),
    "other order": framed({"x": entry("U8", (3,), (5, 8)), "y": entry("U8", (5,), (0, 5))}, bytes(range(8))),
    "not aligned": framed({"x": entry("U8", (1,), (0, 1)), "y": entry("F32", (2,), (1, 9))}, bytes(range(9))),
}


@pytest.mark.parametrize("name", SOUND)
def test_read_takes(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SOUND[name])
    assert_consistent(safetensors.read(path), SOUND[name])


def assert_consistent(tensors, file):
    """That they are what an independent reading of the bytes finds."""
    header, _ = parts(file)
    assert tensors.metadata == header.pop("__metadata__", {})
    assert list(tensors) == list(header)
    for name, expected in arrays(file).items():
        array = tensors[name]
        assert (tensors.dtypes[name], tensors.shapes[name]) == (expected.dtype, expected.shape)
        assert (array.dtype, array.shape, array.tobytes()) == (
            expected.dtype,
            expected.shape,
            expected.tobytes(),
        )


BASE = framed(
    {
        "__metadata__": {"format": "pt", "title": "ß"},
        "conv_in.weight": entry("F32", (2, 3, 1, 1), (0, 24)),
        "conv_in.bias": entry("BF16", (3,), (24, 30)),
        "scale": entry("F16", (), (30, 32)),
        "none": entry("I64", (0, 7), (32, 32)),
        "eight": entry("F8_E4M3", (5,), (32, 37)),
        "mask": entry("BOOL", (3,), (37, 40)),
    },
    bytes(np.random.default_rng(0).integers(0, 2, 40, np.uint8)),
)
VALUES = [
    -1, 0, 1, 2, 6, 24, 32, 40, 2**31, 2**32 + 1, 2**63, 2**64 - 1, 10**400, 0.5, 1e400, float("nan"), True, None, "",
    "F32", "F16", "BF16", "U8", "F4", "I128", "data_offsets", [], {}, [0], [0, 0], [0, 40], [2, 3], [3, 0], [1] * 70,
    [2**33] * 3, {"a": "b"}, entry(), "ß", "\ud800", "x" * 1000, [[[[]]]],
]  # fmt: skip


def flipped(rng, file):
    file = bytearray(file)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        file[rng.randrange(len(file) - 40)] ^= 1 << rng.randrange(8)
    return bytes(file)


def edited(rng, file):
    """Some values of the header replaced, removed or added; the length is kept right."""
    header, data = parts(file)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = header
        while isinstance(at, dict | list) and at and rng.random() < 0.7:
            holder, key = at, rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = holder[key]
        if at is header:
            header[rng.choice(("new", "scale", ""))] = rng.choice(VALUES)
        elif rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(VALUES)
    return framed(header, data)


def cut(rng, file):
    return file[: rng.randrange(len(file))]


def inserted(rng, file):
    at, more = rng.randrange(len(file) + 1), rng.randbytes(rng.choice((1, 1, 2, 8, 100)))
    more = rng.choice((more, b" " * len(more), b'"', b"{", b"[" * 3000, b"9" * 30, b"e9", b","))
    longer = bytearray(file[:at] + more + file[at:])
    if rng.random() < 0.7:
        longer[:8] = (int.from_bytes(file[:8], "little") + len(more)).to_bytes(8, "little")
    return bytes(longer)


def mutants(count):
    rng = random.Random(0)
    for i in range(count):
        yield (flipped, edited, cut, inserted)[i % 4](rng, BASE)


def read_or_message(path, raw):
    path.write_bytes(raw)
    try:
        return safetensors.read(path)
    except ValueError as problem:
        error = problem
    assert type(error) is ValueError, error
    assert str(path) in str(error)
    return str(error)


def test_read_of_1000_mutants_is_right_or_a_clear_error(tmp_path):
    sound, messages = 0, set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    for i, raw in enumerate(mutants(1000)):
        found = read_or_message(tmp_path / f"{i}.safetensors", raw)
        if isinstance(found, str):
            messages.add(found.split(": ")[1][:20])
        else:
            sound += 1
            assert_consistent(found, raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound > 50
    assert len(messages) > 15
    assert peak < 2**25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_read_takes_no_mutant_that_the_package_refuses(tmp_path):
    package = pytest.importorskip("safetensors")
    for i, raw in enumerate(mutants(1000)):
        found = read_or_message(tmp_path / f"{i}.safetensors", raw)
        if not isinstance(found, str):
            theirs = {
                name: (e["dtype"], e["shape"], bytes(e["data"])) for name, e in package.deserialize(raw)
            }
            header, _ = parts(raw)
            ours = {name: (header[name]["dtype"], list(x.shape), x.tobytes()) for name, x in found.items()}
            assert ours == theirs


def pairs(count):
    return b",".join(b'"%d":"b1"' % i for i in range(count))


MOST = 10**8 - 100
LARGE = {
    "lists": lambda: b'{"x":[' + b"[]," * (MOST // 3) + b"[]]}",
    "as many lists as are parsed": lambda: b'{"x":[' + b"[]," * 990_000 + b"[]]}",
    "as much metadata as is parsed": lambda: b'{"__metadata__":{%s}}' % pairs(1_990_000),
    "one wide character": lambda: b'{"\xf0\x9f\x98\x80":"' + b"x" * MOST + b'"}',
    "one long name": lambda: b'{"' + b"x" * MOST + b'":1}',
    "brackets": lambda: b"{" + b"[" * MOST,
    "zeros": lambda: b"{" + bytes(MOST),
}  # fmt: skip


SLOW = "as many lists as are parsed", "as much metadata as is parsed"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LARGE]
)
def test_read_of_large_headers_takes_less_than_a_gibibyte(name, tmp_path):
    raw = framed(LARGE[name]())
    tracemalloc.start()
    found = read_or_message(tmp_path / "x.safetensors", raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30
    assert isinstance(found, str) == (name != "as much metadata as is parsed")
    assert len(found) < 1000
