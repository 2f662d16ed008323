"""Data and starts for the tests of EM."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm

KEY = jax.random.key(0)


each_structure = pytest.mark.parametrize("covariance", gmm.COVARIANCES)


def problem(n=400, dims=3, components=3, seed=0, spread=3.0, dtype=np.float32):
    """Rows of a mixture, and a start some way from it."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(components, dims))
    scales = rng.uniform(0.4, 1.5, (components, dims))
    z = rng.integers(components, size=n)
    x = means[z] + scales[z] * rng.normal(size=(n, dims))
    return x.astype(dtype), (means + rng.normal(size=means.shape)).astype(dtype)


def start_at(means, covariance, scale=1.0):
    components, dims = means.shape
    shape = {
        "full": (components, 1, 1),
        "tied": (1, 1, 1),
        "diagonal": (components, dims),
        "spherical": (components, 1),
    }
    covs = scale * np.ones(shape[covariance])
    if covariance in ("full", "tied"):
        covs = covs * np.eye(dims)
    return gmm.GMM(*(jnp.asarray(a, means.dtype) for a in (np.full(components, 1 / components), means, covs)))


def precision(x64):
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()
