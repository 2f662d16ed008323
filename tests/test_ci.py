"""What .ci/ says of versions and files is true."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import gen_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lower_bounds():
    """`{name: version}` of each requirement with a bound `>=`."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    for requirement in map(Requirement, lines):
        for specifier in requirement.specifier:
            assert specifier.operator == ">=", requirement
            yield requirement.name, Version(specifier.version)


def test_oldest_versions_are_the_lower_bounds():
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in pins} == dict(lower_bounds())


def test_ci_names_tests_that_exist():
    paths = re.findall(r"tests/[\w/.]+", (ROOT / ".ci" / "run").read_text())
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_version_is_the_same_in_package_and_project():
    assert gen_jax.__version__ == PROJECT["version"]
