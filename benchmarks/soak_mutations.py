"""Changes of files that a seed draws: of bytes, of JSON, and of what lies behind a checksum."""

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
PICKLE = b"\x80\x04cos\nsystem\n(S'touch CANARY'\ntR."
"""Whoever unpickles it runs a command."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, *NUMBERS, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "../../../etc/passwd",
        "/dev/zero",
        "os.system",
        "antigravity",
        "Model",
        "UNetConfig",
        "\0",
    ),
    *([], [1], [-1], [2**62] * 3, [[1]], ["x"], [8] * 200, {}, {"type": "Model"}, {"a": {"a": {}}}),
    *(None, "__import__('os').system('touch CANARY')", {"type": "os.system", "content": "touch CANARY"}),
)
TEXTS = (
    b"",
    b"[" * 10**5,
    b'{"a":' * 10**5,
    b"null",
    b"[]",
    b"9" * 10**5,
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"{}{}",
    PICKLE,
)


def of_bytes(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """One to four changes: flips, cuts, pieces removed, doubled or of another file, numbers at the edges of types."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(raw) + 1)
        size = rng.choice([1, 1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, len(raw) + 1)])
        number = rng.choice(NUMBERS) % 2**64
        how = rng.randrange(8)
        if how == 0 and raw:
            at = min(at, len(raw) - 1)
            raw = raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
        elif how == 1:
            raw = raw[:at]
        elif how == 2:
            raw = raw[:at] + raw[at + size :]
        elif how == 3:
            raw = raw[: at + size] + raw[at : at + size] + raw[at + size :]
        elif how == 4:
            begin = rng.randrange(len(other) + 1)
            raw = raw[:at] + other[begin : begin + size] + raw[at:]
        elif how == 5:
            raw = raw[:at] + rng.randbytes(size)[: 2**16] + raw[at + size :]
        elif how == 6:
            wide = struct.pack(rng.choice(["<Q", ">Q"]), number)
            raw = raw[:at] + wide[: rng.choice([2, 4, 8])] + raw[at + 8 :]
        else:
            raw = raw[:at] + str(rng.choice(NUMBERS)).encode() + raw[at + rng.randint(0, 3) :]
    return raw


def of_json(rng: random.Random, raw: bytes) -> bytes:
    """A value, a key or an element changed at any depth; or another text."""
    if rng.random() < 0.05:
        return rng.choice(TEXTS)
    said = json.loads(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(said))
        if not places:
            break
        inside, key = rng.choice(places)
        how = rng.randrange(4)
        if how == 0:
            del inside[key]
        elif how == 1 and isinstance(inside, dict):
            inside[f"{key}s"] = inside.pop(key)
        elif how == 2 and isinstance(inside[key], int | float) and not isinstance(inside[key], bool):
            inside[key] = rng.choice(
                [inside[key] + 1, -inside[key], inside[key] * 2, inside[key] * 2**20, f"{inside[key]}"]
            )
        else:
            inside[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(said).encode()


def _places(said: Any) -> Any:
    """Every element of every object and list."""
    for key in said if isinstance(said, dict) else range(len(said)) if isinstance(said, list) else ():
        yield said, key
        yield from _places(said[key])


def of_npz(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Bytes of the archive; or a member changed, and the archive sound again."""
    if rng.random() < 0.5:
        return of_bytes(rng, raw, other)
    new = io.BytesIO()
    kind = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(new, "w", kind) as archive:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            contents = old.read(name)
            archive.writestr(name, _of_npy(rng, contents) if name == chosen else contents)
        if rng.random() < 0.1:
            archive.writestr(rng.choice(["../../CANARY", "/tmp/CANARY", "more.npy", "label.npy"]), PICKLE)
    return new.getvalue()


def _of_npy(rng: random.Random, raw: bytes) -> bytes:
    """The header of an array: its type, its shape, or any of its letters; or the data."""
    length = int.from_bytes(raw[8:10], "little")
    header, data = raw[10 : 10 + length].decode("latin1"), raw[10 + length :]
    how = rng.randrange(5)
    if how == 0:
        header = header.replace(
            "|u1", rng.choice(["|O", "<f8", "<U9", "|V9", "<c16", "|b1", "<i8", "|u1,|u1", "[('a','|O')]"])
        )
    elif how == 1:
        shape = tuple(rng.choice([*NUMBERS, 6, 5]) for _ in range(rng.randint(0, 5)))
        header = header.partition("'shape'")[0] + f"'shape': {shape}, }}\n"
    elif how == 2:
        at = rng.randrange(len(header))
        header = header[:at] + rng.choice("()[]{}',:-9e_x\0") + header[at + 1 :]
    elif how == 3:
        header = rng.choice(
            ["(" * 5000, "{'descr': __import__('os').system('touch CANARY')}", "", "[" * 9000]
        )
    else:
        data = rng.choice([PICKLE, data[: len(data) // 2], data + b"\0", bytes(len(data))])
    text = header.encode("latin1")
    return raw[:8] + len(text).to_bytes(2, "little")[:2] + text + data


def of_png(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Bytes of the file; or a chunk changed, removed, doubled or new, and its checksum right again."""
    if rng.random() < 0.4:
        return of_bytes(rng, raw, other)
    found = list(chunks(raw))
    at = rng.randrange(len(found))
    kind, contents = found[at]
    how = rng.randrange(5)
    if how == 0:
        found.insert(at, found[at])
    elif how == 1:
        del found[at]
    elif how == 2:
        name = rng.choice(
            [
                b"tEXt",
                b"zTXt",
                b"iTXt",
                b"iCCP",
                b"eXIf",
                b"PLTE",
                b"tRNS",
                b"acTL",
                b"fcTL",
                b"gAMA",
                b"pHYs",
            ]
        )
        bomb = b"a\0\0" + zlib.compress(bytes(10**7))
        found.insert(at, (name, rng.choice([b"", rng.randbytes(30), bomb, PICKLE])))
    elif kind == b"IHDR" and how == 3:
        sides = [rng.choice([*NUMBERS, 8, 5]) % 2**31 for _ in range(2)]
        found[at] = kind, struct.pack(">II", *sides) + rng.choice([contents[8:], rng.randbytes(5)])
    else:
        found[at] = kind, of_bytes(rng, contents, other)
    return raw[:8] + b"".join(chunk(*each) for each in found)


def chunks(raw: bytes) -> Any:
    """Kinds and contents of the chunks of a PNG; raises ValueError where a checksum before the end is wrong."""
    at = 8
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        kind, contents = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        if kind == b"IEND":
            yield kind, contents
            return
        if raw[at + 8 + size : at + 12 + size] != zlib.crc32(kind + contents).to_bytes(4, "big"):
            raise ValueError(f"the checksum of {kind!r} is wrong")
        yield kind, contents
        at += 12 + size


def chunk(kind: bytes, contents: bytes) -> bytes:
    """One of a PNG."""
    body = kind + contents
    return len(contents).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def of_safetensors(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Bytes of the file; or its header as JSON, with a right length or another."""
    if rng.random() < 0.4:
        return of_bytes(rng, raw, other)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = of_json(rng, raw[8:end]) if rng.random() < 0.8 else of_bytes(rng, raw[8:end], other)
    length = len(header) if rng.random() < 0.8 else rng.choice(NUMBERS) % 2**64
    return length.to_bytes(8, "little") + header + raw[end:]


def of_csv(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """Bytes of the file; or a cell, a line or the marks between cells."""
    if rng.random() < 0.4:
        return of_bytes(rng, raw, other)
    lines = [line.split(b",") for line in raw.splitlines()]
    line = rng.choice(lines)
    cells = (
        b"",
        b"nan",
        b"inf",
        b"1e400",
        b"0x10",
        b"1_0",
        b'"',
        b'"' + b"9" * 140_000,
        b"1,5",
        b"\0",
        b"=1+1",
        b"\xff",
        PICKLE,
    )
    line[rng.randrange(len(line))] = rng.choice(cells)
    mark = rng.choice([b",", b",", b";", b"\t", b" ", b", "])
    if rng.random() < 0.2:
        lines.append(rng.choice([[b"1"], [b"1"] * 200, [], line]))
    return rng.choice([b"\n", b"\r\n", b"\r", b"\n\n"]).join(map(mark.join, lines))
