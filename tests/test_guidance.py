"""Classifier-free guidance on mixtures with labels, where every denoiser and posterior is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm, guidance
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import VP

PROCESS = VP()
MODEL = oracle.mixture(
    gmm.GMM(
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array([[2.0, -1.0], [-1.5, 0.5], [0.0, 2.0]]),
        jnp.array([[0.5, 0.1], [0.2, 0.2], [0.05, 0.9]]),
    ),
    PROCESS,
    labels=jnp.array([0, 1, 0]),
)
X = jax.random.normal(jax.random.key(0), (20, 2))
each_time = pytest.mark.parametrize("t", [0.05, 0.4, 0.8])


@each_time
def test_weights_zero_and_one_are_the_denoisers_themselves(t):
    t, conditional = jnp.float32(t), MODEL.given(0)
    for weight, expected in ((0.0, MODEL), (1.0, conditional)):
        np.testing.assert_array_equal(
            guidance.classifier_free(conditional, MODEL, weight)(X, t), expected(X, t)
        )


@each_time
@pytest.mark.parametrize("weight", [-1.0, 0.5, 3.0])
def test_the_score_is_that_of_the_density_times_a_power_of_the_classifier(t, weight):
    """grad log [p_t(x) p_t(y | x)^w], by automatic differentiation of the exact densities."""
    t, label = jnp.float32(t), jnp.zeros(len(X), jnp.int32)
    log_density = lambda x: jnp.sum(MODEL.log_prob(x, t) + weight * MODEL.log_class(x, t, label))
    x0_hat = jax.jit(lambda w: guidance.classifier_free(MODEL.given(0), MODEL, w)(X, t))(weight)
    score = (PROCESS.alpha(t) * x0_hat - X) / PROCESS.sigma(t) ** 2
    np.testing.assert_allclose(score, jax.grad(log_density)(X), rtol=2e-4, atol=2e-4)
