"""Image to image, inpainting and a distilled network against what diffusers' pipelines make of the same noise."""

import numpy as np
import pytest

from gen_jax import retouch
from tests import retouch_by_diffusers as peer
from tests.small_pipelines import FOUND, INPUTS, KEY, model

QUICK = (("inpaint in part", "ddim"),)


CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in peer.CASES]


@pytest.mark.parametrize(("name", "solver"), CASES)
def test_images_are_those_of_diffusers(name, solver):
    """At a size that is not the model's own."""
    m, weights = model(name.split()[0])
    options = {"noise": INPUTS["noise"], "drawn": False, "solver": solver}
    if inpaints := name.startswith("inpaint"):
        options["strength"] = peer.STRENGTH if name.endswith("in part") else 1.0
        ours = retouch.inpaint(m, weights, KEY, INPUTS["images"], INPUTS["known"], **options)
    else:
        ours = retouch.vary(m, weights, KEY, INPUTS["images"], strength=peer.STRENGTH, **options)
    new = ~INPUTS["known"] if inpaints else np.ones((1, 1, 1, 1), bool)
    error = np.abs(np.where(new, ours - FOUND[f"{name}/{solver}"], 0)).max()
    assert error <= 1e-4, error
    if inpaints:
        np.testing.assert_array_equal(np.where(new, 0, ours), np.where(new, 0, INPUTS["images"]))


@pytest.mark.slow
def test_the_stored_images_are_those_of_diffusers_that_is_installed():
    pytest.importorskip("diffusers")
    for name, theirs in peer.expected().items():
        if "/" in name:
            np.testing.assert_allclose(FOUND[name], theirs, atol=1e-5)
