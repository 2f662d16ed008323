"""The README's code runs as pasted and says what it says; its commands parse."""

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro

from gen_jax import cli, runs
from tests.test_experiments import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_python_samples_what_it_says(capsys):
    code, _ = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(compile(code, "README.md", "exec"), {})
    mean, std = (float(number) for number in capsys.readouterr().out.split())
    np.testing.assert_allclose([mean, std], [2.0, 0.5], atol=0.02)


def test_readme_python_takes_any_solver_and_tells_densities(capsys):
    _, code = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    *solvers, log_prob, bound = capsys.readouterr().out.splitlines()
    assert len(solvers) == 4
    for line in solvers:
        nfe, mean, std = line.split()[-3:]
        assert int(nfe) in (20, 38)  # Heun asks once in the steps from pure noise and to the data
        np.testing.assert_allclose([float(mean), float(std)], [2.0, 0.5], atol=0.05)
    entropy = 2 * 0.5 * np.log(2 * np.pi * np.e * 0.5**2)
    np.testing.assert_allclose([float(log_prob), float(bound)], [-entropy, entropy], atol=0.15)


def test_readme_commands_parse():
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python ")]
    assert commands
    for command in commands:
        _, script, *flags = shlex.split(command, comments=True)
        assert (ROOT / script).exists(), script
        if script.startswith("experiments/"):
            with pytest.raises(SystemExit) if "--help" in flags else contextlib.nullcontext():
                module = load(Path(script).stem)
                module.parse(flags) if hasattr(module, "parse") else tyro.cli(module.Config, args=flags)


def test_readme_commands_of_the_package_parse(monkeypatch):
    """Up to the run, which is not there."""
    commands = re.findall(r"^gen-jax (.*)$", README, re.MULTILINE)
    assert commands

    def load(run_dir):
        raise ValueError("parsed")

    monkeypatch.setattr(runs, "load", load)
    for command in commands:
        with pytest.raises(SystemExit, match="parsed"):
            cli.main(shlex.split(command, comments=True))


def test_readme_pictures_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).exists(), picture
