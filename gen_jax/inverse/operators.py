"""Linear operators of measurements `y = A x_0 + s n`: `A`, its transpose, and a solve, for posterior sampling.

    Mask(keep)            inpainting                 y = keep x                           A A^T = keep
    Downsample(factor)    super-resolution           y = means over factor x factor       A A^T = I / factor^2
    Grayscale()           colour from grey           y = w . (r, g, b)                    A A^T = |w|^2 I
    Matrix(matrix)        any, for small problems    y = matrix x                         A A^T by Cholesky

All take batches. They are pytrees: pass a mask or a matrix through `jit` and `vmap` like any array; another of the same
shape needs no compilation. For an operator of your own write a class with the three methods of `Operator`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from gen_jax import checks

Variance: TypeAlias = Annotated[ArrayLike, checks.Range(0)]
_PRECISION = jax.lax.Precision.HIGHEST


@runtime_checkable
class Operator(Protocol):
    """A linear map `A` of examples `x` to measurements `y`; both may be pytrees of arrays `[B, ...]`."""

    def forward(self, x: PyTree) -> PyTree:
        """`A x`."""
        ...

    def transpose(self, y: PyTree) -> PyTree:
        """`A^T y`: `<A x, y> = <x, A^T y>`."""
        ...

    def solve(self, y: PyTree, noise_var: Variance, prior_var: Variance) -> PyTree:
        """`(noise_var I + prior_var A A^T)^-1 y`, and 0 for entries of `y` that `A` does not measure."""
        ...


@partial(jax.tree_util.register_dataclass, data_fields=["keep"], meta_fields=[])
@dataclass(frozen=True)
class Mask:
    """Inpainting: some of the numbers are known, `A = diag(keep)`.

    Measurements have the shape of `x`. Their unknown entries are not used, and may be NaN.

    Args:
        keep: bool, True where known, of the rank of `x`: `[1, H, W, 1]` is one mask for every image and channel,
            `[B, H, W, 1]` is one mask per image.

    Raises:
        ValueError: when used, if `keep` is not bool or does not broadcast to `x`.
    """

    keep: Shaped[Array | np.ndarray, "..."]

    @checks.checked_in_loops
    def forward(self, x: Float[Array, "B *x"]) -> Float[Array, "B *x"]:
        """`x` where known, 0 elsewhere."""
        return jnp.where(check_mask(self.keep, x), x, 0)

    @checks.checked_in_loops
    def transpose(self, y: Float[Array, "B *x"]) -> Float[Array, "B *x"]:
        """The same: `A` is symmetric."""
        return self.forward(y)

    @checks.checked_in_loops
    def solve(
        self, y: Float[Array, "B *x"], noise_var: Variance, prior_var: Variance
    ) -> Float[Array, "B *x"]:
        """`y / (noise_var + prior_var)` where known, 0 elsewhere."""
        return self.forward(y) / (noise_var + prior_var)


@checks.checked
@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["factor"])
@dataclass(frozen=True)
class Downsample:
    """Super-resolution: each pixel is the mean of `factor x factor` pixels, `[B, H, W, C] -> [B, H / f, W / f, C]`.

    Raises:
        ValueError: `factor` is below 1; when used, if it does not divide `H` and `W`.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be a whole number of at least 1, got {self.factor}.")

    @checks.checked_in_loops
    def forward(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Means over squares."""
        batch, height, width, channels = x.shape
        f = self.factor
        if height % f or width % f:
            raise ValueError(
                f"factor must divide the height and the width, got factor {f} and images of {height} x {width}: crop or "
                "pad them, or take another factor."
            )
        return x.reshape(batch, height // f, f, width // f, f, channels).mean((2, 4))

    @checks.checked_in_loops
    def transpose(self, y: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        """Each number divided by `factor^2` and repeated over its square."""
        return jnp.repeat(jnp.repeat(y, self.factor, 1), self.factor, 2) / self.factor**2

    @checks.checked_in_loops
    def solve(
        self, y: Float[Array, "B h w C"], noise_var: Variance, prior_var: Variance
    ) -> Float[Array, "B h w C"]:
        """`y / (noise_var + prior_var / factor^2)`."""
        return y / (noise_var + prior_var / self.factor**2)


@checks.checked
@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["weights"])
@dataclass(frozen=True)
class Grayscale:
    """Colour from grey: `y = sum_c weights_c x_c`, `[B, H, W, C] -> [B, H, W, 1]`.

    Args:
        weights: one per channel; by default those of luma (ITU-R BT.601, Section 2.5.1).

    Raises:
        ValueError: all weights are 0; when used, if there are not as many channels.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if not any(self.weights):
            raise ValueError(f"weights must not all be 0, got {self.weights}.")

    @checks.checked_in_loops
    def forward(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W 1"]:
        """The weighted sum of the channels."""
        if x.shape[-1] != len(self.weights):
            raise ValueError(
                f"Expected images of {len(self.weights)} channels, one per weight, got the shape {x.shape}: "
                "give one weight per channel."
            )
        return (x * self._row(x)).sum(-1, keepdims=True)

    @checks.checked_in_loops
    def transpose(self, y: Float[Array, "B H W 1"]) -> Float[Array, "B H W C"]:
        """Grey value times each weight."""
        return y * self._row(y)

    @checks.checked_in_loops
    def solve(
        self, y: Float[Array, "B H W 1"], noise_var: Variance, prior_var: Variance
    ) -> Float[Array, "B H W 1"]:
        """`y / (noise_var + prior_var |weights|^2)`."""
        return y / (noise_var + prior_var * sum(w**2 for w in self.weights))

    def _row(self, like: Array) -> Array:
        return jnp.asarray(self.weights, like.dtype).reshape(1, 1, 1, -1)


@partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=[])
@dataclass(frozen=True)
class Matrix:
    """A dense matrix, `[B, D] -> [B, M]`, for small problems: each solve factorises an `[M, M]` matrix (Cholesky).

    Args:
        matrix: `[M, D]`; for measurements without noise it must have full row rank.

    Raises:
        ValueError: when used, if rows of `x` do not have `D` numbers.
    """

    matrix: Float[Array | np.ndarray, "M D"]

    @checks.checked_in_loops
    def forward(self, x: Float[Array, "B n"]) -> Float[Array, "B M"]:
        """`matrix x` of every row."""
        if x.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                f"Expected rows of {self.matrix.shape[1]} numbers for a matrix {self.matrix.shape}, got {x.shape}."
            )
        return jnp.matmul(x, jnp.asarray(self.matrix, x.dtype).T, precision=_PRECISION)

    @checks.checked_in_loops
    def transpose(self, y: Float[Array, "B M"]) -> Float[Array, "B D"]:
        """`matrix^T y` of every row."""
        self._check(y)
        return jnp.matmul(y, jnp.asarray(self.matrix, y.dtype), precision=_PRECISION)

    @checks.checked_in_loops
    def solve(self, y: Float[Array, "B M"], noise_var: Variance, prior_var: Variance) -> Float[Array, "B M"]:
        """`(noise_var I + prior_var matrix matrix^T)^-1 y` of every row."""
        self._check(y)
        matrix = jnp.asarray(self.matrix, y.dtype)
        gram = jnp.matmul(matrix, matrix.T, precision=_PRECISION)
        system = noise_var * jnp.eye(len(gram), dtype=y.dtype) + prior_var * gram
        return jax.scipy.linalg.solve(system, y.T, assume_a="pos").T

    def _check(self, y: Array) -> None:
        if y.shape[1] != len(self.matrix):
            raise ValueError(
                f"y must have {len(self.matrix)} numbers a row, as the matrix says; got {checks.came(y)}."
            )


def check_mask(mask: ArrayLike, like: ArrayLike) -> Shaped[Array, "..."]:
    """The mask as an array; raises a ValueError unless it is bool, of the rank of `like` and broadcasts to it."""
    got, want = jnp.shape(mask), jnp.shape(like)
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(
            f"mask must be bool, True where known; got {jnp.result_type(mask)}: write mask > 0.5."
        )
    if len(got) != len(want) or any(m not in (1, n) for m, n in zip(got, want, strict=True)):
        raise ValueError(
            f"mask must have the shape of the data, {want}, or axes of size 1, such as {(1, *want[1:])} for one mask "
            f"for all examples; got {got}."
        )
    return jnp.asarray(mask)
