"""The network of the ladder VAE: the paths of its parameters, and the order of its levels."""

import jax
import jax.numpy as jnp

from gen_jax import hvae, likelihoods
from gen_jax.networks import ladder

STAGES = (ladder.Stage(6, (3, 2)), ladder.Stage(5, (2,), halvings=1, hidden=4))


def test_parameters_keep_the_paths_that_checkpoints_have():
    """The trees of runs of version 0.1, whose names are no longer those of the attributes."""
    net = ladder.Ladder((7, 6, 1), 1, STAGES, patch=2)
    model = hvae.Ladder(net, likelihoods.Bernoulli())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 7, 6, 1)))["params"]
    ends = {"enters_0", "enters_1", "ups_0_0", "ups_1_0", "bias_0", "bias_1", "leaves_0", "last"}
    assert set(shapes) == ends | {"rungs_0", "rungs_1", "rungs_2"}
    assert set(shapes["rungs_0"]) == {"says", "sees", "tells", "blocks_0"}
    assert shapes["rungs_0"]["says"]["Dense_0"]["kernel"].shape == (6, 2 * 3 + 6)
    assert shapes["rungs_2"]["tells"]["kernel"].shape == (2, 5)


def test_level_0_is_nearest_the_data():
    net = ladder.Ladder((7, 6, 1), 1, STAGES, patch=2)
    assert net.levels == 3
    assert net.stage_of == [0, 0, 1]
    assert net.latent_shapes == [(4, 3, 3), (4, 3, 2), (2, 2, 2)]
