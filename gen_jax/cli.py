"""gen-jax: samples from a trained run, without the experiment that made it, and from Stable Diffusion's own files.

gen-jax sample checkpoints/step10_conditional --label 8 --num 16 --out eights.png
gen-jax sample stable-diffusion-v1-5 --prompt "a lighthouse at dawn" --nfe 20 --out lighthouse.png
gen-jax sample checkpoints/step10_conditional --num 50000 --out samples
gen-jax doctor --workdir checkpoints
"""

import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

from gen_jax import ending

if TYPE_CHECKING:
    from tyro.extras import SubcommandApp


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; what is wrong with the input is said in a line, without a traceback unless `--debug` is given.

    All imports that take time are inside of `ending.said`, so that Ctrl-C ends them as it ends the rest.
    """
    given = list(sys.argv[1:] if args is None else args)
    with ending.said("gen-jax", debug="--debug" in given):
        commands = _commands()
        from gen_jax import _flags

        words = [word for word in given if word != "--debug"]
        commands.cli(prog="gen-jax", description=__doc__, args=words, registry=_flags.registry)


def _commands() -> "SubcommandApp":
    import tyro

    from gen_jax import command

    app = tyro.extras.SubcommandApp()

    @app.command
    def sample(asked: Annotated[command.Sample, tyro.conf.arg(name="")]) -> None:
        """Draw images from a trained diffusion model, as its makers do unless told otherwise."""
        said = command.run(asked)
        import jax

        if jax.process_index() == 0:
            print(said)

    @app.command
    def doctor(workdir: PurePath | None = None) -> None:
        """Say what this machine is, and whether a run would find its processes, devices and directory.

        On several hosts call it on all of them at once, as a run. Exit code 2: something is wrong.

        Args:
            workdir: where runs are to be, a directory or gs://BUCKET/PATH: whether it can be written, and all processes
                see the same.
        """
        from gen_jax import paths
        from gen_jax.launch.doctor import examine

        wrong = False
        for finding in examine(None if workdir is None else paths.path_of(workdir)):
            print(finding, flush=True)
            wrong |= finding.wrong
        if wrong:
            sys.exit(ending.INPUT)

    return app


if __name__ == "__main__":
    main()
