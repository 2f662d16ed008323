"""Loads all that is in a directory, where what runs code is forbidden: `load_guarded.py DIR` says what came of each."""

import importlib
import json
import marshal
import os
import pickle
import subprocess
import sys
from pathlib import Path

import array_record  # noqa: F401
import grain  # noqa: F401
import jax
import numpy as np
import orbax.checkpoint
import PIL.Image
import tensorflow_datasets

from gen_jax import command, data, pretrained, text, training
from gen_jax.pretrained import lora, safetensors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from soak_guard import Guard

place = Path(sys.argv[1])
os.environ["GEN_JAX_CACHE"] = str(place / "cache")
PIL.Image.init()
print(orbax.checkpoint.CheckpointManager, tensorflow_datasets.core.naming)  # imported as a whole, before
LOADS = {
    "step07": lambda path: training.load(path),
    "step08": lambda path: training.load(path),
    "step09": lambda path: pretrained.load(path),
    "step10": lambda path: pretrained.load(path),
    "folder": lambda path: pretrained.load(path),
    "one.safetensors": lambda path: pretrained.load(path, config=place / "folder"),
    "lora.safetensors": lambda path: lora.load(path, pretrained.load(place / "folder")[0]),
    "tensors.safetensors": lambda path: dict(safetensors.read(path)),
    "tokenizer": lambda path: text.Tokenizer.load(path),
    "images.npz": lambda path: data.load(path),
    "images.npy": lambda path: data.load(path),
    "pictures": lambda path: data.load(path),
    "table.csv": lambda path: data.table(path),
    "picture.png": lambda path: command._picture(
        path, command.Sample(place), pretrained.load(place / "step09")[0]
    ),
    "sets": lambda path: data.load("strangers", data_dir=path),
}
CODE = compile("1", "<string>", "eval")
FORBIDDEN = {
    "eval": lambda: eval("1"),
    "exec": lambda: exec("1"),
    "marshal": lambda: marshal.loads(marshal.dumps(CODE)),
    "pickle": lambda: pickle.loads(pickle.dumps(os.getcwd)),
    "numpy": lambda: np.load(place / "pickled.npy", allow_pickle=True),
    "import": lambda: importlib.import_module("a_module_of_a_stranger"),
    "system": lambda: os.system("true"),
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "programs": lambda: (place / "step09" / "programs" / "jit_f-cache").read_bytes(),
}


def outcome(call):
    """`loaded`, or what the error is and says."""
    try:
        found = call()
        return f"loaded {type(found).__name__}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


np.save(place / "pickled.npy", np.array([{}, os.getcwd], object), allow_pickle=True)
sys.path.insert(0, str(place / "modules"))
guard, found = Guard(), {}
guard.on = True
for name, call in FORBIDDEN.items():
    found[f"forbidden {name}"] = outcome(call)
    assert guard.seen, name
    guard.seen.clear()
jax.config.update("jax_compilation_cache_dir", None)
guard._programs = "/step09/programs/"
training.enable_compilation_cache()
for path in sorted(place.rglob("*.hostile")):
    kind = path.name.partition(".")[0]
    loads = {"picture": "picture.png", "images": "images.npz", "table": "table.csv", "model": "folder"}
    target = path.with_suffix("")
    path.rename(target)
    found[f"hostile {target.relative_to(place)}"] = outcome(lambda k=kind, t=target: LOADS[loads[k]](t))
for name, load in LOADS.items():
    found[name] = outcome(lambda load=load, name=name: load(place / name))
guard.on = False
print(json.dumps({"found": found, "seen": guard.seen}))
