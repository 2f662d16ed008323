"""Experiments on several hosts: all processes join, each draws a part, and one of them writes and speaks."""

import ast
import importlib
import json
import sys

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gen_jax import generate, launch, pretrained, training
from tests import described, programs

EXPERIMENTS = sorted((programs.ROOT / "experiments").glob("*.py"))
PROGRAMS = [path.stem for path in EXPERIMENTS if "launch.run(__file__)" in path.read_text()]
NEEDED = {"finetune_stable_diffusion": ["--weights", "nowhere", "--dataset", "nowhere"]}
WRITERS = {"save", "savez", "write_text", "write_bytes", "open", "print", "dump", "write_json"}
"""Functions that write or speak, in every process that calls them; `launch.save` and `plots` do in one."""


def guarded(node):
    """What runs in process 0 alone: the body of `if jax.process_index() == 0`."""
    ifs = (
        n for n in ast.walk(node) if isinstance(n, ast.If) and "process_index() == 0" in ast.unparse(n.test)
    )
    return {inner for each in ifs for part in each.body for inner in ast.walk(part)}


def writes(tree):
    """Calls that write wherever they are made."""
    once = guarded(tree)
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and n not in once)
    named = ((n, ast.unparse(n.func)) for n in calls)
    return [
        f"{n.lineno}: {name}"
        for n, name in named
        if name.rpartition(".")[2] in WRITERS
        and name != "save"
        and not name.startswith(("launch.", "plots."))
    ]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_write_and_speak_once(path):
    own = {"finetune_stable_diffusion": ["pretrained.save"]}  # called by process 0
    found = [w for w in writes(ast.parse(path.read_text())) if w.split(": ")[1] not in own.get(path.stem, [])]
    assert found == []


def test_what_every_process_writes_is_found():
    code = """
np.save(path, x)
if jax.process_index() == 0:
    print("once")
launch.save(path, x)
path.write_text("x")
"""
    assert writes(ast.parse(code)) == ["2: np.save", "6: path.write_text"]


class Joined(Exception):
    pass


@pytest.mark.parametrize("name", PROGRAMS)
def test_experiments_join_before_anything_else(name, monkeypatch, tmp_path):
    def join():
        raise Joined

    monkeypatch.setattr(training, "initialize_distributed", join)
    module = importlib.import_module(name)
    config = module.parse([*NEEDED.get(name, []), "--workdir", str(tmp_path / "run")])
    with pytest.raises(Joined):
        module.main(config)
    assert not list(tmp_path.iterdir())


def test_save_is_atomic_and_of_known_kinds(tmp_path):
    launch.save(tmp_path / "a.npy", [[1, 2]])
    launch.save(tmp_path / "a.json", {"a": 1.5})
    assert_array_equal(np.load(tmp_path / "a.npy"), [[1, 2]])
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1.5}
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.json"}
    with pytest.raises(ValueError, match=r"must end in \.npy or \.json, got .*a\.txt"):
        launch.save(tmp_path / "a.txt", {})


def test_samples_of_a_run_are_drawn_by_both_processes(tmp_path):
    workdir = described.run(tmp_path / "run", described.model(10))
    script = programs.ROOT / "experiments" / "step10_conditional.py"
    flags = ["--sample-only", "--num", "300", "--nfe", "2", "--workdir", workdir]
    with (tmp_path / "log").open("w") as log:
        both = programs.several([sys.executable, script, *flags], stdout=log, stderr=log)
    codes, said = [process.wait(300) for process in both], (tmp_path / "log").read_text()
    assert codes == [0, 0], said
    assert said.count("300 samples at step 0") == 1
    expected, labels = generate.sample(*pretrained.load(workdir), jax.random.key(0), 300, nfe=2)
    images = np.load(workdir / "samples.npy")
    assert images.shape == (300, *described.SHAPE)
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert_array_equal(np.load(workdir / "labels.npy"), labels)


SHORT = "--steps 4 --batch-size 16 --steps-per-call 2 --checkpoint-every 2 --log-every 2 --num 3"
BOUNDS = "--test-images 16 --test-samples 3"
WHOLE = {
    **{name: "" for name in PROGRAMS if name.startswith(("step01", "step02", "step03", "step04"))},
    "step05_em": "--max-components 2 --num-restarts 2",
    "step06_neural_network": "--steps 100",
    "step07_vae": f"{SHORT} {BOUNDS}",
    "step08_hvae": f"{SHORT} {BOUNDS} --hidden 8 --latents 3 2",
    "step09_diffusion": f"{SHORT} --nfe 3",
    "step10_conditional": f"{SHORT} --nfe 3",
    "step10_latent_diffusion": f"{SHORT} --nfe 3 --autoencoder-steps 4 --autoencoder-batch-size 16 --judged 24"
    " --judge-steps 4 --judge-dir {place}/judge",
    "step10_classifier_guidance": f"{SHORT} --nfe 4 --channels 4 8 --checkpoint {{place}}/unconditional",
    "step10_classifier_free_guidance": "--num 20 --nfe 2 --judge-steps 4 --judge-dir {place}/judge"
    " --checkpoint {place}/conditional",
    "step10_inpainting": "--num 2 --nfe 4 --resample 2 --checkpoint {place}/unconditional",
}
"""What each experiment is given to end soon."""


@pytest.mark.slow  # in CI: the drawing of one, above
@pytest.mark.parametrize("name", WHOLE)
def test_an_experiment_ends_in_two_processes(name, tmp_path):
    described.run(tmp_path / "unconditional", described.model())
    described.run(tmp_path / "conditional", described.model(10))
    flags = WHOLE[name].format(place=tmp_path).split()
    command = [sys.executable, "-m", "tests.hosts_toy", name, *flags, "--workdir", tmp_path / "run"]
    with (tmp_path / "log").open("w") as log:
        both = programs.several(command, stdout=log, stderr=log)
    try:
        codes = [process.wait(600) for process in both]
    finally:
        for process in both:
            process.kill()
    said = (tmp_path / "log").read_text()
    assert codes == [0, 0], said
    assert said.count(f"figures: {tmp_path / 'run'}") == 1
    assert (tmp_path / "run" / "summary.json").exists()
    temporary = [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    assert temporary == []
