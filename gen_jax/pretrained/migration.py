"""Runs of gen_jax 0.1, whose config.json named a preset: what the presets were then, written down once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from gen_jax.codec import Pixels
from gen_jax.conditioning import Labels, Nothing
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from gen_jax.networks.unet import UNetConfig
from gen_jax.types import Predicts

_SMALL = UNetConfig(
    channels=(24, 64),
    blocks=1,
    attention=(),
    middle_attention=False,
    head_features=64,
    patch=2,
    dense_skips=False,
    resample_conv=False,
    embedding=128,
    groups=8,
)
NETWORKS = {
    "mnist_small": _SMALL,
    "mnist_best": replace(_SMALL, channels=(48, 160), middle_attention=True),
    "mnist": replace(_SMALL, channels=(64, 128), patch=1, dense_skips=True, embedding=100, groups=32),
    "cifar10": UNetConfig(
        channels=(128, 256, 256, 256),
        blocks=2,
        attention=(1,),
        middle_attention=True,
        head_features=256,
        patch=1,
        dense_skips=True,
        resample_conv=True,
        embedding=256,
        groups=32,
    ),
}
PROCESSES = {
    "ddpm_linear": process.DDPM(num_steps=1000, schedule="linear", beta_min=1e-4, beta_max=0.02),
    "ddpm_cosine": process.DDPM(num_steps=1000, schedule="cosine", beta_min=1e-4, beta_max=0.02),
    "vp": process.VP(beta_min=0.1, beta_max=20.0, t_min=1e-3, schedule="linear"),
}
NEEDED = {"preset", "process", "predicts", "image_shape", "steps"}


def from_format_1(config: Mapping[str, object], where: str) -> Model:
    """The model of a run of steps 9 and 10 of gen_jax 0.1. ValueError where the config is of no such run."""
    if missing := NEEDED - set(config):
        raise ValueError(
            f"{where} is not a run of a diffusion experiment: its config.json has no {', '.join(sorted(missing))}."
        )
    if config["preset"] not in NETWORKS or config["process"] not in PROCESSES:
        raise ValueError(
            f"{where}: expected one of the presets {', '.join(NETWORKS)} and of the processes {', '.join(PROCESSES)} of "
            f"gen_jax 0.1, got {config['preset']!r} and {config['process']!r}."
        )
    proc, classes = PROCESSES[str(config["process"])], cast("int | None", config.get("num_classes"))
    network = replace(
        NETWORKS[str(config["preset"])],
        time_scale=1000 / proc.t_max,
        num_classes=classes,
        dropout=cast(float, config.get("dropout", 0.0)),
        dtype=cast(str, config.get("dtype", "float32")),
        remat=cast(bool, config.get("remat", False)),
    )
    steps, (height, width, channels) = cast(int, config["steps"]), cast("list[int]", config["image_shape"])
    return Model(
        network=network,
        process=proc,
        predicts=cast(Predicts, config["predicts"]),
        condition=Nothing()
        if classes is None
        else Labels(classes, cast(float, config.get("label_dropout", 0.1))),
        codec=Pixels((height, width, channels)),
        sampling=Sampling(
            solver=cast("str | None", config.get("solver", "unipc")),
            nfe=cast(int, config.get("nfe", 12)),
            guidance=cast(float, config.get("guidance", 1.0)),
            guide_step=max(steps // 5, 1) if classes is None else None,
        ),
    )
