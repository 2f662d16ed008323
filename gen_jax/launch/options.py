"""Groups of options that experiments share.

An experiment's `Config` has them as fields and tyro nests them without prefixes, so that `training.steps` is the flag
`--steps`. Names of options are therefore unique over all groups of a `Config` (`flat`).
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import jax
import optax

from gen_jax import checks, data, paths, training
from gen_jax.model import FORMAT
from gen_jax.types import AnyPath, Count, NotNegative, Positive

C = TypeVar("C")
T = TypeVar("T", bound="Training")
ROOT = Path(__file__).resolve().parents[2]
"""Of the repository, for the default directories of the experiments."""

RUN = tuple(f.name for f in dataclasses.fields(training.Options))
"""Options of how a run is done; none of them changes what it learns."""


@checks.checked
@dataclass(frozen=True)
class Data:
    """What to learn from."""

    dataset: str = "mnist"
    """mnist or scenes (embedded), the name of any TFDS image set, a folder of images, or a .npz file; gs://BUCKET/PATH is
    copied into the cache."""
    data_dir: AnyPath | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    image_size: int | None = None
    """Resize and crop the images to squares of this side (default: as they are)."""
    crop: Literal["center", "random"] = "center"
    """Where to crop: at the centre, or anew for each image and epoch."""
    unreadable: Literal["raise", "skip"] = "raise"
    """Files of a folder that cannot be read: an error that names them, or left out with a warning."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ValueError("dataset must be a name or a path, got an empty one.")

    @checks.checked
    def source(self, split: str = "train") -> data.Source:
        """The set, of which nothing is read yet."""
        home = self.dataset.startswith("~")
        return data.source(
            str(Path(self.dataset).expanduser()) if home else self.dataset,
            split=split,
            data_dir=self.data_dir,
            image_size=self.image_size,
            crop=self.crop,
            unreadable=self.unreadable,
        )

    def test_source(self) -> data.Source:
        """The test set, or the training set where there is no other."""
        try:
            return self.source("test")
        except data.NoSplit:
            return self.source()


@checks.checked
@dataclass(frozen=True)
class Training:
    """How to learn. ValueError for a number of steps, images or parts below 1, or a rate that is not from 0 on."""

    steps: int = 1600
    """Updates in the whole run."""
    batch_size: int = 64
    """Images a step, over all devices."""
    optimizer: Literal["adam", "muon"] = "muon"
    """Adam, or Muon for all matrices and kernels, which needs about a third fewer steps."""
    learning_rate: float = 8e-3
    """Highest rate, after a warm-up over the first tenth of the steps (1,000 at most) and before a cosine decay."""
    ema_decay: float | None = 0.995
    """Of the average of the parameters, with which samples are drawn; None: there is no average."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""
    microbatches: int = 1
    """Parts in which a step takes its batch, one after the other: less memory, and faster where a part fits a cache."""
    batch_per_device: int | None = None
    """Images a step on each device: the batch is so many times their number, and learning_rate and ema_decay, which are
    those for batch_size, are scaled to it (default: batch_size is the batch)."""

    def __post_init__(self) -> None:
        for name, of in (
            ("steps", "step"),
            ("batch_size", "image"),
            ("accumulate", "step"),
            ("microbatches", "part"),
        ):
            checks.whole(name, getattr(self, name), of)
        if self.batch_per_device is not None:
            checks.whole("batch_per_device", self.batch_per_device, "image")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"microbatches must divide batch_size {self.batch_size}, got {self.microbatches}."
            )
        checks.within("learning_rate", checks.finite("learning_rate", self.learning_rate), 0)
        if self.ema_decay is not None:
            checks.within("ema_decay", checks.finite("ema_decay", self.ema_decay), 0, 1, below=True)

    @checks.checked
    def scaled(self: T, batch_size: Count) -> T:
        """The same training with batches of another size. With `k = batch_size / self.batch_size`

            learning_rate <- sqrt(k) learning_rate,   ema_decay <- ema_decay^k

        A step of Adam is as long for a small gradient as for a large one. Where the gradient is mostly noise, one step
        of sqrt(k) times the length does what `k` steps did, noise and all (Malladi et al. 2022, "On the SDEs and scaling
        rules for adaptive gradient algorithms"); so it is taken to be for Muon, whose steps have a given length too.
        Their rule also has `1 - beta <- k (1 - beta)`. The betas stay here: that ends at `k = 10`, where `b1` is 0.9, and
        how far from the minimum a run ends does not depend on them. A step of the average forgets what `k` steps did
        (Busbridge et al. 2023, "How to scale your EMA").

        The number of steps stays, so the run sees `k` times as many images. The rule ends at a batch whose gradient is no
        longer mostly noise; which one that is, it does not say.
        """
        k = batch_size / self.batch_size
        return dataclasses.replace(
            self,
            batch_size=batch_size,
            batch_per_device=None,
            learning_rate=self.learning_rate * k**0.5,
            ema_decay=None if self.ema_decay is None else self.ema_decay**k,
        )

    def make_optimizer(self) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optimizer and its learning rate at each step."""
        rule: Callable[..., tuple[optax.GradientTransformation, optax.Schedule]]
        rule = training.muon if self.optimizer == "muon" else training.adam
        return rule(
            self.learning_rate,
            num_steps=self.steps,
            warmup_steps=min(self.steps // 10, 1000),
            accumulate=self.accumulate,
            b2=0.99,
        )

    @checks.checked
    def make_step(
        self, loss: training.Loss, optimizer: optax.GradientTransformation, *, aux: bool = False
    ) -> training.Step:
        """One step of training."""
        return training.make_step(
            loss, optimizer, ema_decay=self.ema_decay, aux=aux, microbatches=self.microbatches
        )


@checks.checked
@dataclass(frozen=True)
class Sampling:
    """How to draw samples."""

    sample_only: bool = False
    """Draw samples from the checkpoint in workdir, and train no further."""
    num: int = 64
    """How many samples."""
    solver: str | None = None
    """A solver by name, such as ddpm, ddim, dpmpp, unipc or heun; a wrong name lists all (default: as the model says)."""
    nfe: int | None = None
    """Evaluations of the denoiser a sample; a solver of several a step takes as many whole steps as fit."""
    guidance: float | None = None
    """Weight of guidance: 1 is none, larger is clearer and less varied. A model with labels is guided by them,
    one without by its own parameters of a fifth of the training (autoguidance)."""
    label: int | str | None = None
    """The label of all samples, where labels were learned: the number of a class, or its name, where the data have names
    (default: each its own, at random)."""
    prompt: str | None = None
    """What all samples show, where the model reads texts (default: captions of the data set)."""
    prompts: AnyPath | None = None
    """A file with a prompt a line, or a list in JSON: a sample for each, in place of --num."""
    negative_prompt: str | None = None
    """What guidance leads away from (default: the empty text)."""

    def __post_init__(self) -> None:
        checks.whole("num", self.num, "sample", least=0)
        if self.nfe is not None:
            checks.whole("nfe", self.nfe, "evaluation")
        if self.guidance is not None:
            checks.finite("guidance", self.guidance)

    def texts(self) -> list[str] | None:
        """The prompt of each sample; None where none is asked for. ValueError for a file that has none."""
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt or --prompts, not both.")
        if self.prompts is None:
            return None if self.prompt is None else [self.prompt] * self.num
        return read_prompts(self.prompts)


@checks.checked
def read_prompts(path: str | AnyPath) -> list[str]:
    """The prompts in a file: a line each, or a list of strings in JSON. ValueError where there are none."""
    path = paths.path_of(path)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path}: expected a text file in UTF-8 at this path: {error}.") from None
    try:
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError(f"--prompts {path}: expected a prompt a line, or a list of strings in JSON.")
    return found


@checks.checked
@dataclass(frozen=True)
class Autoencoding:
    """The autoencoder, in whose latents the diffusion is. It is trained first and then frozen."""

    autoencoder: AnyPath | None = None
    """The directory of one that is trained (default: WORKDIR/autoencoder, where it is trained if it is not there)."""
    autoencoder_steps: Count = 500
    """Updates in its training."""
    autoencoder_batch_size: Count = 64
    autoencoder_learning_rate: NotNegative = 4e-3
    reconstruction_std: Positive = 0.15
    """Of a pixel about its reconstruction, for pixels in [-1, 1]: smaller keeps more, in latents that are harder to
    learn."""
    kl_weight: NotNegative = 1.0
    """Weight of the divergence of the latents from N(0, 1), against the log-likelihood of an image in nats."""


GROUPS = (Data, Training, Sampling, Autoencoding, training.Options)


@checks.checked
def flat(config: object) -> dict[str, object]:
    """All options of a `Config` by name, without the groups. ValueError where two of them have one name.

    Descriptions that a preset brings along (a network, a `model.Sampling`) are no options: they are a part of the model.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"config must be a dataclass, a value of it, got {checks.came(config)}.")
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, GROUPS):
            continue
        for name, x in (flat(value) if isinstance(value, GROUPS) else {field.name: value}).items():
            if name in found:
                raise ValueError(f"two options of {type(config).__name__} are called {name!r}.")
            found[name] = x
    return found


@checks.checked
def record(experiment: str, config: object, **parts: object) -> dict[str, object]:
    """What `config.json` of a run says: a format number, the experiment, its options, and `parts` such as the model."""
    options = flat(config)
    if options.get("batch_per_device") is not None:
        raise ValueError(
            "the batch of all devices is not known yet: config = launch.resolved(config), after launch.start."
        )
    return {"format": FORMAT, "experiment": experiment, "options": options, **parts}


@checks.checked
def resolved(config: C) -> C:
    """A `Config` with the batch of all devices, and what follows it (`Training.scaled`), where one a device is asked for.

    Call it after `start`, for it asks how many devices there are. What it returns is what `config.json` says. On another
    number of devices the same command is an error that names the batch; with that batch, rate and decay it goes on.
    """
    training = getattr(config, "training", None)
    if not isinstance(training, Training):
        raise ValueError(f"config must have a field training, a launch.Training, got {checks.came(config)}.")
    if training.batch_per_device is None:
        return config
    batch_size = training.batch_per_device * jax.device_count()
    return cast(C, dataclasses.replace(cast(Any, config), training=training.scaled(batch_size)))


@checks.checked
def may_change(*names: str) -> tuple[str, ...]:
    """What a resumed run may set otherwise: how it is done, how it draws, and the options `names`.

    Names of classes are among it, and the batch a device: a run that is older than they are does not have them.
    """
    sampling = (f.name for f in dataclasses.fields(Sampling))
    options = (*RUN, *sampling, "steps", "workdir", "data_dir", "batch_per_device", *names)
    return (*(f"options.{name}" for name in options), "model.sampling", "model.condition.names")
