"""How far samples are from data: the Fréchet distance between normal distributions fitted to their features.

And how far reconstructions are from their images, one by one: the peak signal-to-noise ratio.

    axes = metrics.principal(images, 32)                             # features: coordinates in the data's leading axes
    real, drawn = (metrics.moments(metrics.project(axes, x)) for x in (images, samples))
    metrics.frechet_distance(real, drawn)

With the features of an Inception network the distance is the FID; `moments` takes any features. Those of examples that
do not fit into memory are tallied block by block:

    real = metrics.settle(functools.reduce(metrics.join, map(metrics.tally, blocks)))

All is computed in float64 on the host: in float32 the difference of two covariances of images has no correct digit.
"""

import math
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float, Num

from gen_jax import checks
from gen_jax.types import Count, Positive, Size


class Moments(NamedTuple):
    """Mean and covariance of features."""

    mean: Float[np.ndarray, "D"]
    cov: Float[np.ndarray, "D D"]


class Tally(NamedTuple):
    """What moments are made of: how many examples, their mean, and their scatter about it."""

    num: Size
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]
    """`sum_n (x_n - mean) (x_n - mean)^T`."""


class Axes(NamedTuple):
    """The leading principal axes of data."""

    mean: Float[np.ndarray, "D"]
    directions: Float[np.ndarray, "D k"]
    """Orthonormal columns, by decreasing variance."""
    explained_variance_ratio: float
    """Fraction of the variance of the data that lies along the axes, in [0, 1]."""


Rows: TypeAlias = Annotated[Num[np.ndarray, "N D"], checks.Range()]
Examples: TypeAlias = Annotated[Num[np.ndarray, "N *x"], checks.Range()]


@checks.checked
def moments(features: Rows) -> Moments:
    """Mean and unbiased covariance (divided by `N - 1`) of features `[N, D]`.

    Raises:
        ValueError: `N < 2`, or a feature is not finite.
    """
    if len(features) < 2 or not features.shape[1]:
        raise ValueError(f"features must be those of at least 2 examples, got the shape {features.shape}.")
    return settle(tally(features))


@checks.checked
def tally(features: Rows) -> Tally:
    """Count, mean and scatter of features `[N, D]`, to be joined with those of others.

    Raises:
        ValueError: there is no example, or a feature is not finite.
    """
    x = np.asarray(features, np.float64)
    if not x.size:
        raise ValueError(f"features must be those of at least 1 example, got the shape {x.shape}.")
    mean = x.mean(0)
    return Tally(len(x), mean, (x - mean).T @ (x - mean))


@checks.checked
def join(a: Tally, b: Tally) -> Tally:
    """The tally of the examples of both.

        mean = m_a + (n_b / n) (m_b - m_a),      S = S_a + S_b + (n_a n_b / n) (m_b - m_a) (m_b - m_a)^T

    (Chan, Golub & LeVeque 1979, Eq. 2.1, for vectors.) No digit is lost where the means are far from zero. One of no
    examples changes nothing.

    Raises:
        ValueError: `a` and `b` differ in `D`, or have no example.
    """
    num, apart = a.num + b.num, b.mean - a.mean
    if not num:
        raise ValueError("a must be the tally of 1 example at least where b has none, got two without any.")
    mean = a.mean + apart * (b.num / num)
    return Tally(num, mean, a.scatter + b.scatter + np.outer(apart, apart) * (a.num * b.num / num))


@checks.checked
def settle(tally: Tally) -> Moments:
    """The moments of all examples of a tally, as `moments` gives them at once.

    Raises:
        ValueError: it has fewer than 2 examples.
    """
    if tally.num < 2:
        raise ValueError(f"tally must be that of at least 2 examples, got {tally.num}.")
    return Moments(tally.mean, tally.scatter / (tally.num - 1))


@checks.checked
def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance between two normals, squared as in the FID, in the square of the features' unit.

        d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    (Dowson & Landau 1982; Heusel et al. 2017, Eq. 6.) With `C = F F^T` the trace equals `min |F_a - F_b Q|^2` over
    orthogonal `Q`, and is computed so. This sum of squares is never negative, is accurate where the two are close, and
    needs no covariance of full rank. With few examples the distance is too large (by order `1 / N`), so compare only
    distances from equal numbers of examples.

    Raises:
        ValueError: `a` and `b` differ in `D`: project both with the same axes.
    """
    of_a, of_b = _factor(a.cov), _factor(b.cov)
    left, _, right = np.linalg.svd(of_b.T @ of_a)  # Q = left right (Schönemann 1966)
    return float(np.square(a.mean - b.mean).sum() + np.square(of_a - of_b @ (left @ right)).sum())


@checks.checked
def principal(x: Examples, num: Count) -> Axes:
    """The `num` leading principal axes of data `[N, ...]`, such as images (Pearson 1901; PRML 12.1).

    Raises:
        ValueError: `num` is below 1, or not smaller than both `N` and the numbers in an example.
    """
    rows = _rows(x)
    if not 1 <= num < min(rows.shape):
        raise ValueError(
            f"num must be from 1 to {min(rows.shape) - 1} for {rows.shape[0]} examples of {rows.shape[1]} numbers, "
            f"got {num}."
        )
    mean = rows.mean(0)
    if not (rows != mean).any():
        raise ValueError(f"x must not be the same in all {len(rows)} examples, which have no axes.")
    start = np.ones(min(rows.shape))  # by default svds starts at random
    _, values, directions = scipy.sparse.linalg.svds(rows - mean, k=num, v0=start)
    order = np.argsort(-values)
    ratio = np.square(values).sum() / np.square(rows - mean).sum()
    return Axes(mean, directions[order].T, float(ratio))


@checks.checked
def project(axes: Axes, x: Examples) -> Float[np.ndarray, "N k"]:
    """Coordinates of `x - mean` along the axes, for `x [N, ...]`.

    Raises:
        ValueError: an example has other than `D` numbers.
    """
    rows = _rows(x)
    if rows.shape[1] != len(axes.mean):
        raise ValueError(f"x must be examples of {len(axes.mean)} numbers, got the shape {np.shape(x)}.")
    coordinates: np.ndarray = (rows - axes.mean) @ axes.directions
    return coordinates


@checks.checked
def psnr(images: Examples, others: Examples, *, peak: Positive = 255.0) -> Float[np.ndarray, "N"]:
    """Peak signal-to-noise ratio in decibels of each pair of images, `10 log10(peak^2 / mean (a - b)^2)`.

    Infinite for two equal images. The mean over images is what papers report; it is at least the ratio of the mean
    squared error of all images.

    Args:
        images, others: of equal shape.
        peak: difference between white and black, 255 for 8-bit images, 2 for images in [-1, 1].

    Raises:
        ValueError: the shapes differ, or `peak` is not positive.
    """
    largest = max(
        (float(np.max(x)) for x in (images, others) if x.dtype.kind == "f" and x.size), default=peak
    )
    if peak == 255 and 0 < largest <= 1:
        raise ValueError(
            f"peak must be the difference between white and black, got 255 and images of floats up to {largest:g}: "
            "give peak=1, or 2 for images in [-1, 1]."
        )
    error = np.square(_rows(images) - _rows(others)).mean(1)
    with np.errstate(divide="ignore"):
        ratio: np.ndarray = 10 * np.log10(peak**2 / error)
    return ratio


def _factor(cov: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """`F` with `F F^T = cov`; eigenvalues below 0, which are rounding errors, count as 0."""
    values, vectors = np.linalg.eigh(cov)
    factor: np.ndarray = vectors * np.sqrt(np.maximum(values, 0))
    return factor


def _rows(x: Num[np.ndarray, "N *x"]) -> Float[np.ndarray, "N D"]:
    return np.asarray(x, np.float64).reshape(len(x), math.prod(np.shape(x)[1:]))
