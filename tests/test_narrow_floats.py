"""Steps 1 to 5 of numbers of 16 bits: what float32 says of the same numbers, and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import em, gmm, normal
from gen_jax.diffusion import oracle, process

KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).normal(size=(60, 2)) + np.array([3, -1])
NORMAL = normal.Normal(jnp.float32(0.5), jnp.float32(1.5))
MANY = normal.MultivariateNormal(jnp.float32([3, -1]), jnp.float32([[1.5, 0.25], [0.25, 1]]))
MIXTURE = gmm.GMM(
    jnp.float32([0.25, 0.75]),
    jnp.float32([[2, 0], [4, -2]]),
    jnp.stack([MANY.cov, jnp.eye(2, dtype=np.float32)]),
)
"""Numbers of few digits, so that they are the same in all types."""
OF_DATA = {
    "normal.fit": lambda x: normal.fit(x[:, 0]),
    "normal.fit of columns": normal.fit,
    "normal.log_prob": lambda x: normal.log_prob(MANY, x),
    "normal.cdf": lambda x: normal.cdf(NORMAL, x),
    "normal.whiten": lambda x: normal.whiten(normal.cholesky(MANY.cov), x),
    "gmm.log_prob": lambda x: gmm.log_prob(MIXTURE, x),
    "gmm.responsibilities": lambda x: gmm.responsibilities(MIXTURE, x),
    "em.e_step": lambda x: em.e_step(MIXTURE, x),
    "em.step": lambda x: em.step(MIXTURE, x),
    "em.compile_step": lambda x: em.compile_step()(MIXTURE, x),
    "em.fit": lambda x: em.fit(KEY, x, 2, max_iters=3)[:2],
}
OF_PARAMETERS = {
    "normal.log_prob": (NORMAL, lambda p: normal.log_prob(p, jnp.float32([0.1, 3]))),
    "normal.log_prob of columns": (MANY, lambda p: normal.log_prob(p, ROWS.astype(np.float32))),
    "normal.sample": (MANY, lambda p: normal.sample(KEY, p, 3)),
    "normal.entropy": (MANY, normal.entropy),
    "normal.kl": (MANY, lambda p: normal.kl(p, MANY._replace(mean=0 * MANY.mean))),
    "normal.conditional": (MANY, lambda p: normal.conditional(p, [0], [1.0])),
    "normal.affine": (MANY, lambda p: normal.affine(p, jnp.float32([[1, 2], [0, 1], [1, 1]]))),
    "normal.unconstrain": (MANY, normal.unconstrain),
    "gmm.log_prob": (MIXTURE, lambda p: gmm.log_prob(p, ROWS.astype(np.float32))),
    "gmm.sample": (MIXTURE, lambda p: gmm.sample(KEY, p, 3)),
    "gmm.conditional": (MIXTURE, lambda p: gmm.conditional(p, [0], [1.0])),
    "gmm.unconstrain": (MIXTURE, gmm.unconstrain),
    "gmm.diffuse": (MIXTURE, lambda p: gmm.diffuse(p, 0.5, 0.25)),
    "em.step": (MIXTURE, lambda p: em.step(p, ROWS.astype(np.float32))),
    "em.fit": (MIXTURE, lambda p: em.fit(KEY, ROWS.astype(np.float32), 2, init=p, max_iters=2)[:2]),
    "oracle.mixture": (
        MIXTURE,
        lambda p: oracle.mixture(p, process.VP())(jnp.float32(ROWS), jnp.float32(0.5)),
    ),
}
each_type = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


def equal(narrow, wide):
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@each_type
@pytest.mark.parametrize("name", OF_DATA)
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_data_of_16_bits_are_those_of_32(name, dtype, make):
    x = ROWS.astype(dtype)
    equal(OF_DATA[name](make(x)), OF_DATA[name](make(x.astype(np.float32))))


@each_type
@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_parameters_of_16_bits_are_those_of_32(name, dtype):
    params, function = OF_PARAMETERS[name]
    equal(function(jax.tree.map(lambda a: a.astype(dtype), params)), function(params))


@each_type
def test_a_covariance_of_16_bits_is_factored(dtype):
    equal(normal.cholesky(MANY.cov.astype(dtype)), normal.cholesky(MANY.cov))


def test_data_whose_squares_float16_does_not_hold_are_fitted():
    x = np.float16([-3e4, 0, 1e4, 6e4])
    np.testing.assert_allclose(normal.fit(x).std, np.float64(x).std(), rtol=1e-5)
