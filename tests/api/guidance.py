"""Calls of step 10: `guidance`, `inverse`, `editing`, `generate`, `retouch`."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import generate, inverse, normal, samplers
from gen_jax.codec import Latents, Pixels
from gen_jax.conditioning import Labels, Nothing
from gen_jax.diffusion import oracle, process
from gen_jax.model import Model, Sampling
from tests.api.walk import call
from tests.test_latent import Linear

KEY = jax.random.key(0)
PROC = process.DDPM(50, beta_max=0.3)
X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
DENOISE = oracle.gaussian(normal.Normal(jnp.array(0.5), jnp.array(1.0)), PROC)
GRID = samplers.times.log_snr(PROC, 4, final="stop")
PLAN = samplers.DDIM().plan(PROC, samplers.times.uniform(PROC, 4))
LATER = samplers.DDIM().plan(PROC, samplers.times.uniform(PROC, 4, t_start=25.0))
LABEL = np.array([0, 1, 1])
KNOWN = np.array([[True, False]])
MASK = inverse.Mask(jnp.array(KNOWN))
INDEX = np.arange(3)


def of_label(x_t, t, label):
    """A denoiser that is told a label."""
    return DENOISE(x_t, t) + label[:, None]


def classify(x_t, t):
    """Two classes."""
    return jnp.stack([x_t[:, 0], -x_t[:, 0]], 1)


@dataclass(frozen=True)
class Network:
    """It says nothing, but has parameters."""

    def build(self):
        apply = lambda params, x_t, t, *told: 0 * x_t + params["bias"]
        return SimpleNamespace(apply=apply, init=lambda *_: {"bias": jnp.zeros(1)})


MODEL = Model(Network(), PROC, "v", Labels(3), Pixels((4, 4, 1)), Sampling("ddim", 2, 2.0))
WEIGHTS = {"network": {"bias": jnp.zeros(1)}}
STAGED = replace(
    MODEL,
    condition=Nothing(),
    codec=Latents((4, 4, 1), autoencoder=Linear()),
    sampling=Sampling("euler", 4, schedule=samplers.Schedule()),
)
WITH_CODEC = WEIGHTS | {"autoencoder": jnp.eye(1)}
X_T = np.zeros((2, 4, 4, 1), np.float32)
IMAGES = np.full((2, 4, 4, 1), 100, np.uint8)
HALF = np.zeros((1, 4, 4, 1), bool)
HALF[:, :2] = True
heard = lambda step, x0_hat: None
OF_CHANNELS = ("mask: one column",)
"""A mask of pixels is for all channels."""
WORK = Path(tempfile.mkdtemp(prefix="gen_jax-api-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
SAMPLES = str(
    generate.write_shards(WORK / "samples", lambda index: {"samples": np.ones((len(index), 2))}, 5, shard=2)
)
ELSEWHERE = ("directory: misspelt",)  # another directory
GUIDANCE = {
    "guidance.interval": call(2.0, PROC, 5.0, 20.0),
    "guidance.cfg_plus_plus": call(0.5, PROC, GRID),
    "guidance.classifier": call(DENOISE, lambda x_t, t: -jnp.square(x_t).sum(1), PROC, 2.0),
    "guidance.log_class": call(
        classify, LABEL, free=("label: large",)
    ),  # how many there are is not known yet
    "guidance.classifier_loss": call(
        lambda params, x_t, t: classify(x_t, t), PROC, prepare=lambda key, image: image
    ),
    "guidance.classifier_free": call(DENOISE, DENOISE, 2.0, rescale=0.5, without=DENOISE),
    # a condition may be anything; what is there is compared with the samples
    "guidance.classifier_free_batched": call(
        *(of_label, LABEL, LABEL + 1, np.array([1.0, 2.0, 3.0], np.float32)),
        rescale=0.5,
        without=DENOISE,
        free=("weight: one axis less",),  # one for all
    ),
    "guidance.linear": call([DENOISE, DENOISE], [0.5, 0.5]),
    "inverse.dps": (
        # found where it is measured, of what the denoiser returns: tests
        call(DENOISE, PROC, MASK, X, 0.5, free=("y: NaN", "y: infinity", "y: one column")),
        call(DENOISE, PROC, MASK, X, step_size=0.5, free=("y: NaN", "y: infinity", "y: one column")),
    ),
    "inverse.pigdm": call(DENOISE, PROC, MASK, X, 0.5, data_var=1.0, free=("y: one column",)),
    "inverse.replacement": call(KEY, DENOISE, PROC, PLAN, X, X, KNOWN, index=INDEX, free=OF_CHANNELS),
    "inverse.repaint": call(
        *(KEY, DENOISE, PROC, PLAN, X, X, KNOWN), resample=2, jump=1, index=INDEX, free=OF_CHANNELS
    ),
    "editing.sdedit": call(KEY, DENOISE, PROC, LATER, X, index=INDEX),
    "editing.encode": call(DENOISE, PROC, samplers.DDIM(), GRID, X),
    "editing.decode": call(DENOISE, PROC, samplers.DDIM(), GRID, X),
    "editing.interpolate": call(X, X + 1, 0.5),
}
GENERATE = {
    "choose": call(MODEL, KEY, np.arange(2), label=1),
    "conditions": call(MODEL, KEY, 2, label=1),
    "denoiser": call(
        *(MODEL, WEIGHTS, LABEL, 2.0),
        null=LABEL,
        rescale=0.5,
        rescale_of="output",
        rounded=False,
        free=("null: fractions",),  # "cond" is what it is called then
    ),
    "distilled": call(MODEL),
    "local_mesh": call(1),
    "plan": call(MODEL, "ddim", 2),
    "refine": call(
        (STAGED, WITH_CODEC),
        (STAGED, WITH_CODEC),
        *(KEY, 1),
        part=0.5,
        solver="euler",
        nfe=4,
        guidance=1.0,
        height=4,
        width=4,
        x_T=X_T[:1],
        on_step=heard,
    ),
    "sample": call(
        *(MODEL, WEIGHTS, KEY, 2),
        label=1,
        solver="ddim",
        nfe=2,
        guidance=2.0,
        rescale=0.5,
        rescale_of="x0",
        height=4,
        width=4,
        x_T=X_T,
        chunk=2,
        shared=False,
        on_step=heard,
    ),
    "in_chunks": call(lambda index: index, 5, 2, shared=False),
    "moments": call(SAMPLES, lambda samples: samples.reshape(len(samples), -1)),
    "read": call(SAMPLES, "samples", shared=False),
    "write_shards": call(
        f"{WORK}/shards", lambda index: {"samples": index}, 5, shard=2, says={"key": 0}, free=ELSEWHERE
    ),
    "write": call(
        *(MODEL, WEIGHTS, KEY, 2, f"{WORK}/written"),
        label=1,
        solver="ddim",
        nfe=2,
        guidance=2.0,
        rescale=0.5,
        rescale_of="x0",
        height=4,
        width=4,
        shard=2,
        chunk=2,
        free=(*ELSEWHERE, "label: zero"),  # of other samples, which it says
    ),
    "sampler": call(MODEL, generate.local_mesh(1), interval=(5.0, 20.0), rescale=0.5, rescale_of="x0"),
    "sized": call(MODEL, 4, 4),
    "weight": call(MODEL, WEIGHTS, 2.0),
}
ANEW = {
    "label": 1,
    "solver": "ddim",
    "nfe": 2,
    "guidance": 2.0,
    "rescale": 0.5,
    "rescale_of": "x0",
    "noise": X_T,
    "on_step": heard,
}
RETOUCH = {
    "vary": call(MODEL, WEIGHTS, KEY, IMAGES, strength=0.5, **ANEW),
    "inpaint": call(MODEL, WEIGHTS, KEY, IMAGES, HALF, strength=0.5, resample=2, **ANEW),
    "known_latents": call(np.ones((1, 4, 4, 1), bool), 2),
}
EXAMPLES = {
    **GUIDANCE,
    **{f"generate.{name}": example for name, example in GENERATE.items()},
    **{f"retouch.{name}": example for name, example in RETOUCH.items()},
}
