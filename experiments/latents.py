"""What the experiments of latent diffusion share: an autoencoder that is trained first, and the latents of the data."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import recipes
from jaxtyping import PyTree, UInt8

from gen_jax import checks, data, generate, latent, launch, metrics, paths, plots, pretrained, training
from gen_jax.codec import Latents
from gen_jax.data.fetching import fetched
from gen_jax.data.protocol import read, stack
from gen_jax.likelihoods import Gaussian
from gen_jax.model import to_dict
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.vae import latent as autoencoding

Distance: TypeAlias = Callable[[np.ndarray], float]
"""Of images to a data set."""


class Options(Protocol):
    """What is needed of the configuration of an experiment."""

    @property
    def workdir(self) -> Path:
        """Of the run."""

    @property
    def seed(self) -> int:
        """Of parameters and batches."""

    @property
    def data(self) -> launch.Data:
        """What to learn from."""

    @property
    def coding(self) -> launch.Autoencoding:
        """How the autoencoder is trained."""

    @property
    def run(self) -> training.Options:
        """How that is done."""

    @property
    def autoencoder(self) -> AutoencoderKLConfig:
        """The network."""


class Encoded(NamedTuple):
    """A data set in latents."""

    codec: Latents
    params: PyTree
    """Of the autoencoder."""
    source: data.Source
    figures: dict[str, float]
    """Of the autoencoder, see `summary`."""


def describe(config: Options, source: data.Source) -> Latents:
    """The codec, of which scale and shift are not known yet.

    ValueError for images that the autoencoder does not divide.
    """
    codec = Latents(
        config.autoencoder.latent_shape(source.info().image_shape), autoencoder=config.autoencoder
    )
    latent.check(codec, source)
    return codec


def check(config: Options, source: data.Source) -> None:
    """ValueError before any training for an autoencoder that is not there, or could not be trained."""
    given, size = config.coding.autoencoder, config.coding.autoencoder_batch_size
    if given is None:
        checks.whole("autoencoder_batch_size", size, "example of the data set", most=len(source))
    elif not (config.workdir / pretrained.AUTOENCODER).exists():
        _check_there(given)


def encode(config: Options, source: data.Source, distance: Distance | None = None) -> Encoded:
    """The latents of a data set by its autoencoder, which is trained where it is not there.

    They are kept in WORKDIR/latents, the autoencoder in WORKDIR/autoencoder. Images that are drawn anew each epoch, such
    as random crops, stay as they are: the codec encodes them in each step, with the frozen weights. With a `distance`
    between images and the data set, such as `judging.distance`, that of the reconstructions is among its figures.
    """
    codec, workdir = describe(config, source), config.workdir / pretrained.AUTOENCODER
    given = config.coding.autoencoder
    if given is None:
        _train(config, workdir, source)
    elif not workdir.exists() and jax.process_index() == 0:
        _copy(given, workdir)
    training.wait_for_all()
    params = pretrained.load_autoencoder(workdir, config.autoencoder)
    found = summary(config, workdir, params, source, distance)
    codec = dataclasses.replace(codec, scale=found["scale"], shift=found["shift"])
    if not isinstance(source, data.Random):
        source = latent.encode_all(codec, params, source, config.workdir / "latents")
    return Encoded(codec, params, source, found)


def _check_there(given: Path) -> None:
    if not (given / "checkpoints").is_dir():
        raise ValueError(
            f"--autoencoder {given}: expected the directory of a trained autoencoder, with checkpoints/."
        )


def _copy(given: Path, workdir: Path) -> None:
    """A trained autoencoder without its figures, which are of other images; complete, or not there."""
    _check_there(given)
    copy = partial(shutil.copytree, fetched(given), ignore=shutil.ignore_patterns("summary.json", "*.png"))
    if paths.is_remote(workdir):
        with paths.writing(workdir) as folder:
            copy(folder)
        return
    unfinished = workdir.with_name(f".{workdir.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    copy(unfinished)
    unfinished.rename(workdir)


def recipe(config: Options, source: data.Source) -> recipes.Recipe:
    """The training of the autoencoder."""
    c, net = config.coding, config.autoencoder.build()
    loss = autoencoding.loss(
        net, autoencoding.gaussian(c.kl_weight), likelihood=Gaussian(c.reconstruction_std)
    )
    learn, schedule = training.muon(
        c.autoencoder_learning_rate,
        num_steps=c.autoencoder_steps,
        warmup_steps=min(c.autoencoder_steps // 10, 200),
        b2=0.99,
    )
    optimizer = autoencoding.optimizer(learn)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    image = jnp.zeros((1, *source.info().image_shape))
    only_image = lambda batch: {"image": batch["image"]}
    return recipes.Recipe(
        training.make_step(loss, optimizer, ema_decay=0.99),
        lambda: training.TrainState.create(
            autoencoding.Params(net.init(key_params, image)), optimizer, key_steps
        ),
        data.batches(source, c.autoencoder_batch_size, key=key_data, transform=only_image),
        schedule,
    )


def _train(config: Options, workdir: Path, source: data.Source) -> None:
    made = recipe(config, source)
    training.fit(
        made.step,
        made.state,
        made.batches,
        num_steps=config.coding.autoencoder_steps,
        workdir=workdir,
        config={
            "experiment": "autoencoder",
            "options": launch.flat(config.coding) | {"dataset": config.data.dataset, "seed": config.seed},
            "autoencoder": to_dict(config.autoencoder),
        },
        may_change=tuple(f"options.{name}" for name in ("autoencoder", "autoencoder_steps")),
        schedule=made.schedule,
        options=training.Options(
            parallel=config.run.parallel, progress=config.run.progress, checkpoint_every=500, keep=1
        ),
    )


def summary(
    config: Options,
    workdir: Path,
    params: PyTree,
    source: data.Source,
    distance: Distance | None = None,
    num: int = 2000,
) -> dict[str, float]:
    """The figures of an autoencoder, of test images where there are such; kept in its summary.json.

    Peak signal-to-noise ratio of the reconstructions, nats of the latents, scale and shift, which are of images of the
    training, and where there is a `distance`, that of the reconstructions.
    """
    file, net = workdir / "summary.json", config.autoencoder.build()
    found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    training.wait_for_all()  # no process has written yet
    if found and (distance is None or "frechet_distance" in found):
        return found
    test = test_images(config.data, num)
    drawn = autoencoding.reconstruct(net, params, test)
    if not found:
        scale, shift = autoencoding.measure(net, params, images(source, num))
        found = {
            "scale": float(f"{scale:.6g}"),
            "shift": float(f"{shift:.6g}"),
            "psnr": float(np.mean(metrics.psnr(test, drawn))),
            "kl_nats": autoencoding.statistics(net, params, test).kl,
        }
        launch.say(f"autoencoder: {found['psnr']:.1f} dB, {found['kl_nats']:.0f} nats an image; {workdir}")
    if distance is not None:
        found["frechet_distance"] = distance(drawn)
    launch.save(file, found)
    pairs = np.stack([test[:32], drawn[:32]], 1).reshape(-1, *test.shape[1:])
    plots.save_grid(workdir / "reconstructions.png", pairs, columns=16)
    training.wait_for_all()
    return dict(json.loads(file.read_text()))  # those of process 0


def seconds(encoded: Encoded, source: data.Source, num: int = 512) -> float:
    """Seconds of encoding the data set, after those of some of its images, compiled."""
    layout = training.Layout(mesh=generate.local_mesh())
    size = -(-min(num, len(source)) // layout.shards) * layout.shards
    some = np.resize(images(source, num), (size, *source.info().image_shape))
    image, params = jax.device_put(some, layout.batch_sharding(False)), layout.put_data(encoded.params)
    encode = jax.jit(lambda params, image: encoded.codec.moments({"image": image}, params))
    return recipes.seconds({"encode": lambda: encode(params, image)})["encode"] * len(source) / size


def images(source: data.Source, num: int) -> UInt8[np.ndarray, "N H W C"]:
    """The first images of a source."""
    found: UInt8[np.ndarray, "N H W C"] = stack(read(source, range(min(num, len(source)))))["image"]
    return found


def test_images(options: launch.Data, num: int) -> UInt8[np.ndarray, "N H W C"]:
    """The first images of the test set, or of the training set where there is no other."""
    return images(options.test_source(), num)
