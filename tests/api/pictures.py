"""Calls of what images are read, checked, shown and compared with: `data`, `codec`, `plots`, `metrics`, `previews`."""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import codec, metrics
from gen_jax.data.sources import scenes
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from tests import described
from tests.api.walk import call

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FOLDER = Path(tempfile.mkdtemp(prefix="gen_jax-walk-"))
IMAGES = RNG.integers(0, 256, (4, 8, 6, 1)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
NUMBERS = RNG.uniform(-1, 1, (4, 8, 6, 1)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
ARRAYS = {"image": IMAGES, "label": LABEL}
PAIR = scenes.Scene(
    (scenes.Object(7, "red", "large"), scenes.Object(3, "blue", "small")),
    "above",
)
FEATURES = RNG.normal(size=(12, 4)).astype(np.float32)
AXES = metrics.principal(FEATURES, 2)
MOMENTS = metrics.moments(FEATURES)
TALLY = metrics.tally(FEATURES)
TINY = AutoencoderTinyConfig(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
LINES = FOLDER / "metrics.jsonl"
LINES.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(3)))
(FOLDER / "table.csv").write_text("a,b\n1,2\n3,4.5\n")
SET = np.arange(8)[:, None, None, None] * np.ones((1, 8, 8, 1))
np.savez(FOLDER / "set.npz", image=SET.astype(np.uint8), label=np.arange(8) % 3)
PATH = str(FOLDER / "set.npz")


def tiny_parameters():
    """Of the tiny autoencoder."""
    return TINY.build().init(KEY, jnp.zeros((1, 4, 4, 3)))


def out(name: str) -> str:
    """A path to write to."""
    return str(FOLDER / name)


DATA = {
    "to_unit": call(IMAGES),
    "to_zero_one": call(IMAGES),
    "to_uint8": call(NUMBERS),
    "from_zero_one": call(NUMBERS),
    "flip": call(KEY, IMAGES, free=("x: fractions",)),
    "dequantize": call(KEY, IMAGES),
    "binarize": call(KEY, IMAGES),
    "source": (
        call(PATH, split="train[:50%]", image_size=4, crop="center", channels=3, unreadable="raise"),
        call("mnist", split="test", free=("name: misspelt",)),  # a name of TFDS, which says so
    ),
    "load": call(PATH),
    "info": call(PATH),
    "table": (call(str(FOLDER / "table.csv")), call("heights")),
    "batches": call(ARRAYS, 2, key=KEY, memory_budget=2**20, transform=lambda batch: batch),
    "sources.scenes.caption": call(PAIR),
    "sources.scenes.parse": call(scenes.caption(PAIR)),
    "sources.scenes.held_out_objects": call(PAIR),
    "sources.scenes.is_held_out": call(PAIR),
    "sources.scenes.render": call([PAIR], split="test", seed=1),
}
PLOTS = {
    "tile": call(IMAGES, 3, 1),
    "enlargement": call(40, 30),
    "save_grid": call(out("grid.png"), IMAGES, 2, 2, {"parameters": "a seven"}),
    "save_image": call(out("image.png"), IMAGES[0], {"parameters": "a seven"}),
    "save_strips": call(
        out("strips.png"), IMAGES[None], list("abcd"), "Title", ["one"], free=("title: misspelt",)
    ),
    "save_captioned": call(out("captioned.png"), IMAGES, list("abcd"), 2),
    "save_maps": call(
        out("maps.png"),
        COLOUR[0],
        NUMBERS[0, :, :, :1].repeat(2, -1),
        ["a", "b"],
        "Title",
        2,
        free=("title: misspelt",),
    ),
    "figure": call(out("figure.png"), width=3.0, height=2.0, free=("path: misspelt",)),  # written at its end
    "read_metrics": call(str(LINES)),
    "save_loss": call(out("loss.png"), str(LINES), name="loss", label="nats", free=("label: misspelt",)),
}
METRICS = {
    "moments": call(FEATURES),
    "frechet_distance": call(MOMENTS, MOMENTS),
    "principal": call(FEATURES, 2),
    "project": call(AXES, FEATURES),
    "join": call(TALLY, metrics.tally(FEATURES[:3] + 1)),
    "settle": call(TALLY),
    "tally": call(FEATURES),
    "psnr": call(IMAGES, IMAGES // 2, peak=255.0, free=("images: fractions", "others: fractions")),
}
PREVIEWS = {
    "linear": call(described.model(), {"network": None}, COLOUR),
    "fit": call(RNG.normal(size=(4, 4, 4, 2)).astype(np.float32), COLOUR),
    "squares": call(8, 4, 3, 2),
    "tiny": call(TINY, tiny_parameters()),
    "saving": call(out("now.png"), lambda x_0: IMAGES, free=("path: misspelt",)),  # written later
}
LABELS = {
    "check_labels": call(LABEL, 3, ("cat", "dog", "emu")),
    "drop": call(KEY, jnp.asarray(LABEL), 3, 0.1),
}
EXAMPLES = {
    **{f"data.{name}": example for name, example in DATA.items()},
    **{f"plots.{name}": example for name, example in PLOTS.items()},
    **{f"metrics.{name}": example for name, example in METRICS.items()},
    **{f"previews.{name}": example for name, example in PREVIEWS.items()},
    **{f"conditioning.{name}": example for name, example in LABELS.items()},
    "codec.image_shape": call(codec.Pixels((8, 6, 1))),
    "codec.check_data": call(codec.Pixels((8, 6, 1)), ARRAYS),
}
