"""What is given is not taken for what is not: 0 and the empty text are refused, not replaced by the defaults."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gen_jax import generate, plots, retouch, samplers
from gen_jax.codec import Latents
from gen_jax.diffusion.process import DDPM
from gen_jax.model import Sampling
from tests.test_retouch import GOOD, MASK, MODEL, WEIGHTS

KEY = jax.random.key(0)
STAGE = (
    replace(
        MODEL,
        process=DDPM(),
        codec=Latents((4, 4, 1)),
        sampling=Sampling("euler", 4, schedule=samplers.Schedule()),
    ),
    WEIGHTS,
)
CALLS = {
    "plan": lambda **given: generate.plan(MODEL, **given),
    "sample": lambda **given: generate.sample(MODEL, WEIGHTS, KEY, **{"num": 2, **given}),
    "vary": lambda **given: retouch.vary(MODEL, WEIGHTS, KEY, GOOD, **given),
    "inpaint": lambda **given: retouch.inpaint(MODEL, WEIGHTS, KEY, GOOD, MASK, **given),
    "refine": lambda **given: generate.refine(STAGE, STAGE, KEY, **{"num": 2, **given}),
    "tile": lambda **given: plots.tile(np.zeros((2, 4, 4, 1), np.uint8), **given),
}
SHARED = {"nfe": "nfe must be at least 1", "solver": "solver must be the name of one of .* got ''"}
GIVEN = {
    "plan": SHARED,
    "sample": {
        **SHARED,
        "num": "num must be",
        "chunk": "chunk must be",
        "height": "height must be at least 1",
        "width": "width must be at least 1",
    },
    "vary": {**SHARED, "strength": "strength must be"},
    "inpaint": {**SHARED, "strength": "strength must be", "resample": "resample"},
    "refine": SHARED,
    "tile": {"columns": "columns must be at least 1"},
}


@pytest.mark.parametrize(
    ("call", "name", "message"), [(c, name, said) for c, each in GIVEN.items() for name, said in each.items()]
)
def test_nothing_is_not_taken_for_what_is_not_given(call, name, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](**{name: {"solver": "", "strength": 0.0}.get(name, 0)})
