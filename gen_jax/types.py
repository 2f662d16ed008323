"""Choices by name: type checkers know the names, at run time each is a `str`.

A misspelt name is to meet the ValueError of the function that takes it, which lists the choices. A `Literal` at run time
would have it meet the type checker that the tests install instead.
"""

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
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
else:
    Betas = Rate = Predicts = Reconstruction = Terms = Final = Variance = Variant = Slope = Warmup = str
