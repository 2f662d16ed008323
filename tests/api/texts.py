"""Calls of texts, of what is encoded once, and of the judge of scenes."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import captions, codec, data, text, training
from gen_jax.conditioning import Reader, Text
from gen_jax.data.sources import scenes
from gen_jax.evaluation import scenes as evaluation
from gen_jax.evaluation.scenes import judge as judging
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.text import prompts
from tests.api.walk import call

KEY = jax.random.key(0)
FOLDER = tempfile.mkdtemp(prefix="gen_jax-walk-")
TEXTS = ["a large red seven", "a small blue three", "", "a green two"]
TOKENIZER = text.train(TEXTS, num_merges=40, length=12)
ENCODER = CLIPTextConfig(TOKENIZER.vocab_size, width=8, layers=1, heads=2, hidden=8, length=12)
PARAMS = ENCODER.build().init(KEY, jnp.zeros((1, 12), jnp.int32))
CONDITION = Text((Reader(TOKENIZER, ENCODER),), 0.5)
WEIGHTS = {"text_encoder": PARAMS}
IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
SOURCE = data.Arrays({"image": IMAGES, "text": np.array(TEXTS, object)})
READ = captions.encode_all(CONDITION, WEIGHTS, SOURCE).arrays
SMALL = AutoencoderKLConfig(1, 1, (4, 4), blocks=1, latent_channels=2, groups=2, middle_attention=False)
CODEC = codec.Latents((4, 4, 2), autoencoder=SMALL)
AUTOENCODER = SMALL.build().init(KEY, jnp.zeros((1, 8, 8, 1)))
SCENES = [
    "a large red seven",
    "a small blue three above a large red two",
    "a small green two",
    "a small blue three above a large green two",
]
PICTURES = scenes.render([scenes.parse(each) for each in SCENES])
STATES = np.random.default_rng(0).normal(size=(2, 1, 12, 8)).astype(np.float32)


def judge(crops: np.ndarray) -> np.ndarray:
    """Sees a seven everywhere."""
    return np.tile(np.eye(10, dtype=np.float32)[7], (len(crops), 1))


def trained() -> str:
    """The directory of a judge that was trained for a step."""
    net = judging._NET
    x = jnp.zeros((1, judging.SIDE, judging.SIDE, 1)), jnp.zeros(1)
    shapes = jax.eval_shape(net.init, KEY, *x)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    state = training.TrainState.create(zeros, optax.sgd(0.1), KEY, ema=False)
    with training.Checkpoints(f"{FOLDER}/judge/checkpoints") as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(1)), {})
    return f"{FOLDER}/judge"


REPORT = evaluation.score(judge, PICTURES, SCENES)
TEXT = {
    "train": call(TEXTS, num_merges=3, length=8, pad="<|endoftext|>"),
    "prompts.parse": call("a (red:1.3) seven", free=("prompt: misspelt",)),
    "prompts.read": call(TOKENIZER, ["a (red:1.3) seven"], chunks=2, weighted=True),
    "prompts.encode": call(
        ENCODER.build().apply, PARAMS, prompts.read(TOKENIZER, TEXTS), hidden=-1, restore_mean=False
    ),
    "prompts.weigh": call(STATES, np.ones((2, 1, 12), np.float32), restore_mean=False),
}
ENCODED = {
    "captions.encode_all": call(
        CONDITION, WEIGHTS, SOURCE, FOLDER, batch_size=2, free=("directory: misspelt",)
    ),
    "captions.empty": call(CONDITION, WEIGHTS),
    "captions.of_batch": call(CONDITION, KEY, READ, captions.empty(CONDITION, WEIGHTS)),
    "latent.encode_all": call(
        CODEC, AUTOENCODER, SOURCE, FOLDER, batch_size=2, free=("directory: misspelt",)
    ),
    "latent.check": call(CODEC, SOURCE),
}
SCORES = {
    "train": call(trained(), steps=1, batch_size=8, free=("workdir: misspelt",)),
    "accuracy": call(judge),
    "read": call(judge, PICTURES),
    "captions": call(evaluation.read(judge, PICTURES), free=("of: offset: infinity",)),
    "score": call(judge, PICTURES, SCENES),
    "ceiling": call(judge, SCENES, seed=1),
    "share": call(np.array([[True, False]] * 3), np.array([[True, True]] * 3)),
    "as_dict": call(REPORT),
    "table": call(REPORT, REPORT),
}
EXAMPLES = {
    **{f"text.{name}": example for name, example in TEXT.items()},
    **ENCODED,
    **{f"evaluation.scenes.{name}": example for name, example in SCORES.items()},
}
