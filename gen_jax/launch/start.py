"""How a program begins and ends: its command line, its devices, its processes, its last words."""

import dataclasses
import importlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import absl.logging
import jax
import numpy as np
import tyro

from gen_jax import _flags, checks, ending, paths, training
from gen_jax.launch.options import GROUPS, flat, record
from gen_jax.training import workdir as run_directory
from gen_jax.types import AnyPath, Count

C = TypeVar("C")
MOST = 2**32 - 1
"""The largest whole number that JAX takes for one, such as a seed."""


@checks.checked
def parse(
    config: type[C],
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, C] | None = None,
    description: str | None = None,
) -> C:
    """The `Config` of a command line: the preset's, with what the flags change. Unknown flags are errors; `~` is home.

    Args:
        config: the dataclass; groups of options among its fields have no prefix.
        args: the flags, by default those of this program.
        presets: values of `config` by name, of which `--preset` chooses; the first is the default.
        description: of the program, for `--help`.
    """
    if not isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise ValueError(f"config must be a dataclass, the class itself, got {checks.came(config)}.")
    default = None if presets is None else _preset(presets, args)
    made: C = tyro.cli(
        config,
        args=args,
        default=cast(C, default),
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_flags.registry,
    )
    _check(made, sys.argv[1:] if args is None else args)
    return cast(C, _at_home(made))


def _check(config: object, args: Sequence[str]) -> None:
    """ValueError for whole numbers that no array has, and for empty paths, which `Path` takes for where one is."""
    empty = {flag for flag, value in itertools.pairwise(args) if value == ""}
    empty |= {word[:-1] for word in args if word.endswith("=")}
    for name, value in flat(config).items():
        for flag in {f"--{name}", f"--{name.replace('_', '-')}"} & empty:
            if isinstance(value, Path):
                raise ValueError(f"{flag} must be a path, got an empty one.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > MOST:
                raise ValueError(f"--{name.replace('_', '-')} must be at most {MOST:,}, got {number:,}.")


def _at_home(config: object) -> object:
    """The same with `~` in paths replaced, in groups of options too."""
    changes: dict[str, object] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, Path) and str(value).startswith("~"):
            changes[field.name] = value.expanduser()
        elif isinstance(value, GROUPS) and (moved := _at_home(value)) is not value:
            changes[field.name] = moved
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def _preset(presets: Mapping[str, C], args: Sequence[str] | None) -> C:
    """The preset that a command line names; a wrong name ends the program."""
    first = next(iter(presets))

    @dataclass
    class Choice:
        preset: str = first

    choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False)
    if choice.preset not in presets:
        near = checks.nearest(choice.preset, presets)
        ending.wrong(f"--preset must be one of {', '.join(presets)}; got {choice.preset}.{near}")
    return presets[choice.preset]


@checks.checked
def run(file: str) -> None:
    """Run an experiment as a program: `main(parse())` of its module.

    What is wrong with the input is said in a sentence, with exit code 2 (`ending.said`). The module is imported under its
    own name, for its presets import its `Config` and must find the same class.
    """
    if not Path(file).is_file():
        raise ValueError(f"file must be that of an experiment, there is none at {file}.")
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    sys.path.insert(0, str(Path(file).parent))
    if not debug:
        absl.logging.set_verbosity(
            absl.logging.FATAL
        )  # Orbax logs what it raises as well, with a traceback each
    with ending.said(Path(file).name, debug=debug, hint=" (--debug shows where)"):
        module = importlib.import_module(Path(file).stem)
        module.main(module.parse())


@checks.checked
def start(batch_size: Count = 2) -> None:
    """Join the other processes of the run, if any, set up the devices, and keep compiled programs for the next run.

    Call it before anything touches a device. `batch_size` is that of a step: an even one is shared by two devices made
    of a CPU's cores, with 1 there is one device.
    """
    training.initialize_distributed()
    training.split_cpu_devices(batch_size)
    training.enable_compilation_cache()


@checks.checked
def say(words: str) -> None:
    """Print, at once; only process 0 does."""
    if jax.process_index() == 0:
        print(words, flush=True)


@checks.checked
def save(path: AnyPath, value: object) -> None:
    """Write an array (.npy), or numbers and words (.json), complete or not at all. Only process 0 writes."""
    if path.suffix not in (".npy", ".json"):
        raise ValueError(f"path must end in .npy or .json, got {path}.")
    if jax.process_index() != 0:
        return
    if path.suffix == ".json":
        run_directory.write_json(path, value)
        return
    paths.save_array(path, np.asarray(value))


@checks.checked
def finish(
    workdir: AnyPath,
    summary: Mapping[str, object],
    *,
    config: object = None,
    experiment: str = "",
    lines: Sequence[str] = (),
    form: Callable[[object], str] = lambda value: f"{value:.6g}" if isinstance(value, float) else f"{value}",
) -> dict[str, object]:
    """Write `summary.json` (and `config.json`, where nothing else did), and say what was found and what can be done next.

    What a training cost is added (`training.cost.of_run`). Only process 0 writes and prints. Returns the summary.

    Args:
        workdir: of the run.
        summary: its figures, numbers and strings by name.
        config: the `Config` of an experiment that does not train by `training.fit`, which writes `config.json` itself.
        experiment: the name of the experiment, with `config`.
        lines: what can be done next, commands above all.
        form: how a figure is printed.
    """
    if jax.process_index() == 0:
        run_directory.prepare(workdir)
        summary = {**summary, **training.cost.of_run(workdir)}
        if config is not None:
            run_directory.write_json(workdir / "config.json", run_directory.plain(record(experiment, config)))
        run_directory.write_json(workdir / "summary.json", dict(summary))
        width = max((len(name) for name in summary), default=0)
        for name, value in summary.items():
            print(f"{name:{width}}  {form(value)}")
        print(f"figures: {workdir}")
        print("".join(f"{line}\n" for line in lines), end="")
    return dict(summary)
