"""The pages for readers as a program: their Python runs and prints what they say, their commands parse."""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import tyro

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SCRIPTS = [*sorted((ROOT / "experiments").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str
    """What it is the content of: a path, or nothing."""
    line: int
    """Of its first line of code in the page."""
    text: str


def blocks(page, language=None):
    """The fenced blocks of a page, from first to last."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match[3])
        line = text[: match.start(4)].count("\n") + 1
        code = re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE)
        found.append(Block(match[2], title[1] if title else "", line, code))
    return [block for block in found if language in (None, block.language)]


def commands(page):
    """The commands in blocks of bash, one a line or joined by &&, and in cells of tables, as lists of words."""
    lines = [line for block in blocks(page, "bash") for line in block.text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^\|.*`(python [^`]+|gen-jax [^`]+)`", page.read_text(), re.MULTILINE)
    return [words for line in lines for words in parts(line)]


def parts(line):
    """The commands of a line, which && joins outside of quotes, as lists of words."""
    found = [[]]
    for word in shlex.split(line, comments=True):
        found.append([]) if word == "&&" else found[-1].append(word)
    return [words for words in found if words]


def run(page):
    """Runs the Python of a page, block after block as one program, and returns what it printed."""
    return execute(page, [block for block in blocks(page, "python") if not block.title])


def execute(page, program):
    """Runs blocks of a page in one namespace, and returns what they printed.

    A comment with numbers after a `print(...)` is what it prints, to the digits that it has.
    """
    code, printed, comments = {"__name__": "page"}, [], {}

    def say(*values):
        text = " ".join(map(str, values))
        printed.append(text)
        line = sys._getframe(1).f_lineno
        if want := NUMBER.findall(comments.get(line, "")):
            assert agree(NUMBER.findall(text), want), f"{page.name}:{line} says {want}, and prints {text}"

    code["print"] = say
    for block in program:
        lines = "\n" * (block.line - 1) + block.text  # so that errors name the line of the page
        comments |= {
            token.start[0]: token.string
            for token in tokenize.generate_tokens(io.StringIO(lines).readline)
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("print(")
        }
        with jax.numpy_rank_promotion("allow"):  # as for a reader: conftest is stricter
            exec(compile(lines, str(page), "exec"), code)
    return printed


def agree(got, want):
    """Whether numbers are those of a page, to one unit of the last digit that the page has; integers exactly."""
    if len(got) != len(want):
        return False
    for g, w in zip(got, want, strict=True):
        mantissa, _, exponent = w.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        if abs(float(g) - float(w)) > (0 if "." not in g + w else 1.001 * unit):
            return False
    return True


def commands_of_docstring(script):
    """The commands that a script says of itself, one a line, with the flags in brackets, too."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    lines = re.findall(r"^ *((?:python experiments|python benchmarks|gen-jax)[ /].*)$", text, re.MULTILINE)
    return [shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", line), comments=True) for line in lines]


TAKE_A_COMMAND, TAKE_AN_EXPERIMENT = ("loop.sh",), ("run.sh", "queued.sh", "xpk.sh")
"""Scripts of experiments/launch with arguments."""
CLOUD = {
    "gcloud compute tpus tpu-vm create": {"zone", "accelerator-type", "version", "spot"},
    "gcloud compute tpus tpu-vm ssh": {"zone", "worker", "command"},
    "gcloud compute tpus tpu-vm scp": {"zone", "worker"},
    "gcloud compute tpus tpu-vm delete": {"zone", "quiet"},
    "gcloud compute tpus queued-resources create": {
        *("node-id", "zone", "accelerator-type", "runtime-version", "spot")
    },
    "gcloud compute tpus queued-resources describe": {"zone", "format"},
    "gcloud compute tpus queued-resources delete": {"zone", "force", "quiet"},
    "gcloud storage buckets create": {"location"},
    "gcloud storage rsync": {"recursive"},
    "gcloud container clusters get-credentials": {"location"},
    "kubectl apply": {"filename"},
    "kubectl get": set(),
    "kubectl delete": set(),
    "kubectl logs": {"follow", "selector"},
    "docker build": {"file", "tag"},
    "docker push": set(),
    "sky jobs launch": {"env"},
    "sky jobs queue": set(),
    "sky jobs logs": set(),
    "tensorboard": {"logdir"},
    "xpk workload create": {
        *(
            "cluster",
            "zone",
            "workload",
            "tpu-type",
            "base-docker-image",
            "script-dir",
            "max-restarts",
            "command",
        ),
        *("restart-on-exit-codes", "termination-grace-period-seconds"),
    },
}
"""Flags of other programs that are used, as their help has them: gcloud, kubectl, docker, SkyPilot and XPK of 2026."""


def check_cloud(words):
    """AssertionError for a command of another program, or a flag of it, that is not in the table."""
    said = " ".join(words)
    name = max((name for name in CLOUD if f"{said} ".startswith(f"{name} ")), key=len, default=None)
    assert name is not None, f"no test knows this command: {said}"
    flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= CLOUD[name], (name, flags - CLOUD[name])
    inner = [word.partition("=")[2] for word in words if word.startswith("--command=")]
    for command in (command for text in inner for command in parts(text) if command[0].startswith(".venv/")):
        check_command(command)


class Parsed(Exception):
    """The flags are there; what they ask for is not done."""


def check_command(words):
    """Raises where a command names a script, a flag, an extra or a path that does not exist."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["python", script, *flags] if script.endswith(".py"):
            parse_flags(ROOT / script, flags)
        case ["gen-jax", *flags]:
            module, _, function = pyproject()["scripts"]["gen-jax"].partition(":")
            with parsing(["gen-jax", *flags]):
                getattr(importlib.import_module(module), function)()
        case ["pip", "install", "-e", what]:
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
            assert extras, what
            assert set(filter(None, (extras[1] or "").split(","))) <= set(
                pyproject()["optional-dependencies"]
            )
        case [".venv/bin/python", *rest]:
            check_command(["python", *rest])
        case [".venv/bin/gen-jax", *rest]:
            check_command(["gen-jax", *rest])
        case [script, *rest] if script.startswith("experiments/launch/"):
            assert (ROOT / script).stat().st_mode & 0o100, script
            name = Path(script).name
            assert (name in TAKE_A_COMMAND or name in TAKE_AN_EXPERIMENT) == bool(rest), script
            if name in TAKE_A_COMMAND:
                check_command(rest)
            elif name in TAKE_AN_EXPERIMENT:
                parse_flags(ROOT / "experiments" / f"{rest[0]}.py", rest[1:])
        case ["export", *given]:
            assert all(re.fullmatch(r"[A-Z_]+=.*", word) for word in given), words
        case ["tmux", "new-session", "-d", command]:
            check_command(shlex.split(command))
        case ["gcloud" | "kubectl" | "docker" | "sky" | "xpk" | "tensorboard", *_]:
            check_cloud(words)
        case ["pytest" | "mypy" | "ruff" | "mkdocs" | "pre-commit", *flags]:
            for flag in flags:
                assert "/" not in flag or (ROOT / flag.partition("::")[0]).exists(), flag
        case _:
            raise AssertionError(f"no test knows how to check this command: {shlex.join(words)}")


def pyproject():
    """The project's table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parse_flags(script, flags):
    """Runs a script up to where its flags are parsed; of one whose peers are not installed, looks for their names."""
    assert script.exists(), script
    if not re.search(r"tyro\.cli|parse_args|launch\.(run|parse)", script.read_text()):
        assert not flags, f"{script} takes no flags"
        return  # nothing would end it where flags are parsed
    try:
        with parsing([str(script), *flags]) as patch:
            patch.syspath_prepend(script.parent)
            runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        if script.parent.name != "benchmarks" or error.name.startswith("gen_jax"):
            raise
        for flag in (f.lstrip("-") for f in flags if f.startswith("--") and f != "--help"):
            name = re.sub("^no-", "", flag).replace("-", "_")
            assert re.search(rf'^    {name}: |"--{flag}"', script.read_text(), re.MULTILINE), (script, flag)


@contextlib.contextmanager
def parsing(argv):
    """Within, `sys.argv` is given, and the first complete parse of it ends what runs; a wrong flag is an error."""
    cli, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def parse(*args, **options):
        result = cli(*args, **options)
        if options.get("return_unknown_args"):  # of a part of the flags
            return result
        raise Parsed

    def parse_old(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise Parsed

    def stub(command):
        @functools.wraps(command)
        def parsed(*args, **options):
            raise Parsed

        return parsed

    def parse_command(self, **options):
        app = tyro.extras.SubcommandApp()
        for name, spec in self._subcommands.items():
            app.command(stub(spec.target), name=name)
        app_cli(app, **options)

    app_cli = tyro.extras.SubcommandApp.cli
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        patch.setattr(tyro, "cli", parse)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_old)
        patch.setattr(tyro.extras.SubcommandApp, "cli", parse_command)
        try:
            yield patch
        except Parsed:
            return
        except SystemExit:
            if "--help" in argv:
                return
            raise
    raise AssertionError(f"no flags were parsed: {shlex.join(argv)}")
