"""Numbers in a range, choices by name, texts and paths: type checkers know the names, at run time each is a `str`.

A misspelt name is to meet the ValueError of the function that takes it, which lists the choices. A `Literal` at run time
would have it meet the type checker that the tests install instead. `Text`, `Prompt` and `SolverName` are any
object at run time, for the same reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from jaxtyping import PyTree

from gen_jax.checks.values import Range

Number: TypeAlias = Annotated[float, Range()]
"""A number that is finite."""
Positive: TypeAlias = Annotated[float, Range(0, above=True)]
"""A number above zero."""
NotNegative: TypeAlias = Annotated[float, Range(0)]
"""A number from zero on."""
Fraction: TypeAlias = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Decay: TypeAlias = Annotated[float, Range(0, 1, below=True)]
"""Of a running average: a number from 0 to below 1."""
Count: TypeAlias = Annotated[int, Range(1)]
"""A whole number from 1 on."""
Size: TypeAlias = Annotated[int, Range(0)]
"""A whole number from 0 on."""
Seed: TypeAlias = Annotated[int, Range(0, 2**32 - 1)]
"""Of `jax.random.key`."""

if TYPE_CHECKING:
    AnyPath: TypeAlias = Path
    """Of a file, or of an object in a bucket: that of `etils.epath` has the methods of a Path, and is none."""
    Betas: TypeAlias = Literal["linear", "scaled_linear", "cosine"]
    """Schedule of a discrete process, `process.DDPM`."""
    Rate: TypeAlias = Literal["linear", "cosine"]
    """Schedule of a continuous process, `process.VP`."""
    Predicts: TypeAlias = Literal["eps", "x0", "v", "score", "velocity"]
    """What a network predicts."""
    Reconstruction: TypeAlias = Literal["gaussian", "discretized"]
    """The last term of a variational bound."""
    Terms: TypeAlias = Literal["sampled", "neighbours", "posterior"]
    """How the bound of a chain of latents is estimated."""
    Final: TypeAlias = Literal["zero", "denoise", "stop"]
    """How sampling ends."""
    Variance: TypeAlias = Literal["posterior", "beta"]
    """Of the noise of ancestral sampling."""
    Variant: TypeAlias = Literal["exact", "midpoint"]
    """How a step of order 2 is integrated."""
    Slope: TypeAlias = Literal["exact", "bh1", "bh2"]
    """How the slope between two values is integrated."""
    Warmup: TypeAlias = Literal["runge-kutta", "heun"]
    """The first steps of a multistep solver."""
    Combined: TypeAlias = Literal["eps", "v"]
    """Which answers of several times a multistep solver combines."""
    Spacing: TypeAlias = Literal["leading", "linspace", "trailing"]
    """Of the times of a discrete process, `samplers.Schedule`."""
    RescaleOf: TypeAlias = Literal["x0", "output"]
    """Whose deviation is restored after guidance: that of the estimate of the data, or of what the network says."""
    Colour: TypeAlias = Literal["red", "green", "blue", "yellow", "purple", "white"]
    """Of a digit in a scene."""
    DigitSize: TypeAlias = Literal["small", "large"]
    """Of a digit in a scene."""
    Relation: TypeAlias = Literal["above", "below", "left of", "right of"]
    """How the first digit of a scene stands to the second."""
    SceneSplit: TypeAlias = Literal["train", "test", "held_out"]
    """Which digits and which combinations scenes have."""
    FileLayout: TypeAlias = Literal["diffusers", "single"]
    """How the files of a Stable Diffusion are arranged: a folder, or one file."""
    Activation: TypeAlias = Literal["quick_gelu", "gelu"]
    """Of a text encoder."""
    Shard: TypeAlias = Literal["zero1", "fsdp"]
    """What of a run is split over the devices, `training.Layout`."""
    Weights: TypeAlias = Mapping[str, PyTree]
    """Trees of parameters by name, as `gen_jax.generate` takes them."""
    SolverName: TypeAlias = str
    """Of `samplers.named`."""
    Text: TypeAlias = str | bytes
    """Bytes are UTF-8."""
    Prompt: TypeAlias = str | bytes | Sequence[str | bytes]
    """Words: for all samples, or for each its own."""
else:
    AnyPath = PurePath
    Weights = Mapping[str, PyTree]
    Colour = DigitSize = Relation = SceneSplit = str
    Activation = FileLayout = Shard = str
    Text = Prompt = SolverName = object
    Betas = Rate = Predicts = Reconstruction = Terms = Final = Variance = Variant = Slope = Warmup = str
    Combined = Spacing = RescaleOf = str
