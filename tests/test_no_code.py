"""A run, a model or data of a stranger run no code: everything is loaded in a process in which code can not be run."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from gen_jax import launch, pretrained, training
from gen_jax.model import to_json
from gen_jax.pretrained import lora_writing, safetensors
from gen_jax.training import lora as low_rank
from tests import described, small_folder, strangers

HERE = Path(__file__).resolve().parent


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def run(workdir, experiment):
    """The checkpoint of steps 7 and 8, whose experiments load parameters and options."""
    params = {"params": {"dense": {"kernel": jnp.ones((3, 2))}}}
    state = training.TrainState.create(params, optax.sgd(0.1), jax.random.key(0), ema=False)
    config = {"format": 2, "experiment": experiment, "options": launch.flat(launch.Training())}
    with training.Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state, {"config": config})
    (workdir / "config.json").write_text(json.dumps(config))


def make(place):
    """One of each kind, and some that are hostile."""
    run(place / "step07", "step07_vae")
    run(place / "step08", "step08_hvae")
    for name, classes in (("step09", None), ("step10", 3)):
        model = described.model(classes)
        described.run(place / name, model)
        (place / name / "config.json").write_text(to_json(model))
        (place / name / "programs").mkdir()
        (place / name / "programs" / "jit_f-cache").write_bytes(b"machine code of a stranger")
    model = small_folder.model()
    weights = small_folder.weights(model)
    pretrained.save(place / "folder", model, weights)
    pretrained.save(place / "one.safetensors", model, weights, layout="single")
    low = low_rank.init(jax.random.key(0), weights["network"], 2)
    lora_writing.write(place / "lora.safetensors", low, weights["network"], alpha=2.0, xl=False)
    safetensors.write(place / "tensors.safetensors", {"a": np.ones(3)})
    shutil.copytree(HERE / "text" / "tiny_tokenizer", place / "tokenizer")
    pixels = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    np.savez(place / "images.npz", image=pixels, label=np.arange(4), text=np.array(list("abcd")))
    np.save(place / "images.npy", pixels)
    (place / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(pixels[i]).save(place / "pictures" / f"{i}.png")
    captions = "".join(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}) + "\n" for i in range(4))
    (place / "pictures" / "metadata.jsonl").write_text(captions)
    (place / "table.csv").write_text("a,b\n1,2\n3,4\n")
    Image.fromarray(pixels[0]).save(place / "picture.png")
    strangers.prepare(place / "sets")
    (place / "modules").mkdir()
    (place / "modules" / "a_module_of_a_stranger.py").write_text(f"open({str(place / 'ran')!r}, 'w')")
    bomb = pickle.dumps(Bomb(place / "ran"))
    hostile = place / "hostile"
    hostile.mkdir()
    for name in (
        "picture.png",
        "table.csv",
        "images.npz",
        "images.npy",
        "model.safetensors",
        "model.ckpt",
        "model.bin",
    ):
        (hostile / f"{name}.hostile").write_bytes(bomb)
    objects = np.empty(4, object)
    objects[:] = Bomb(place / "ran")
    np.savez(place / "objects.npz", image=objects)
    (place / "objects.npz").rename(hostile / "images.objects.npz.hostile")
    Image.fromarray(np.stack([pixels[0]] * 3, -1)).save(place / "a.eps")
    (place / "a.eps").rename(hostile / "picture.eps.png.hostile")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of each."""
    place = tmp_path_factory.mktemp("strangers")
    make(place)
    command = [sys.executable, HERE / "load_guarded.py", place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seen"] == []
    assert not (place / "ran").exists()
    return said["found"]


def named(found, word):
    return {name: said for name, said in found.items() if name.startswith(word)}


def test_what_runs_code_is_forbidden_there(found):
    said = named(found, "forbidden")
    assert len(said) == 9
    assert {name: x for name, x in said.items() if not x.startswith("CodeRun")} == {}


def test_everything_is_loaded_without_it(found):
    said = {name: x for name, x in found.items() if not name.startswith(("forbidden", "hostile"))}
    assert len(said) == 15
    assert {name: x for name, x in said.items() if not x.startswith("loaded ")} == {}


def test_what_is_hostile_is_refused_in_a_sentence(found):
    said = named(found, "hostile")
    assert len(said) == 9
    assert {name: x for name, x in said.items() if not x.startswith("ValueError: ")} == {}
