"""How far samples are from data: the Fréchet distance between the normals that fit their features.

    axes = metrics.principal(images, 32)                             # features: coordinates in the data's leading axes
    real, drawn = (metrics.moments(metrics.project(axes, x)) for x in (images, samples))
    metrics.frechet_distance(real, drawn)

With the features of an Inception network the distance is the FID; `moments` takes features of any kind. Everything is
float64 on the host: a covariance of images in float32 has no digits left for the difference of two.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float, Num


class Moments(NamedTuple):
    """Mean and covariance of features."""

    mean: Float[np.ndarray, "D"]
    cov: Float[np.ndarray, "D D"]


class Axes(NamedTuple):
    """The leading principal axes of data."""

    mean: Float[np.ndarray, "D"]
    directions: Float[np.ndarray, "D k"]
    """Orthonormal columns, that of the largest variance first."""
    share: float
    """Of the data's variance that lies along them, in [0, 1]."""


def moments(features: Num[np.ndarray, "N D"]) -> Moments:
    """Mean and unbiased covariance (divided by `N - 1`) of features `[N, D]`.

    Raises:
        ValueError: `N < 2`, or a feature is not finite.
    """
    x = np.asarray(features, np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"features must be finite, and of at least 2 examples; got the shape {x.shape} with "
            f"{int((~np.isfinite(x)).any(1).sum())} examples that are not finite."
        )
    mean = x.mean(0)
    return Moments(mean, (x - mean).T @ (x - mean) / (len(x) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance between two normals, squared as in the FID, in the square of the features' unit.

        d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6.) With `C = F F^T` the trace is `min |F_a - F_b Q|^2` over
    orthogonal `Q`, and is taken so: as a sum of squares, it is not negative, holds its digits where the normals are
    close, and asks no covariance to be of full rank. Features of few examples make it larger (by order `1 / N`), so
    compare only distances from as many.

    Raises:
        ValueError: `a` and `b` differ in `D`.
    """
    if a.cov.shape != b.cov.shape:
        raise ValueError(
            f"both must be of the same features; got {len(a.mean)} and {len(b.mean)} of them: project alike."
        )
    of_a, of_b = _factor(a.cov), _factor(b.cov)
    left, _, right = np.linalg.svd(of_b.T @ of_a)  # Q = left right (Schönemann 1966)
    return float(np.square(a.mean - b.mean).sum() + np.square(of_a - of_b @ (left @ right)).sum())


def principal(x: Num[np.ndarray, "N *x"], num: int) -> Axes:
    """The `num` leading principal axes of data `[N, ...]`, of the pixels of images, say (Pearson 1901; PRML 12.1).

    Raises:
        ValueError: `num` is not from 1 to one less than the lesser of `N` and the numbers in an example.
    """
    rows = _rows(x)
    if not 1 <= num < min(rows.shape):
        raise ValueError(
            f"num must be from 1 to {min(rows.shape) - 1} for {rows.shape[0]} examples of {rows.shape[1]} numbers, "
            f"got {num}."
        )
    mean = rows.mean(0)
    start = np.ones(min(rows.shape))  # of the iteration; random by default
    _, values, directions = scipy.sparse.linalg.svds(rows - mean, k=num, v0=start)
    order = np.argsort(-values)
    share = np.square(values).sum() / np.square(rows - mean).sum()
    return Axes(mean, directions[order].T, float(share))


def project(axes: Axes, x: Num[np.ndarray, "N *x"]) -> Float[np.ndarray, "N k"]:
    """Coordinates of `x [N, ...]` along the axes, from their mean.

    Raises:
        ValueError: an example has other than `D` numbers.
    """
    rows = _rows(x)
    if rows.shape[1] != len(axes.mean):
        raise ValueError(f"Expected examples of {len(axes.mean)} numbers, got the shape {x.shape}.")
    return (rows - axes.mean) @ axes.directions


def _factor(cov: Any) -> Any:
    """`F` with `F F^T = cov`; rounding errors below 0 count as 0."""
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0))


def _rows(x: Any) -> Any:
    return np.asarray(x, np.float64).reshape(len(x), -1)
