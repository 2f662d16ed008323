"""The recipes of CONTRIBUTING.md, each done as it stands there, in a copy of the tree or in an empty directory."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import documents

PAGE = documents.ROOT / "CONTRIBUTING.md"
MOST_FILES = {"A solver": 2, "A source of data": 1, "A network": 1, "A condition": 1, "An experiment": 1}


def recipe(heading):
    """The blocks under a heading."""
    text = PAGE.read_text()
    start = text[: text.index(f"\n## {heading}\n")].count("\n") + 1
    end = next(
        (n for n, line in enumerate(text.splitlines()) if n > start + 1 and line.startswith("## ")), 10**6
    )
    return [block for block in documents.blocks(PAGE) if start < block.line <= end]


def apply(block, root):
    """Writes a file, or changes one: what is marked with + goes in where the lines around it stand."""
    path = root / block.title
    if block.language != "diff":
        assert not path.exists(), f"{block.title} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return
    text = path.read_text()
    for part in block.text.split("@@\n"):
        before, after = (
            "\n".join(line[1:] for line in part.splitlines() if line[:1] in kept) for kept in (" -", " +")
        )
        assert text.count(before) == 1, f"{block.title} has this not once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text)


def copy_of_the_tree(to):
    for name in ("gen_jax", "experiments", "tests", "benchmarks"):
        shutil.copytree(documents.ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(documents.ROOT / "pyproject.toml", to)
    return to


def run(words, root, **variables):
    """A command in the copy of the tree; `python` and `pytest` are those that run here."""
    program = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}[words[0]]
    environment = os.environ | {"PYTHONPATH": str(root), "GEN_JAX_CACHE": str(root / "cache")} | variables
    done = subprocess.run([*program, *words[1:]], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_each_recipe_touches_as_few_files_as_promised():
    headings = re.findall(r"^## (An? .*)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(MOST_FILES)
    for heading, most in MOST_FILES.items():
        files = {block.title for block in recipe(heading) if block.title}
        assert 1 <= len(files) <= most, heading


@pytest.mark.slow
@pytest.mark.site
def test_recipe_of_a_solver_passes_the_tests_of_solvers(tmp_path):
    blocks, root = recipe("A solver"), copy_of_the_tree(tmp_path)
    for block in blocks:
        if block.title:
            apply(block, root)
    (command,) = (shlex.split(block.text) for block in blocks if block.language == "bash")
    passed = re.search(r"(\d+) passed", run([*command, "-n", "0", "-p", "no:cacheprovider"], root))
    assert passed
    assert int(passed[1]) > 3


@pytest.mark.slow
@pytest.mark.site
@pytest.mark.parametrize("heading", ["A source of data", "A network", "A condition"])
def test_recipe_of_one_program_prints_what_it_says(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in recipe(heading) if block.title)
    assert documents.execute(PAGE, [block])


@pytest.mark.slow
@pytest.mark.site
def test_recipe_of_an_experiment_leaves_what_all_leave(tmp_path):
    root = copy_of_the_tree(tmp_path)
    file, command = recipe("An experiment")
    apply(file, root)
    run([*shlex.split(command.text), "--workdir", "out"], root)
    assert json.loads((root / "out/summary.json").read_text())["frechet_distance"] > 1
    assert json.loads((root / "out/config.json").read_text())["options"]["size"] == 50
    wrong = subprocess.run(
        [sys.executable, file.title, "--sizes", "1"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert wrong.returncode == 2
