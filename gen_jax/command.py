"""What `gen-jax sample` does: `Sample` has its options, `run` draws and writes.

command.run(command.Sample(Path("stable-diffusion-v1-5"), prompt="a lighthouse at dawn", out=Path("lighthouse.png")))

Nothing that takes long to import is imported before it runs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import tyro

if TYPE_CHECKING:
    import numpy as np

    from gen_jax.conditioning import Prompt
    from gen_jax.generate import OnStep, Weights
    from gen_jax.model import Model

T = TypeVar("T")
Given: TypeAlias = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""What may be left out; its help says what then is."""

ENLARGED = 256
"""Pixels across, below which images are enlarged to be seen, and framed."""

STRENGTH = 0.6
"""Of image to image, where nothing else is asked for."""


@dataclass(frozen=True)
class Sample:
    """Options of `gen-jax sample`."""

    weights: tyro.conf.Positional[PurePath]
    """The directory of a run, here or gs://BUCKET/PATH, the folder of a Stable Diffusion, or one of its .safetensors
    files."""
    label: Given[int | str] = None
    """The number of a class, or its name (default: each image its own, at random)."""
    num: Given[int] = None
    """How many images (default: 16; 1 of Stable Diffusion)."""
    out: PurePath = Path("samples.png")
    """Where to; .png is one picture of all, with the settings in it, .npy is uint8 [N, H, W, C]. A name without an ending
    is a directory, for many images: files of them, drawn by all hosts; the same command goes on after an interruption."""
    shard: int = 1000
    """Images in a file, where out is a directory."""
    chunk: Given[int] = None
    """Images that a device draws at once, where out is a directory (default: 125; 4 of Stable Diffusion)."""
    guidance: Given[float] = None
    """Weight of guidance, by the labels, the text or by a weaker model; 1 is none (default: as the model says)."""
    solver: Given[str] = None
    """A solver by name (default: as the model says)."""
    nfe: Given[int] = None
    """Evaluations of the network for an image; of Stable Diffusion steps (default: as the model says)."""
    seed: int = 0
    """Of the images."""
    prompt: Given[str] = None
    """What all images show, where the model reads texts (default: anything)."""
    prompts: Given[PurePath] = None
    """A file with a prompt a line, or a list in JSON: an image for each, in place of num."""
    negative_prompt: Given[str] = None
    """What guidance leads away from (default: the empty text)."""
    height: Given[int] = None
    """Of the images in pixels (default: as the model says, or as the image that is changed)."""
    width: Given[int] = None
    """Of the images in pixels, as height."""
    image: Given[Path] = None
    """A picture to change: drawn anew from some of its noise, or where there is a mask, in a part."""
    strength: Given[float] = None
    """How much of the picture is changed, in (0, 1] (default: 0.6; with a mask 1)."""
    mask: Given[Path] = None
    """A picture that is white where the image is to be drawn anew, and black where it stays."""
    rescale: float = 0.0
    """Against the overexposure of strong guidance, in [0, 1]: the guidance_rescale of diffusers."""
    clip_skip: int = 0
    """Of Stable Diffusion: how many of the last layers of the text encoder are not used."""
    dtype: Given[Literal["float32", "bfloat16", "float16"]] = None
    """Of the weights, and of Stable Diffusion's arithmetic (default: float32)."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A file of LoRA, FILE or FILE:WEIGHT; given several times, all are added."""
    config: Given[Path] = None
    """For one .safetensors file: a folder with what it does not say, such as CLIP's vocabulary."""
    predicts: Given[Literal["eps", "v"]] = None
    """What the network of one file says (default: v of Stable Diffusion 2 and where the file is marked, else eps)."""
    zero_terminal_snr: Given[bool] = None
    """Whether that network was trained with a last time without signal (default: where the file is marked so)."""
    variant: Given[str] = None
    """Of the files in a folder of diffusers, such as fp16."""
    previews: bool = False
    """Write what the images will be, after each step, beside the images: samples.preview.png."""
    taesd: Given[Path] = None
    """The file or the folder of a tiny autoencoder, which makes previews of full size; without it a latent is a pixel."""


def run(asked: Sample) -> str:
    """Draws, writes, and says what it did. ValueError, in a line, for what can not be done."""
    _check(asked)
    from gen_jax import launch, paths, plots, pretrained, samplers

    _check_numbers(asked)

    if asked.solver is not None:
        samplers.schedule.find(asked.solver)  # a ValueError, before weights are read
    prompts = launch.read_prompts(str(asked.prompts)) if asked.prompts else asked.prompt
    published = pretrained.is_published(str(asked.weights))
    launch.start(1 if published else 2)  # one device, as each has its own copy of the weights
    model, weights = _loaded(asked)
    num = asked.num if asked.num is not None else 1 if published else 16
    num = len(prompts) if isinstance(prompts, list) else num
    if _is_directory(asked.out):
        return _written(asked, model, weights, num, prompts, 4 if published else None)
    images, cond = _drawn(asked, model, weights, num, prompts)
    out = paths.path_of(asked.out)
    if out.suffix == ".npy":
        launch.save(out, images)
    else:
        text = _text(asked, model, images, prompts)
        if max(images.shape[1:3]) < ENLARGED:
            plots.save_grid(out, images, text=text)
        elif len(images) == 1:
            plots.save_image(out, images[0], text)
        else:
            plots.save_grid(out, images, scale=1, text=text)
    what = f"{len(images)} image" + "s" * (len(images) != 1)
    return f"{what}{_drawn_for(model, cond, prompts)} in {asked.out}"


def _is_directory(out: PurePath) -> bool:
    """Whether images go into files of it: there is no ending, or it is there."""
    return (
        out.name != ""
        and out.suffix not in (".png", ".npy")
        and ((isinstance(out, Path) and out.is_dir()) or not out.suffix)
    )


def _check(asked: Sample) -> None:
    """What can be said before weights are read."""
    many = _is_directory(asked.out)
    if asked.out.suffix not in (".png", ".npy") and not many:
        raise ValueError(f"out must end in .png or .npy, or be a directory, got {asked.out}.")
    if many and (asked.image is not None or asked.previews or asked.taesd is not None):
        raise ValueError(
            f"out must end in .png or .npy where a picture is changed, and for previews, got {asked.out}."
        )
    if asked.prompt is not None and asked.prompts is not None:
        raise ValueError("one prompt or a file of prompts, not both.")
    if asked.image is None and (asked.mask is not None or asked.strength is not None):
        raise ValueError("a mask or a strength needs the image that is to be changed.")
    for said in asked.lora:
        lora_weight(said)
    if not isinstance(asked.out, Path):  # in a bucket
        return
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out must be a file that can be written, got {asked.out}: {error.strerror}."
        ) from None
    if (asked.out.is_file() if many else asked.out.is_dir()) or not os.access(asked.out.parent, os.W_OK):
        raise ValueError(f"out must be a file that can be written, got {asked.out}.")


def _check_numbers(asked: Sample) -> None:
    """What else can be said before weights are read."""
    from gen_jax import checks

    things = {"nfe": "evaluation", "height": "pixel", "width": "pixel"}
    for name in ("num", "nfe", "height", "width", "shard", "chunk"):
        if (value := getattr(asked, name)) is not None:
            checks.whole(name, value, things.get(name, "image"))
    checks.within("seed", asked.seed, 0, 2**32 - 1)
    checks.whole("clip_skip", asked.clip_skip, "layer", 0)
    checks.within("rescale", checks.finite("rescale", asked.rescale), 0, 1)
    if asked.guidance is not None:
        checks.finite("guidance", asked.guidance)
    if asked.strength is not None:
        checks.within("strength", checks.finite("strength", asked.strength), 0, 1)


def _loaded(asked: Sample) -> "tuple[Model, Weights]":
    from gen_jax import pretrained

    names = ("config", "predicts", "zero_terminal_snr", "variant")
    said = {"clip_skip": asked.clip_skip or None, **{name: getattr(asked, name) for name in names}}
    options: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    model, weights = pretrained.load(str(asked.weights), dtype=asked.dtype, **options)
    if asked.lora:
        from gen_jax.pretrained import lora  # type: ignore[attr-defined,unused-ignore]

        each = [(lora.load(path, model), weight) for path, weight in map(lora_weight, asked.lora)]
        weights = lora.merge(weights, each)
    return model, weights


def lora_weight(said: str) -> tuple[Path, float]:
    """`FILE:WEIGHT`, or FILE alone, with weight 1. ValueError for a weight that is no number."""
    path, colon, weight = said.rpartition(":")
    if not colon or Path(said).exists():
        return Path(said), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        raise ValueError(
            f"lora {said}: expected FILE:WEIGHT with a number, got the weight {weight!r}."
        ) from None


def _options(asked: Sample, model: "Model", prompts: "Prompt | None") -> dict[str, Any]:
    """What all that draws takes."""
    names = ("label", "negative_prompt", "guidance", "solver", "nfe", "rescale")
    of = "output" if model.sampling.schedule is not None else "x0"
    return {name: getattr(asked, name) for name in names} | {"prompt": prompts, "rescale_of": of}


def _written(
    asked: Sample,
    model: "Model",
    weights: "Weights",
    num: int,
    prompts: "Prompt | None",
    chunk: int | None,
) -> str:
    """Files of images in a directory, by all processes; `chunk` is the default."""
    import jax

    from gen_jax import generate, paths

    chunk = chunk if asked.chunk is None else asked.chunk
    options = _options(asked, model, prompts) | ({} if chunk is None else {"chunk": chunk})
    options |= {"height": asked.height, "width": asked.width, "shard": asked.shard}
    generate.write(model, weights, jax.random.key(asked.seed), num, paths.path_of(asked.out), **options)
    files = -(-num // asked.shard)
    return f"{num:,} image{'s' * (num != 1)} in {files:,} file{'s' * (files != 1)} of {asked.out}"


def _drawn(
    asked: Sample, model: "Model", weights: "Weights", num: int, prompts: "Prompt | None"
) -> "tuple[np.ndarray, object]":
    import jax
    import numpy as np

    from gen_jax import generate, retouch

    key, see = jax.random.key(asked.seed), _previews(asked, model, weights)
    options = _options(asked, model, prompts) | {"on_step": see}
    if asked.image is None:
        options |= {"height": asked.height, "width": asked.width, "shared": see is None}
        return generate.sample(model, weights, key, num, **options)
    if asked.strength is not None:
        options["strength"] = asked.strength
    image = _picture(asked.image, asked, model)
    images = np.repeat(image[None], num, axis=0)
    if asked.mask is None:
        return retouch.vary(model, weights, key, images, **{"strength": STRENGTH, **options}), None
    known = _picture(asked.mask, asked, model, like=image)[None] < 128
    return retouch.inpaint(model, weights, key, images, known, **options), None


def _previews(asked: Sample, model: "Model", weights: "Weights") -> "OnStep | None":
    if not asked.previews and asked.taesd is None:
        return None
    from gen_jax import pretrained, previews

    tiny = None if asked.taesd is None else pretrained.load_tiny(asked.taesd)
    if tiny is not None and tiny[0].latent_channels != model.codec.shape[-1]:
        raise ValueError(
            f"{asked.taesd} shows latents of {tiny[0].latent_channels} channels, and those of this model have "
            f"{model.codec.shape[-1]}."
        )
    see = previews.linear(model, weights) if tiny is None else previews.tiny(*tiny)
    return previews.saving(str(asked.out.with_suffix(".preview.png")), see)


def _picture(path: Path, asked: Sample, model: "Model", like: "np.ndarray | None" = None) -> "np.ndarray":
    """A picture of a size that the model draws, resized until it covers that, and cropped; grey where it is a mask."""
    from gen_jax.codec import Latents, image_shape
    from gen_jax.data import images

    latents = isinstance(model.codec, Latents)
    shape = image_shape(model.codec)
    try:
        picture = images.load(path, shape[-1] if like is None else 1)
    except Exception as error:  # decoders raise errors of every kind
        raise ValueError(f"{path} is no picture that can be read: {error}") from None
    if like is not None:
        return images.resize(picture, like.shape[:2])
    factor = shape[0] // model.codec.shape[0]
    own = [
        max(side // factor, 1) * factor if latents else shape[i] for i, side in enumerate(picture.shape[:2])
    ]
    given = zip((asked.height, asked.width), own, strict=True)
    height, width = (side if side is not None else default for side, default in given)
    model.at(height, width)  # a ValueError for a size that it can not draw
    return images.resize(picture, (height, width))


def _text(asked: Sample, model: "Model", images: "np.ndarray", prompts: "Prompt | None") -> Mapping[str, str]:
    """What the images were made with, for the PNG file."""
    from gen_jax import __version__, infotext

    says = model.sampling
    solver, nfe = says.chosen(asked.solver, asked.nfe)
    solver = "recommended" if solver is None else solver
    strength = STRENGTH if asked.strength is None and asked.mask is None else asked.strength
    loras = map(lora_weight, asked.lora)
    karras = says.schedule is not None and solver != "recommended" and says.schedule.is_karras(solver)
    settings = {
        "Steps": nfe,
        "Sampler": infotext.SAMPLERS.get(solver, solver),
        "Schedule type": "Karras" if karras else None,
        "CFG scale": f"{says.guidance if asked.guidance is None else asked.guidance:g}",
        "Seed": asked.seed,
        "Size": f"{images.shape[2]}x{images.shape[1]}",
        "Model": asked.weights.stem,
        "Label": asked.label,
        "Denoising strength": None if asked.image is None else strength,
        "Clip skip": asked.clip_skip + 1 if asked.clip_skip else None,
        "CFG Rescale": asked.rescale or None,
        "LoRA": ", ".join(f"{path.stem}:{weight:g}" for path, weight in loras) or None,
        "Version": f"gen_jax {__version__}",
    }
    text = "\n".join(map(str, prompts)) if isinstance(prompts, list) else str(prompts or "")
    return {infotext.KEY: infotext.write(text, asked.negative_prompt or "", settings)}


def _drawn_for(model: "Model", cond: object, prompts: "Prompt | None") -> str:
    """The labels or the text of images, to end a message with."""
    import numpy as np

    from gen_jax.conditioning import Labels

    if isinstance(cond, np.ndarray):
        name = model.condition.name if isinstance(model.condition, Labels) else str
        return f" of the labels {', '.join(map(name, np.unique(cond).tolist()))}"
    return f" of {prompts!r}" if isinstance(prompts, str) else ""
