"""benchmarks/soak.py, some of it: kills, damaged files and mutated inputs; and that it sees what must not be."""

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gen_jax.training import checkpoint

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "benchmarks"))

import soak
import soak_damage
import soak_inputs
import soak_kills
import soak_runs
import soak_worker


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The runs, and those of another seed."""
    place = tmp_path_factory.mktemp("soak")
    for seed, name in enumerate(("sound", "another")):
        soak_runs.make(place / name, seed)
    return place


@pytest.fixture(scope="module")
def cases(place):
    found = soak_inputs.Cases(place, 0)  # they are those of damage as well
    found.warm()
    return found


def counted(found):
    faults = [each for each in found if each["ended"] in soak.FAULTS]
    assert faults == []
    return Counter(each["ended"] for each in found)


def damaged(cases, numbers):
    """Cases of damage; `warm` has been done."""
    again = soak_damage.Cases(cases._place, 0)
    again._right, again._weights = cases._right, cases._weights
    return [soak_worker.outcome(again, number) for number in numbers]


def test_a_damaged_file_is_the_right_answer_or_a_sentence(cases):
    """Each damage of the arrays of a run that is drawn from, and some of the manifest of one that goes on."""
    count, number = len(soak_damage.DAMAGES), lambda run, kind: list(cases._names[run]).index(kind)
    drawn = (2 * number("model", "arrays") + 1) * count
    ended = counted(damaged(cases, range(drawn, drawn + count)))
    assert ended["right"] > 5
    goes_on = 2 * number("trained", "manifest") * count
    assert counted(damaged(cases, [goes_on, goes_on + 8])).total() == 2


def test_a_mutated_input_is_the_right_answer_or_a_sentence(cases):
    ended = counted([soak_worker.outcome(cases, number) for number in range(60)])
    assert ended["right"] > 5
    assert ended["error"] > 20


def test_wrong_bits_are_seen(cases, monkeypatch):
    """Another run's checkpoint, and one whose checksums are not verified."""
    with pytest.raises(soak_worker.Wrong, match="other weights than step"):
        cases._draw(cases._other / "model")
    run = cases._copy("model", "unverified")
    other = soak_damage.Cases(cases._place, 0)._other / "model" / "checkpoints" / "6" / "ema_params"
    mine = run / "checkpoints" / "6" / "ema_params"
    mine.rename(run / "away")
    mine.symlink_to(other)
    assert cases._draw(run) == "loaded step 4"
    monkeypatch.setattr(checkpoint, "verify", lambda items, sums: None)
    with pytest.raises(soak_worker.Wrong, match="other weights than step 6"):
        cases._draw(run)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (ValueError("expected a number, got none"), "error"),
        (ValueError(""), "traceback"),
        (KeyError("a b"), "traceback"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "no such byte"), "traceback"),
        (soak_worker.Wrong("other bits"), "wrong"),
        (MemoryError("no memory is left"), "traceback"),
    ],
)
def test_an_error_that_nobody_meant_is_one_without_a_sentence(error, ended):
    def raise_it(number):
        raise error

    assert soak_worker.outcome(raise_it, 0)["ended"] == ended


STUB = """
import os, pickle, time
class Cases:
    kinds = ("right", "hang", "died", "code", "memory")
    def __init__(self, place, seed): ...
    def warm(self): ...
    def __call__(self, number):
        if number == 1: time.sleep(60)
        if number == 2: os._exit(3)
        if number == 3:
            try: pickle.loads(pickle.dumps(os.getcwd))
            except Exception: pass
        if number == 4: return str(len(b"x" * (300 * 2**20)))
        return "read"
"""


def test_a_worker_that_hangs_dies_grows_or_runs_code_is_seen_and_begun_again(tmp_path, monkeypatch):
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(soak_worker, "SECONDS", 4.0)
    worker = soak_worker.Worker("stub", tmp_path, 0)
    assert [worker.ask(number)["ended"] for number in (0, 1, 2, 3, 0)] == [
        "right",
        "hang",
        "died",
        "code",
        "right",
    ]
    assert worker.most < 300 * 2**20
    worker.ask(4)
    assert worker.most > 300 * 2**20
    worker.close()


@pytest.mark.slow  # in CI: tests/training/test_processes.py
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    """By each signal, at events of its own."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr(soak_kills, "STEPS", {"toy": ("soak_toy", [])})
    soak_kills._images(tmp_path / "images.npz")
    found = list(soak_kills.Runs("toy", tmp_path / "toy", "0").killed(3))
    assert counted(found) == {"right": 3}
    assert len({each["said"].split()[0] for each in found}) > 1


def test_what_a_killed_run_lost_is_seen(place, tmp_path):
    for name in ("a", "b"):
        soak_damage.shutil.copytree(place / "sound" / "trained", tmp_path / name)
    assert soak_kills.compare(tmp_path / "a", tmp_path / "b") == ""
    newest = max((tmp_path / "a" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    soak_damage.shutil.rmtree(newest)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(lines[:-1]))
    said = soak_kills.compare(tmp_path / "a", tmp_path / "b")
    assert "['in']" in said
    assert "losses in metrics.jsonl" in said


def test_the_table_is_put_into_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n| a |\n<!-- soak -->\n<!-- /soak -->\nafter\n")
    monkeypatch.setattr(soak, "PAGE", page)
    blank = [""] * (len(soak.HEAD) - 1)
    soak.write({"mutated": ([["mutated: PNG", *blank]], "- mutated: at first")})
    soak.write({"killed": ([["killed: step 5", *blank]], "- killed: \\1")})
    soak.write({"mutated": ([["mutated: .csv", *blank]], "- mutated: again")})
    text = page.read_text()
    assert text.startswith("before\n| a |\n<!-- soak -->\n| what | cases |")
    assert text.endswith("- killed: \\1\n- mutated: again\n<!-- /soak -->\nafter\n")
    assert [line.split(" | ")[0] for line in text.splitlines()][5:7] == [
        "| killed: step 5",
        "| mutated: .csv",
    ]
    assert (HERE.parent / "docs" / "reliability.md").read_text().count("soak -->") == 2


@pytest.mark.slow
def test_soak():
    assert soak.main(soak.Config(kills=20, damaged=200, mutated=2000, seed=int(time.time()))) == 0
