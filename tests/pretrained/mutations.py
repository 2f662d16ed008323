"""Two tiny Stable Diffusions in folders, and what can be wrong with a folder: files, configurations, tensors, links."""

import json
import os
import random
import shutil
from dataclasses import replace

import jax
import numpy as np

from gen_jax import pretrained, samplers, text
from gen_jax.codec import Latents
from gen_jax.conditioning import Reader, Text
from gen_jax.diffusion.process import DDPM
from gen_jax.model import Model, Sampling
from gen_jax.networks import autoencoder_kl, unet
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.pretrained import components, parts
from tests.safetensors_files import TYPES, framed
from tests.safetensors_files import parts as header_and_data

NOTHING, HUGE = float("nan"), 10**18
VALUES = (
    *(None, True, False, 0, 1, 2, -1, 3.5, -0.0, 1e308, NOTHING, float("inf"), 2**31, 2**62, HUGE, 10**400),
    *(
        "",
        "x",
        "1",
        "../../etc/passwd",
        "AutoencoderKL",
        [],
        [1],
        [0],
        [-1],
        [HUGE] * 2,
        [2**24] * 3,
        [8] * 60,
    ),
    *([8] * 1000, [[8]], ["x"], [None, None], {}, {"a": 1}, {"content": 3}, [NOTHING]),
)
TEXTS = (
    *(
        "",
        " ",
        "null",
        "3",
        "[]",
        '"x"',
        "{",
        "{}{}",
        '{"a": }',
        "{'a': 1}",
        '{"a": 1',
        "\ufeff{}",
        "[" * 10**5,
    ),
    *('{"a":' * 10**5, '{"x": ' + "9" * 10**4 + "}", '{"\\ud800": 1}', "\0" * 100),
)


def model(xl=False, width=8, refiner=False, **network):
    """As small as the norms allow: with one encoder; with two and sizes; or with the second alone and a score."""
    tokenizer = text.train(["a large red seven above a small blue three"], num_merges=20, length=16)
    encoder = CLIPTextConfig(tokenizer.vocab_size, 16, 2, 2, 32, 16)
    first, second = Reader(tokenizer, encoder), replace(encoder, act="gelu", projection=12)
    last_but_one = [Reader(tokenizer, each, -2) for each in (encoder, second)]
    readers = (last_but_one[1],) if refiner else tuple(last_but_one) if xl else (first,)
    size, square = (16.0, 16.0, 0.0, 0.0), (16.0, 16.0)
    sizes = {"sizes": (*size, 6.0), "null_sizes": (*size, 2.5)} if refiner else {"sizes": (*size, *square)}
    told = sizes | {"size_features": 4, "zero_null": not refiner} if xl or refiner else {}
    vector = {"cond_features": 12 + 4 * len(sizes["sizes"]), "cond_layers": 2} if told else {}
    net = replace(
        unet.sd15,
        channels=(width, 2 * width),
        depth=(1, 0),
        heads=2,
        groups=4,
        embedding=4 * width,
        sinusoid_features=width,
        context_features=16 * len(readers),
        **vector,
        **network,
    )
    coding = replace(autoencoder_kl.sd, channels=(8, 8), groups=4)
    schedule = samplers.Schedule("leading", 1, False)
    return Model(
        net,
        DDPM(1000, "scaled_linear", 0.00085, 0.012),
        "eps",
        Text(readers, **told),
        Latents((8, 8, 4), 0.13025 if told else 0.18215, autoencoder=coding),
        Sampling("euler", 4, 5.0, schedule=schedule),
    )


def zeros(of):
    """Weights of a model."""
    weights = {}
    for place in parts.places(of).values():
        tree = weights
        for name in place.path[:-1]:
            tree = tree.setdefault(name, {})
        shapes = components.parameters(place.config, place.channels)
        tree[place.path[-1]] = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return weights


def write(path, of):
    """A folder of zeros."""
    pretrained.save(path, of, zeros(of))


def files(folder, *ends):
    return sorted(f for f in folder.rglob("*") if f.is_file() and (not ends or f.name.endswith(ends)))


def configs(folder):
    """All JSON but vocabularies."""
    return [f for f in files(folder, ".json") if f.name != "vocab.json"]


def put(file, name, value):
    """Another value of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))


def changed(rng, file):
    """One value of a JSON file, or an element of one."""
    said = json.loads(file.read_text())
    name, value = rng.choice(sorted(said)), rng.choice(VALUES)
    inside = said[name]
    if isinstance(inside, list) and inside and rng.random() < 0.5:
        inside[rng.randrange(len(inside))] = value
    else:
        said[name] = value
    file.write_text(json.dumps(said))
    return f"{file.name}: {name} = {str(value)[:40]}"


# --- each changes a folder, and says what it did ---


def missing(rng, folder, other):
    file = rng.choice(files(folder))
    file.unlink()
    return file.name


def missing_part(rng, folder, other):
    part = rng.choice(sorted(f for f in folder.iterdir() if f.is_dir()))
    shutil.rmtree(part)
    if rng.random() < 0.5:
        part.write_text("{}")
    return part.name


def cut(rng, folder, other):
    file = rng.choice(files(folder))
    raw = file.read_bytes()
    file.write_bytes(raw[: rng.choice([0, 1, 8, len(raw) // 2, len(raw) - 1])])
    return file.name


def swapped(rng, folder, other):
    a, b = rng.sample(files(folder), 2)
    raw = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(raw)
    return f"{a.parent.name}/{a.name} and {b.parent.name}/{b.name}"


def flipped(rng, folder, other):
    file = rng.choice(files(folder))
    raw = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    file.write_bytes(raw)
    return file.name


def value(rng, folder, other):
    return changed(rng, rng.choice(configs(folder)))


def size(rng, folder, other):
    """A value of what says how large the networks are."""
    return changed(rng, rng.choice(files(folder, "config.json")))


def key(rng, folder, other):
    """One that is not there, or has another name."""
    file = rng.choice(configs(folder))
    said = json.loads(file.read_text())
    name = rng.choice(sorted(said))
    taken = said.pop(name)
    if rng.random() < 0.5:
        said[name + "s"] = taken
    file.write_text(json.dumps(said))
    return f"{file.name}: {name}"


def json_text(rng, folder, other):
    file, new = rng.choice(files(folder, ".json")), rng.choice(TEXTS)
    old = file.read_text()
    at = rng.randrange(len(old))
    file.write_bytes(
        rng.choice(
            [
                new.encode(errors="surrogatepass"),
                (old[:at] + new[:50] + old[at:]).encode(errors="surrogatepass"),
                old.encode("utf-16"),
            ]
        )
    )
    return f"{file.name}: {new[:20]!r}"


def vocabulary(rng, folder, other):
    """Of ids."""
    file = rng.choice(files(folder, "vocab.json"))
    said = json.loads(file.read_text())
    tokens = sorted(said)
    new = rng.choice(
        [
            {**said, rng.choice(tokens): rng.choice(VALUES)},
            {k: v for k, v in said.items() if k != tokens[3]},
            {k: v + 1 for k, v in said.items()},
            list(said),
            {**said, "more": len(said)},
            {k: str(v) for k, v in said.items()},
        ]
    )
    file.write_text(json.dumps(new))
    return file.name


def merges(rng, folder, other):
    file = rng.choice(files(folder, "merges.txt"))
    lines = file.read_text().split("\n")
    i, j = rng.sample(range(1, len(lines) - 1), 2)
    lines[i], lines[j] = rng.choice(
        [(lines[j], lines[i]), ("", lines[j]), (lines[j], lines[j]), ("x", lines[j]), ("a b c", "\0")]
    )
    file.write_bytes("\n".join(lines).encode() + rng.choice([b"", b"\xff\xfe", b"a b\n" * 3]))
    return f"lines {i} and {j}"


def tensor(rng, folder, other):
    """The header of a tensors' file, with the bytes in their places or not."""
    file = rng.choice(files(folder, ".safetensors"))
    header, data = header_and_data(file.read_bytes())
    change = rng.choice(["name", "number", "shape", "type", "gone", "more", "zero", "case"])
    name = rng.choice(sorted(n for n in header if n != "__metadata__" and (change != "number" or "0" in n)))
    entry = header[name]
    if change == "shape":
        entry["shape"] = rng.choice(
            [entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], [], [-1]]
        )
    elif change == "type":
        entry["dtype"] = rng.choice(sorted(TYPES))
    elif change == "zero":
        entry["shape"] = [0, *entry["shape"]]
    elif change == "more":
        header["more.weight"] = {**entry, "shape": [0], "data_offsets": [len(data)] * 2}
    else:
        taken = header.pop(name)
        at = {"number": name.replace("0", str(HUGE)), "case": name.upper(), "name": f"x.{name}", "gone": None}
        if change != "gone":
            header[at[change]] = taken
    file.write_bytes(framed(header, data))
    return f"{change} of {file.parent.name}: {name}"


def kind(rng, folder, other):
    """All tensors of a file in another type, sound."""
    file = rng.choice(files(folder, ".safetensors"))
    header, _ = header_and_data(file.read_bytes())
    dtype, at, new = rng.choice(sorted(TYPES)), 0, {}
    for name, entry in header.items():
        if name != "__metadata__":
            end = at + int(np.prod(entry["shape"])) * np.dtype(TYPES[dtype]).itemsize
            new[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [at, end]}
            at = end
    file.write_bytes(framed(new, bytes(at)))
    return f"{file.parent.name}: {dtype}"


def link(rng, folder, other):
    """A link in place of a file or a folder, or a pipe, which says nothing for ever, or a device, which never ends."""
    place = rng.choice(sorted(folder.rglob("*")))
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    to = rng.choice(["nowhere", place.name, ".", "/dev/zero", "/dev/null", "pipe", "folder"])
    if to == "pipe":
        os.mkfifo(place)
    elif to == "folder":
        place.mkdir()
    else:
        place.symlink_to(to)
    return f"{place.relative_to(folder)} -> {to}"


def index(rng, folder, other):
    """Of shards."""
    old = rng.choice(files(folder, ".safetensors"))
    raw = old.read_bytes()
    names = sorted(set(header_and_data(raw)[0]) - {"__metadata__"})
    shard = old.with_name(f"{old.stem}-00001-of-00001.safetensors")
    old.rename(shard)
    found = {"metadata": {"total_size": HUGE}, "weight_map": dict.fromkeys(names, shard.name)}
    place = rng.choice(
        ["absent", "outside", "absolute", "number", "empty", "one", "none", "list", "sound", "device"]
    )
    to = {"absent": "x.safetensors", "outside": f"../unet/{shard.name}", "absolute": str(shard), "number": 3}
    if place in to:
        found["weight_map"][names[0]] = to[place]
    elif place == "one":
        found["weight_map"] = {names[0]: shard.name}
    elif place == "device":
        shard.unlink()
        shard.symlink_to("/dev/zero")
    elif place != "sound":
        found["weight_map"] = {"empty": {}, "none": None, "list": names}[place]
    old.with_name(f"{old.name}.index.json").write_text(json.dumps(found))
    return f"{place} of {old.parent.name}"


def component(rng, folder, other):
    """That of another model."""
    part = rng.choice(sorted(f.name for f in other.iterdir() if f.is_dir()))
    shutil.rmtree(folder / part, ignore_errors=True)
    shutil.copytree(other / part, folder / part)
    return part


def large(rng, folder, other):
    """A file of 20 GB, most of which the disk does not have."""
    file = rng.choice(files(folder))
    os.truncate(file, 20 * 10**9)
    return file.name


MUTATIONS = (
    *(
        missing,
        missing_part,
        cut,
        swapped,
        flipped,
        value,
        size,
        key,
        json_text,
        vocabulary,
        merges,
        tensor,
        kind,
    ),
    *(link, index, component, large, value, size, size),
)


def mutants(count):
    """`count` times a mutation with its own generator, each kind in turn."""
    for i in range(count):
        yield MUTATIONS[i % len(MUTATIONS)], random.Random(i)
