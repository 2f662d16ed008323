"""Objects that hold data, describe a model or train one, and calls of their methods."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import codec, data, generate, launch, training
from gen_jax.conditioning import Labels, Nothing
from gen_jax.data.sources import scenes
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.pretrained import safetensors
from gen_jax.training.layout import Layout
from tests.api import guidance, models, pictures, texts, trainings
from tests.api.walk import call

KEY = jax.random.key(0)
INDEX = np.arange(2)
LABEL = np.array([0, 2, 1, 2], np.int32)
NAMES = ("cat", "dog", "emu")
LABELS = Labels(3, 0.1, NAMES)
BATCH = {"label": LABEL}
# Nothing is asked of a key that draws nothing, or of parameters that hold no table.
OF_LABELS = {
    "": call(3, 0.1, NAMES),
    "check_all": call(LABELS, LABEL),
    "choose": call(LABELS, KEY, INDEX, "dog"),
    "init": call(LABELS, KEY),
    "name": call(LABELS, 1),
    "null": call(LABELS, 3),
    "numbers": call(LABELS, LABEL),
    "of_batch": call(LABELS, KEY, BATCH),
    "prepare": call(LABELS, BATCH),
    "tell": call(LABELS, None, LABEL),
}
NOTHING = Nothing()
OF_NOTHING = {
    "choose": call(NOTHING, KEY, INDEX),
    "init": call(NOTHING, KEY),
    "null": call(NOTHING, 3),
    "of_batch": call(NOTHING, KEY, BATCH),
    "prepare": call(NOTHING, BATCH),
    "tell": call(NOTHING, None, None),
}
TEXT, READER = texts.CONDITION, texts.CONDITION.readers[0]
CAPTIONS = {"text": np.array(texts.TEXTS, object)}
TOKENS = TEXT.prepare(CAPTIONS)
ASKED = TEXT.choose(KEY, INDEX, None, ["a red seven", "a green two"])
OF_TEXT = {
    "": call((READER,), 0.5),
    "against": call(TEXT, ASKED, "a blue three", free=("prompt: misspelt", "prompt: None")),
    "at": call(TEXT, 8, 8),
    "choose": call(TEXT, KEY, INDEX, None, "a red seven", free=("prompt: misspelt",)),
    "dropped": call(TEXT, KEY, 3),
    "encode": call(TEXT, texts.WEIGHTS, ASKED),
    "init": call(TEXT, KEY),
    "null": call(TEXT, 3),
    "of_batch": call(TEXT, KEY, TOKENS),
    "prepare": call(TEXT, CAPTIONS),
    "tell": call(TEXT, texts.WEIGHTS, ASKED),
}
BYTES = {"image": pictures.IMAGES}
PIXELS, LATENTS = codec.Pixels((8, 6, 1)), texts.CODEC
IMAGES = {"image": texts.IMAGES}
UNIT = jnp.zeros((2, 8, 8, 1))
Z = jnp.zeros((2, 4, 4, 2))
OF_CODECS = {
    "Pixels": call((8, 6, 1)),
    "Pixels.at": call(PIXELS, 4, 4),
    "Pixels.bound": call(PIXELS, guidance.DENOISE),
    "Pixels.decode": call(PIXELS, pictures.NUMBERS, None),
    "Pixels.encode": call(PIXELS, BYTES, None, KEY),
    "Latents": call((4, 4, 2), 0.5, 0.1, "latent", texts.SMALL, free=("name: misspelt",)),
    "Latents.at": call(LATENTS, 8, 8),
    "Latents.bound": call(LATENTS, guidance.DENOISE),
    "Latents.decode": call(LATENTS, Z, texts.AUTOENCODER),
    "Latents.encode": call(LATENTS, IMAGES, texts.AUTOENCODER, KEY),
    "Latents.moments": call(LATENTS, IMAGES, texts.AUTOENCODER),
    "Latents.of_unit": call(LATENTS, UNIT, texts.AUTOENCODER, KEY),
}
TOKENIZER = texts.TOKENIZER
IDS = TOKENIZER.encode("a red seven")
FOLDER = Path(texts.FOLDER) / "tokenizer"
FOLDER.mkdir(exist_ok=True)
TOKENIZER.save(FOLDER)
OF_TOKENIZER = {
    "": call(TOKENIZER.merges, 12, "<|endoftext|>", ("<cat>",)),
    "decode": call(TOKENIZER, IDS),
    "encode": call(TOKENIZER, "a red seven", free=("text: misspelt",)),
    "framed": call(TOKENIZER, [IDS]),
    "load": call(str(FOLDER), free=("folder: misspelt",)),
    "save": call(TOKENIZER, str(FOLDER)),
    "tokens": call(TOKENIZER, ["a red seven"]),
    "warn_of_cut": call(TOKENIZER, [IDS], 10),
}
SMALL = models.SMALL
STEPS = dataclasses.replace(SMALL.sampling, solver="ddim", nfe=2)
OF_MODEL = {
    "Model": call(*(getattr(SMALL, field.name) for field in dataclasses.fields(SMALL))),
    "Model.at": call(SMALL, 8, 8),
    "Model.init": call(SMALL, KEY),
    "Model.parts": call(SMALL, guidance.WEIGHTS["network"]),
    "Sampling": call("ddim", 2, 1.0, 3),
    "Sampling.chosen": call(STEPS, "ddim", 2),
    "Sampling.deviation": call(STEPS, SMALL.process, "ddim", 2),
    "Sampling.plan": call(STEPS, SMALL.process, "eps", "ddim", 2),
    "Sampling.rounds": call(STEPS, "ddim"),
}
ROWS = {"x": trainings.X}
STREAM = data.Stream(ROWS, 4, key=KEY)
ARRAYS = data.Arrays(ROWS)
INFO = data.Info("mine", 12, (8, 8, 1), 3, NAMES)
OF_DATA = {
    "Arrays": call(ROWS, INFO),
    "Arrays.gather": call(ARRAYS, np.array([1, 2])),
    "InMemory.create": call(ROWS, 4, key=KEY),
    "InMemory.select": call(trainings.BATCHES, np.int32(3), 2),
    "Info": call("mine", 12, (8, 8, 1), 3, NAMES, True, free=("name: misspelt",)),
    "Stream": call(
        ROWS, 4, key=KEY, process_index=0, process_count=2, prefetch=1, transform=lambda batch: batch
    ),
    "Stream.seek": call(STREAM, 3),
    "Stream.set_state": call(STREAM, STREAM.get_state()),
    "sources.scenes.Object": call(7, "red", "large"),
    "sources.scenes.Scene": call(pictures.PAIR.objects, "above"),
    "sources.scenes.Scenes.scenes": call(scenes.Scenes("test", 5), [0, 3]),
}
STATE = trainings.STATE
LAYOUT = Layout("jit", trainings.ONE)
PLACED = LAYOUT.put_state(trainings.PARAMS)
COMPILED = training.compile_step(trainings.STEP, mesh=trainings.ONE, donate=False)
SAVED = training.Checkpoints(trainings.WORK / "run" / "checkpoints")
NEW = training.Checkpoints(trainings.WORK / "new" / "checkpoints")
LINES = training.JSONLines(trainings.WORK / "metrics.jsonl")
BOARD = training.TensorBoard(trainings.WORK / "board")
CALLBACK = training.Callback()
VALUES = {"loss": 0.5}
for each in (LINES, BOARD):
    each.on_start(0)


def target(meta):
    """The parameters alone."""
    return {"params": trainings.PARAMS}


# An optimizer may keep anything, and what a state lacks is found where it is used.
KEPT = tuple(
    f"{name}: {field}: {value}"
    for name in ("state", "like")
    for field in ("opt_state", "ema_params")
    for value in ("None", "another object")
)
OF_TRAINING = {
    "Callback.on_checkpoint": call(CALLBACK, 3, STATE, free=KEPT),
    "Callback.on_log": call(CALLBACK, 3, VALUES),
    "Callback.on_sample": call(CALLBACK, 3, STATE, free=KEPT),
    "Callback.on_start": call(CALLBACK, 3),
    "Checkpoints": call(
        str(trainings.WORK / "made"), keep=3, keep_from=(2,), create=True, free=("directory: misspelt",)
    ),
    "Checkpoints.find": call(SAVED, target, lambda meta: None, first_from=0),
    "Checkpoints.restore": call(SAVED, STATE, lambda meta: None, free=KEPT),
    "Checkpoints.save": call(NEW, STATE, {"config": {}}, free=KEPT),
    "Checkpoints.saved": call(SAVED, 0, "params"),
    "Compiled": call(trainings.STEP, LAYOUT, 1, None, False),
    "Compiled.lower": call(COMPILED, STATE, ROWS, free=KEPT),
    "Compiled.put": call(COMPILED, ROWS),
    "JSONLines": call(str(trainings.WORK / "lines.jsonl"), free=("path: misspelt",)),
    "JSONLines.on_log": call(LINES, 3, VALUES),
    "JSONLines.on_start": call(LINES, 3),
    "Layout": call("jit", trainings.ONE, False),
    "Layout.batch_shapes": call(LAYOUT, ROWS, False),
    "Layout.batch_sharding": call(LAYOUT, False),
    "Layout.from_pmap": call(LAYOUT, PLACED),
    "Layout.is_placed": call(LAYOUT, PLACED),
    "Layout.put_batch": call(LAYOUT, ROWS, stacked=False),
    "Layout.put_data": call(LAYOUT, ROWS),
    "Layout.put_frozen": call(LAYOUT, ROWS),
    "Layout.put_state": call(LAYOUT, trainings.PARAMS),
    "Layout.shapes": call(LAYOUT, trainings.PARAMS),
    "Layout.state_sharding": call(LAYOUT, trainings.PARAMS),
    "Repeated": call([ROWS]),
    "Repeated.seek": call(training.Repeated([ROWS]), 3),
    "TensorBoard": call(str(trainings.WORK / "other"), free=("directory: misspelt",)),
    "TensorBoard.on_log": call(BOARD, 3, VALUES),
    "TensorBoard.on_start": call(BOARD, 3),
    "TrainState.create": call(trainings.PARAMS, optax.sgd(0.1), KEY, ema=True),
}
DRAW = generate.sampler(guidance.MODEL, generate.local_mesh(1))
PLAN = generate.plan(guidance.MODEL, "ddim", 2)
KL = AutoencoderKLConfig(1, 1, (4, 4), blocks=1, latent_channels=2, groups=2, middle_attention=False)
OTHERS = {
    "launch.Data.source": call(
        launch.Data(), "test", free=("split: misspelt",)
    ),  # of which it says what there is
    "launch.Training.scaled": call(launch.Training(), 128),
    "launch.Training.make_step": call(launch.Training(), trainings.loss, trainings.OPTIMIZER, aux=False),
    "conditioning.Reader": call(texts.TOKENIZER, texts.ENCODER, -1),
    "conditioning.Reader.read": call(
        *(READER, texts.PARAMS, ASKED.prompts[0]),
        free=("read: tokens: negative", "read: tokens: large"),  # "prompts" is what they are called then
    ),
    "launch.Data": call("mnist", free=("dataset: misspelt",)),  # a name of TFDS, which says so
    "generate.Sampler": call(
        guidance.MODEL, generate.local_mesh(1), (5.0, 20.0), 0.5, guidance.MODEL, "x0", True
    ),
    "generate.Sampler.place": call(DRAW, ROWS),
    "networks.autoencoder_kl.AutoencoderKLConfig.latent_shape": call(KL, (8, 8, 1)),
    "networks.unet.UNetConfig.transformer": call(SMALL.network, 0),
    "pretrained.safetensors.Tensors": call(*vars(safetensors.read(str(models.TENSORS))).values()),
}
EXAMPLES = {
    **{f"conditioning.Labels.{name}".removesuffix("."): example for name, example in OF_LABELS.items()},
    **{f"conditioning.Nothing.{name}": example for name, example in OF_NOTHING.items()},
    **{f"conditioning.Text.{name}".removesuffix("."): example for name, example in OF_TEXT.items()},
    **{f"codec.{name}": example for name, example in OF_CODECS.items()},
    **{f"text.Tokenizer.{name}".removesuffix("."): example for name, example in OF_TOKENIZER.items()},
    **{f"model.{name}": example for name, example in OF_MODEL.items()},
    **{f"data.{name}": example for name, example in OF_DATA.items()},
    **{f"training.{name}": example for name, example in OF_TRAINING.items()},
    **OTHERS,
}
