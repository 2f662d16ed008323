"""Samples in files: the same bits on one device and on many, on one host and on two, after a kill and after damage."""

import dataclasses
import functools
import json
import shutil
import sys
import time

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gen_jax import cli, generate, metrics
from gen_jax.generate import writing
from tests import described, programs, shards_toy

KEY = jax.random.key(0)
HOW = {"shard": 7, "chunk": 3, "guidance": 2.0}


@pytest.fixture(scope="module")
def conditional():
    return shards_toy.described()


@pytest.fixture(scope="module")
def written(conditional, tmp_path_factory):
    """17 samples: two whole shards, and a part of one."""
    return generate.write(*conditional, KEY, 17, tmp_path_factory.mktemp("samples"), **HOW)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copied")


def contents(directory):
    """The bytes of all files but the lock."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(("num", "size"), [(1, 1), (5, 5), (5, 2), (4, 2), (2, 5)])
def test_in_chunks_asks_for_chunks_of_one_size_and_gives_each_sample_once(num, size):
    asked = []
    found = generate.in_chunks(lambda index: asked.append(len(index)) or 10 * index, num, size)
    assert_array_equal(found, 10 * np.arange(num))
    assert set(asked) == {size}


def test_files_have_the_samples_and_their_labels(conditional, written):
    names = {f"{kind}-0000{i}-of-00003.npy" for kind in ("samples", "labels") for i in range(3)}
    assert {path.name for path in written.glob("*.npy")} == names
    assert [len(images) for images in generate.read(written)] == [7, 7, 3]
    images, labels = (np.concatenate([*generate.read(written, name)]) for name in ("samples", "labels"))
    at_once, its = generate.sample(*conditional, KEY, 17, guidance=2.0)
    assert images.dtype == np.uint8
    assert np.abs(images.astype(int) - at_once).max() <= 1  # drawn in chunks of another size
    assert_array_equal(labels, its)
    said = json.loads((written / "index.json").read_text())
    assert said.items() >= {"num": 17, "nfe": 4, "guidance": 2.0, "key": "threefry2x32 [0, 0]"}.items()


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_bits_do_not_depend_on_the_devices(conditional, written, tmp_path, monkeypatch, devices):
    assert len(jax.devices()) == 8
    monkeypatch.setattr(writing, "local_mesh", functools.partial(generate.local_mesh, devices))
    assert contents(generate.write(*conditional, KEY, 17, tmp_path, **HOW)) == contents(written)


def test_moments_of_the_files_are_those_of_all_samples(written):
    images = np.concatenate([*generate.read(written)])
    rows = images.reshape(17, -1)[:, :10] / 255
    found = generate.moments(written, lambda x: x.reshape(len(x), -1)[:, :10] / 255)
    expected, other = metrics.moments(rows), metrics.moments(rows[::2] ** 2)
    assert_allclose(found.mean, expected.mean, rtol=1e-12)
    distance = metrics.frechet_distance(expected, other)
    assert_allclose(metrics.frechet_distance(found, other), distance, rtol=1e-10)
    assert generate.moments(written).cov.shape == (36, 36)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key": jax.random.key(1)}, "key: 'threefry2x32 .0, 0.' there, 'threefry2x32 .0, 1.' now"),
        ({"num": 18}, "num: 17 there, 18 now"),
        ({"shard": 8}, "shard: 7 there, 8 now"),
        ({"chunk": 4}, "chunk: 3 there, 4 now"),
        ({"nfe": 5}, "nfe: 4 there, 5 now"),
        ({"solver": "dpmpp"}, "plan: "),
        ({"guidance": 3.0}, "guidance: 2.0 there, 3.0 now"),
        ({"rescale": 0.5}, "rescale: 0.0 there, 0.5 now"),
        ({"label": 2}, "conditions: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "refused",
)
def test_other_settings_are_refused_by_name(conditional, written, changed, names):
    before = contents(written)
    options = {"key": KEY, "num": 17, "directory": written, **HOW, **changed}
    with pytest.raises(ValueError, match=f"(?s)has other samples.*{names}") as error:
        generate.write(*conditional, **options)
    assert "Ask for the same ones, or give another directory" in str(error.value)
    assert contents(written) == before


def test_other_weights_and_another_model_are_refused(conditional, written):
    m, weights = conditional
    others = jax.tree.map(lambda p: 2 * p, weights)
    with pytest.raises(ValueError, match=r"has other samples\.\n  weights: '\w{8}' there, '\w{8}' now\nAsk"):
        generate.write(m, others, KEY, 17, written, **HOW)
    with pytest.raises(ValueError, match="  model: "):
        generate.write(dataclasses.replace(m, predicts="eps"), weights, KEY, 17, written, **HOW)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["samples-00001-of-00003.npy", "shard-00001-of-00003.json"])
def test_a_damaged_shard_is_said_and_drawn_again_alone(conditional, written, copied, damage, name):
    DAMAGES[damage](copied / name)
    with pytest.raises(ValueError, match=r"00001-of-00003"):
        list(generate.read(copied))
    times = {path.name: path.stat().st_mtime_ns for path in copied.glob("*0000[02]-of*")}
    generate.write(*conditional, KEY, 17, copied, **HOW)
    assert contents(copied) == contents(written)
    assert times == {path.name: path.stat().st_mtime_ns for path in copied.glob("*0000[02]-of*")}


def test_reading_says_what_is_not_there(written, tmp_path):
    with pytest.raises(
        ValueError, match=r"index\.json: expected a file, there is none: a directory of samples"
    ):
        generate.read(tmp_path)
    with pytest.raises(
        ValueError, match=r"name must be one of samples, labels, got 'label'\. Did you mean labels"
    ):
        list(generate.read(written, "label"))
    with pytest.raises(ValueError, match="there are at most 99,999 files, got 100000 samples, 1 in each"):
        generate.write_shards(tmp_path, lambda index: {"samples": index}, 100_000, shard=1)


def test_a_second_run_in_the_directory_ends(tmp_path):
    from gen_jax.training import WorkdirInUse

    def draw(index):
        with pytest.raises(WorkdirInUse):
            generate.write_shards(tmp_path, draw, 3)
        return {"samples": index}

    generate.write_shards(tmp_path, draw, 3)
    assert_array_equal(next(generate.read(tmp_path)), np.arange(3))


def test_command_fills_a_directory_and_goes_on(tmp_path, capsys):
    run = described.run(tmp_path / "run", described.model(10))
    flags = [*("sample", str(run), "--num", "5", "--shard", "2", "--chunk", "2", "--nfe", "2")]
    flags += ["--out", str(tmp_path / "many")]
    cli.main(flags)
    assert capsys.readouterr().out == f"5 images in 3 files of {tmp_path / 'many'}\n"
    before = contents(tmp_path / "many")
    (tmp_path / "many" / "samples-00002-of-00003.npy").unlink()
    cli.main(flags)
    assert contents(tmp_path / "many") == before
    with pytest.raises(SystemExit, match=r"guidance: 2\.0 there, 3\.0 now"):
        cli.main([*flags, "--guidance", "3"])


def test_two_processes_that_are_killed_and_begun_again_write_the_bits_of_one(tmp_path):
    """The one has eight devices, the two have one each; a file that was complete is damaged meanwhile."""
    two, out = tmp_path / "two", tmp_path / "out"
    out.mkdir()
    begin = lambda pause: programs.several([sys.executable, "-m", "tests.shards_toy", two, out, pause])
    both, complete = begin(60), lambda: sorted(path.name for path in two.glob("shard-*"))
    deadline = time.monotonic() + 120
    while len(complete()) < 2:
        assert time.monotonic() < deadline
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.05)
    for process in both:
        process.kill()
        process.wait()
    assert complete() == ["shard-00000-of-00006.json", "shard-00001-of-00006.json"]  # one by each
    (two / "samples-00001-of-00006.npy").write_bytes(b"")
    kept = (two / "samples-00000-of-00006.npy").stat().st_mtime_ns
    assert [process.wait(120) for process in begin(0)] == [0, 0]
    one = shards_toy.write(tmp_path / "one")
    assert contents(one) == contents(two)
    assert (two / "samples-00000-of-00006.npy").stat().st_mtime_ns == kept
    images = np.concatenate([*generate.read(one)])
    assert images.shape == (33, 6, 6, 1)
    assert np.ptp(images) > 100
    expected = metrics.moments(shards_toy.features(images))
    for name in ("0", "1"):
        with np.load(out / f"{name}.npz") as found:
            assert_allclose(found["mean"], expected.mean, rtol=1e-12)
            assert_allclose(found["cov"], expected.cov, rtol=1e-9, atol=1e-12)
