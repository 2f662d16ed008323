"""Where compiled programs are kept, and that no other directory is believed."""

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from gen_jax.training import cache as store

PROGRAM = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.listdir") else None)
import jax, jax.numpy as jnp, optax
from gen_jax import training
print("directory", training.enable_compilation_cache())
print("jax", jax.config.values["jax_compilation_cache_dir"])
workdir = sys.argv[1]
loss = lambda params, key, batch: (jnp.mean((params["w"] - batch["x"]) ** 2), {})

class Ones:
    batch_size, arrays = 2, {"x": jnp.ones(2)}
    def select(self, step, num): return jnp.zeros((num, 2), jnp.int32)

optimizer = optax.sgd(0.5)
make = lambda: training.TrainState.create({"w": jnp.zeros(2)}, optimizer, jax.random.key(0))
state = training.fit(
    training.make_step(loss, optimizer), make, Ones(), num_steps=int(sys.argv[2]), workdir=workdir,
    options=training.Options(progress=False),
)
print("w", state.params["w"])
print("opened", sum("/programs/" in path for path in opened), sum(f"{workdir}/programs" in path for path in opened))
"""


def run(workdir, steps=2, code=PROGRAM, **environment):
    """Lines of the program's output by their first word, and its warnings."""
    unset = {
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "XLA_FLAGS",
        "GEN_JAX_CACHE",
    }
    environment = {name: x for name, x in os.environ.items() if name not in unset} | environment
    command = [sys.executable, "-c", code, str(workdir), str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines()), done.stderr


def test_programs_in_a_run_are_never_read(tmp_path):
    """A stranger's run brings a cache with the right names; its bytes are neither read nor changed."""
    workdir, poison = tmp_path / "run", tmp_path / "run" / "programs"
    out, _ = run(workdir, GEN_JAX_CACHE=str(tmp_path / "cache"))
    assert out["directory"] == out["jax"] == str(tmp_path / "cache" / "programs")
    assert sorted(os.listdir(workdir)) == [
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    ]
    names = os.listdir(tmp_path / "cache" / "programs")
    assert any("program" in name for name in names)
    poison.mkdir()
    for name in names:
        (poison / name).write_bytes(b"poison")
    out, _ = run(workdir, 4, GEN_JAX_CACHE=str(tmp_path / "other"))
    read, of_the_run = map(int, out["opened"].split())
    assert read > 0  # of the user's own, so opening is seen
    assert of_the_run == 0
    assert {path.read_bytes() for path in poison.iterdir()} == {b"poison"}


def programs(cache):
    return {path.name for path in (cache / "programs").iterdir() if path.name.endswith("-cache")}


@pytest.mark.slow
def test_a_run_that_moved_compiles_nothing_again(tmp_path):
    """A second process reads what the first compiled, in the same place or elsewhere."""
    cache, here, there = (tmp_path / name for name in ("cache", "here", "there"))
    run(here, GEN_JAX_CACHE=str(cache))
    shutil.copytree(here, there)
    out, _ = run(here, 4, GEN_JAX_CACHE=str(cache))
    before = programs(cache)
    assert run(there, 4, GEN_JAX_CACHE=str(cache))[0]["w"] == out["w"]
    assert programs(cache) <= before


SMALL = """
from gen_jax import training
import jax
training.enable_compilation_cache()
print("answer", jax.jit(lambda x: 3 * x)(2.0))
"""


@pytest.mark.parametrize("left", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_program_that_was_cut_short_is_repaired(tmp_path, left):
    cache = tmp_path / "cache"
    for _ in range(2):
        out, warned = run("", code=SMALL, GEN_JAX_CACHE=str(cache))
        assert out == {"answer": "6.0"}
        assert "persistent compilation cache" not in warned
        entries = [path for path in (cache / "programs").iterdir() if path.name.endswith("-cache")]
        assert entries
        for path in entries:
            zlib.decompress(path.read_bytes())
            os.truncate(path, int(left * path.stat().st_size))


def test_only_what_was_written_since_is_read(tmp_path, monkeypatch):
    (tmp_path / "old-cache").write_bytes(b"damaged long ago")
    os.utime(tmp_path / "old-cache", (1e9, 1e9))
    store._remove_damaged(tmp_path)
    assert not (tmp_path / "old-cache").exists(), "nothing was looked at before"
    (tmp_path / "old-cache").write_bytes(b"damaged long ago")
    os.utime(tmp_path / "old-cache", (1e9, 1e9))
    (tmp_path / "new-cache").write_bytes(b"damaged now")
    (tmp_path / "whole-cache").write_bytes(zlib.compress(b"program"))
    (tmp_path / "other-cache").write_bytes(store._ZSTD + b"of a library that is not installed")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    store._remove_damaged(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"old-cache", "whole-cache", "other-cache", ".checked"}


ONLY = """
from gen_jax import training
import jax
print("directory", training.enable_compilation_cache())
print("jax", jax.config.values["jax_compilation_cache_dir"])
"""


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"GEN_JAX_CACHE": "{}/mine"}, "mine/programs"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/gen_jax/programs"),
        ({"HOME": "{}/home"}, "home/.cache/gen_jax/programs"),
    ],
)
def test_the_cache_is_the_users_own_and_private(tmp_path, environment, place):
    environment = {"XDG_CACHE_HOME": ""} | {name: x.format(tmp_path) for name, x in environment.items()}
    out, warned = run("", code=ONLY, **environment)
    directory = tmp_path / place
    assert out["directory"] == out["jax"] == str(directory)
    assert [path.stat().st_mode & 0o777 for path in (directory, directory.parent)] == [0o700, 0o700]
    assert "not kept" not in warned


def test_a_cache_that_jax_was_given_stays(tmp_path):
    out, _ = run(
        "", code=ONLY, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "given"), GEN_JAX_CACHE=str(tmp_path / "no")
    )
    assert out == {"directory": "None", "jax": str(tmp_path / "given")}
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("path", "mode", "message"),
    [
        ("cache/programs", 0o777, "other users can write in .*cache/programs.*chmod 700"),
        ("cache/programs", 0o770, "other users can write in .*cache/programs"),
        ("cache", 0o777, "other users can write in .*cache"),
    ],
)
def test_a_cache_where_others_write_is_refused(tmp_path, path, mode, message, monkeypatch):
    (tmp_path / "cache" / "programs").mkdir(parents=True, mode=0o700)
    (tmp_path / "cache").chmod(0o700)
    (tmp_path / path).chmod(mode)
    assert_refused(monkeypatch, tmp_path / "cache", message)


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cache" / "programs").mkdir(parents=True, mode=0o700)
    (tmp_path / "cache").chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert_refused(monkeypatch, tmp_path / "cache", "cache belongs to another user; set GEN_JAX_CACHE")


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert_refused(monkeypatch, tmp_path / "file" / "cache", "not kept on disk")


def test_the_default_directory_is_closed_to_the_group_that_data_sets_opened_it_to(tmp_path):
    """A umask of 002 makes directories that the group may write in."""
    root = tmp_path / "xdg" / "gen_jax"
    root.mkdir(parents=True)
    root.chmod(0o775)
    out, _ = run("", code=ONLY, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert out["directory"] == str(root / "programs")
    assert root.stat().st_mode & 0o777 == 0o755


def assert_refused(monkeypatch, cache: Path, message):
    import jax

    from gen_jax import training

    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("GEN_JAX_CACHE", str(cache))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with pytest.warns(UserWarning, match=message):
            assert training.enable_compilation_cache() is None
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
