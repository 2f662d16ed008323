"""Calls of steps 1 to 5: `normal`, `gmm`, `em`."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import em, gmm, normal
from tests.api.walk import call

KEY = jax.random.key(0)
ONE = normal.Normal(jnp.array(0.5), jnp.array(2.0))
COV = jnp.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.5]])
MANY = normal.MultivariateNormal(jnp.array([0.5, -1.0, 2.0]), COV)
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
MIX = gmm.GMM(jnp.array([0.3, 0.7]), jnp.array([[0.0, 1, 2], [3, 4, 5]]), jnp.stack([COV, 2 * COV]))
STATISTICS = em.e_step(MIX, jnp.asarray(X))
NORMAL = {
    "log_prob": (call(MANY, X), call(ONE, X[:, 0])),
    "cdf": call(ONE, X[:, 0]),
    "interval": call(ONE, -1.0, 2.0, free=("low: infinity", "high: infinity")),
    "log_cdf": call(ONE, X[:, 0]),
    "sample": call(KEY, MANY, 3),
    "fit": call(X, weights=np.ones(12, np.float32), unbiased=True, regularization=0.1),
    "entropy": call(MANY),
    "kl": call(MANY, MANY),
    "marginal": call(MANY, (0, 2)),
    "conditional": call(MANY, (0, 2), np.array([0.5, 1.0], np.float32)),
    "affine": call(MANY, 2.0, 1.0),
    "cholesky": call(COV),
    "whiten": call(jnp.linalg.cholesky(COV), jnp.asarray(X)),
    "whiten_columns": call(jnp.linalg.cholesky(COV), jnp.asarray(X).T),
    "check_dims": call((0, 2), 3),
    "constrain": call(normal.unconstrain(MANY)),
    "unconstrain": call(MANY),
    "constrain_factor": call(COV),
    "unconstrain_factor": call(jnp.linalg.cholesky(COV)),
}
WHITE = gmm.whitening(MIX)
ONES = np.ones(12, np.float32)
GMM = {
    "whitening": call(MIX),
    "whitened": call(WHITE, X),
    "with_one": call(jnp.asarray(X)),
    "log_density": call(WHITE, gmm.whitened(WHITE, jnp.asarray(X))),
    "component_log_prob": call(MIX, X),
    "log_joint": call(MIX, X),
    "log_prob": call(MIX, X),
    "responsibilities": call(MIX, X),
    "sample": call(KEY, MIX, 3),
    "diffuse": call(MIX, 0.8, 0.6),
    "marginal": call(MIX, (0, 2)),
    "conditional": call(MIX, (0, 2), np.array([0.5, 1.0], np.float32)),
    "structure": call(MIX),
    "num_parameters": call(MIX),
    "bic": call(MIX, X),
    "aic": call(MIX, X),
    "constrain": call(gmm.unconstrain(MIX)),
    "unconstrain": call(MIX),
}
EM = {
    "e_step": call(MIX, X, ONES, chunk_size=5),
    "m_step": call(STATISTICS, covariance="full", regularization=1e-3),
    "recentre": call(STATISTICS, MIX.means),
    "stepwise": call(STATISTICS, STATISTICS, 0.5),
    "step": call(MIX, X, ONES, regularization=1e-3, chunk_size=5),
    "compile_step": call(parallel="jit", regularization=1e-3, chunk_size=5),
    "fit": call(
        KEY,
        X,
        2,
        covariance="full",
        init="kmeans++",
        num_restarts=1,
        max_iters=3,
        tol=1e-4,
        regularization=1e-3,
        weights=ONES,
        chunk_size=5,
    ),
}
KEYS = {
    "example_index": call(3),
    "per_example": call(KEY, 3, index=np.arange(3)),
    "threefry": call(KEY),
    "normal": call(
        KEY, (3, 2), index=np.arange(3), free=("index: negative",)
    ),  # any number has draws of its own
    "mean_over_devices": call(jnp.ones(3)),
}
EXAMPLES = {
    f"{package}.{name}": example
    for package, examples in (("normal", NORMAL), ("gmm", GMM), ("em", EM), ("keys", KEYS))
    for name, example in examples.items()
}
