"""The classifier: any image, told the time, trainable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks.classifier import Classifier
from tests.networks.drawn import parameters

NET = Classifier(5, channels=(8, 16), embedding=16, time_scale=1000.0)


@pytest.mark.parametrize("shape", [(28, 28, 1), (11, 9, 3)])
def test_classifier_takes_any_image(shape):
    params = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    logits = jax.eval_shape(NET.apply, params, jnp.zeros((3, *shape)), jnp.zeros(3))
    assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)


def test_classifier_is_linear_in_its_features_and_told_the_time():
    x, t = jax.random.normal(jax.random.key(0), (2, 6, 6, 1)), jnp.array([0.1, 0.7])
    params = parameters(NET, x, t)
    apply = jax.jit(NET.apply, static_argnames="features")
    logits, features = apply(params, x, t), apply(params, x, t, features=True)
    linear = params["params"]["logits"]
    np.testing.assert_allclose(
        logits, features @ linear["kernel"] + linear["bias"][None], rtol=1e-4, atol=1e-5
    )
    later = apply(params, x, t + 0.2)
    assert np.abs(later - logits).max() > 1e-3
    np.testing.assert_allclose(apply(params, x[::-1], t[::-1])[::-1], logits, rtol=1e-4, atol=1e-5)
