"""What a device would make something else of is refused where it comes in: masks, and integers of more than 32 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import data, em, gmm, normal, training

KEY = jax.random.key(0)
MASKED = np.ma.masked_array([1.0, 2.0, 999.0], mask=[0, 0, 1])
LARGE = np.arange(8) * 2**33
MIXTURE = gmm.GMM(jnp.full(2, 0.5), jnp.zeros((2, 1)), jnp.ones((2, 1, 1)))
STATE = training.TrainState.create({"w": jnp.zeros(())}, training.adam(0.1, num_steps=2)[0], KEY)


def fit(batches):
    step = training.make_step(
        lambda params, key, batch: (params["w"] * jnp.mean(batch["y"]), {}),
        training.adam(0.1, num_steps=2)[0],
    )
    return training.fit(step, STATE, batches, num_steps=2, options=training.Options(progress=False))


@pytest.mark.parametrize(
    "call",
    [
        lambda: normal.fit(MASKED),
        lambda: normal.log_prob(normal.Normal(0.0, 1.0), MASKED),
        lambda: gmm.log_prob(MIXTURE, MASKED[:, None]),
        lambda: em.fit(KEY, MASKED[:, None], 1),
        lambda: data.batches({"x": MASKED}, 2, key=KEY),
        lambda: fit([{"y": MASKED}]),
    ],
)
def test_a_mask_is_not_dropped(call):
    with pytest.raises(ValueError, match=r"without a mask, got one that hides 1 of 3 values.*compressed"):
        call()


def test_an_array_that_masks_nothing_is_an_array():
    assert normal.fit(np.ma.masked_array([1.0, 3.0])).mean == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: data.batches({"y": LARGE}, 4, key=KEY),
        lambda: fit([{"y": LARGE}]),
    ],
)
def test_integers_do_not_wrap(call):
    with pytest.raises(
        ValueError, match=r"integers from -2,147,483,648 to 2,147,483,647.*got 60,129,542,144"
    ):
        call()


def test_labels_of_a_file_do_not_wrap(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((8, 4, 4), np.uint8), label=LARGE)
    with pytest.raises(ValueError, match=r"labels of .*got 60,129,542,144"):
        data.load(str(tmp_path / "a.npz"))


def test_large_integers_that_become_floats_are_centred():
    """Of times in seconds or nanoseconds the deviation is right, as `normal.fit` says."""
    assert normal.fit(np.array([2**40, 2**40 + 2])).std == 1


def test_small_integers_of_64_bits_are_fine():
    feed = data.batches({"y": np.arange(8, dtype=np.int64)}, 4, key=KEY)
    assert feed.arrays["y"].shape == (8,)
