"""`load`: what is at a path, whatever it is."""

from collections.abc import Sequence

from jaxtyping import DTypeLike

from gen_jax import checks, paths
from gen_jax.data.fetching import fetched
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import runs, stable_diffusion
from gen_jax.pretrained.safetensors.reading import NO_HEADER
from gen_jax.training import CheckpointError
from gen_jax.types import AnyPath


@checks.checked
def is_published(path: str | AnyPath) -> bool:
    """Whether a Stable Diffusion is at a path, and not a run of gen_jax: a file, or a folder with its parts."""
    path = paths.path_of(path)
    return path.is_file() or any((path / name).exists() for name in ("model_index.json", "unet"))


@checks.checked
def load(
    path: str | AnyPath,
    *,
    dtype: DTypeLike | None = None,
    types: Sequence[type] = (),
    **options: object,
) -> tuple[Model, Weights]:
    """The model and the weights of a run of gen_jax, or of a Stable Diffusion.

    Args:
        path: the directory of a run (`runs.load`), a folder with model_index.json, or a file `.safetensors`
            (`stable_diffusion.load`).
        dtype: of the weights; of Stable Diffusion also of the arithmetic.
        types: configurations of one's own networks, for a run.
        options: of `stable_diffusion.load`, such as `variant`, `config`, `predicts` and `clip_skip`.

    Raises:
        ValueError: there is neither, options of Stable Diffusion are given for a run, or as of the two functions.
    """
    path = paths.path_of(path)
    dtype = None if dtype is None else checks.float_type("dtype", dtype)
    if is_published(path):
        try:
            return stable_diffusion.load(fetched(path), dtype=dtype, **options)  # type: ignore[arg-type]
        except ValueError as error:
            if NO_HEADER not in str(error) or path.is_dir() or path.suffix == ".safetensors":
                raise
            raise ValueError(
                f"{path} is neither the directory of a run, nor a folder of Stable Diffusion, nor a .safetensors file: "
                "give one of these."
            ) from error
    if options:
        raise ValueError(
            f"{', '.join(options)}: only Stable Diffusion has such options, and {path} is neither a folder with "
            "model_index.json nor a file."
        )
    try:
        return runs.load(path, dtype=dtype, types=types)
    except CheckpointError as error:
        if (path / "checkpoints").is_dir():  # it is a run, and the message says what of it
            raise
        hint = "For a Stable Diffusion give a folder that has model_index.json, or a .safetensors file."
        raise CheckpointError(f"{str(error).rstrip('.')}. {hint}") from None
