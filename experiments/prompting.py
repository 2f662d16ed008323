"""The figures of a model that reads texts: captions, guidance, attention by word, between and against prompts."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from gen_jax import generate, plots
from gen_jax.conditioning import Text
from gen_jax.networks import transformer
from gen_jax.pretrained import Run

WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
"""Of guidance.png."""


def save_all(directory: Path, run: Run, texts: Sequence[str], seed: int) -> None:
    """All of them, for these prompts."""
    save_captions(directory / "captions.png", run, texts[:24], seed)
    save_guidance(directory / "guidance.png", run, texts[0], seed)
    longest = max(texts[:16], key=len)  # the most to look at
    save_attention(directory / "attention.png", run, longest, seed)
    save_interpolation(directory / "interpolation.png", run, (texts[0], texts[min(1, len(texts) - 1)]), seed)
    save_negative(directory / "negative.png", run, texts[:4], seed)


def save_captions(path: Path, run: Run, texts: Sequence[str], seed: int) -> None:
    """captions.png: a sample for each caption."""
    images, _ = generate.sample(run.model, run.weights, jax.random.key(seed), len(texts), prompt=texts)
    plots.save_captioned(path, images, texts)


def save_guidance(path: Path, run: Run, prompt: str, seed: int, columns: int = 8) -> None:
    """guidance.png: one prompt, a weight of guidance a row, the same noise down a column."""
    draw = _drawer(run, seed, columns)
    rows = [draw([prompt] * columns, weight=weight) for weight in WEIGHTS]
    heads = [""] * columns
    plots.save_strips(
        path, np.stack(rows), heads, f"{prompt}, by weight of guidance", [f"{w:g}" for w in WEIGHTS]
    )


def save_interpolation(path: Path, run: Run, pair: tuple[str, str], seed: int, columns: int = 10) -> None:
    """interpolation.png: from one prompt to another, the same noise along a row."""
    condition, rows = run.model.condition, 4
    assert isinstance(condition, Text)
    read = condition.choose(jax.random.key(0), np.arange(2), prompt=pair)
    _, context = jax.jit(condition.tell)(run.weights["text"], read)
    between = jnp.linspace(0, 1, columns)[:, None, None]
    mixed = (1 - between) * context[:1] + between * context[1:]
    index, cond = np.repeat(np.arange(rows), columns), jnp.tile(mixed, (rows, 1, 1))
    images = _draw(run, seed, index, cond)
    images = images.reshape(rows, columns, *images.shape[1:])
    heads = [f"{w:.2f}" for w in np.linspace(0, 1, columns)]
    plots.save_strips(path, images, heads, f"from {pair[0]} to {pair[1]}")


def save_negative(path: Path, run: Run, texts: Sequence[str], seed: int, columns: int = 8) -> None:
    """negative.png: the first prompt, led away from nothing, and from each of the other ones."""
    draw = _drawer(run, seed, columns)
    against = ["", *texts[1:]]
    rows = [draw([texts[0]] * columns, negative=[each] * columns) for each in against]
    labels = [textwrap.fill(text or "nothing", 14) for text in against]
    plots.save_strips(path, np.stack(rows), [""] * columns, f"{texts[0]}, and not ...", labels)


def save_attention(path: Path, run: Run, prompt: str, seed: int, time: float = 0.5) -> None:
    """attention.png: how much each place attends to each token, mean over heads and layers, amid the noise."""
    condition, model = run.model.condition, run.model
    assert isinstance(condition, Text)
    images, cond = generate.sample(model, run.weights, jax.random.key(seed), 1, prompt=prompt)
    x_0 = model.codec.encode({"image": jnp.asarray(images)}, run.weights.get("autoencoder"))
    t = jnp.asarray(model.process.t_min + time * (model.process.t_max - model.process.t_min))
    x_t = model.process.perturb(x_0, t, jax.random.normal(jax.random.key(1), x_0.shape))

    @jax.jit
    def look(weights, x_t, cond):
        network = model.network.build()
        told = condition.tell(weights["text"], cond)
        _, found = network.apply(weights["network"], x_t, t[None], *told, mutable=["intermediates"])
        return transformer.attention_maps(found["intermediates"], x_t.shape[1:3])

    maps = np.asarray(look(run.weights, x_t, cond))[0]
    tokenizer, ids = condition.readers[0].tokenizer, np.asarray(cond.prompts[0].tokens)[0, 0].tolist()
    words = ["start", *(tokenizer.decode([i]) or "end" for i in ids[1:])]
    shown = words.index("end") + 1 if "end" in words else len(words)
    plots.save_maps(path, images[0], maps[..., :shown], words[:shown], prompt)


def _drawer(run: Run, seed: int, columns: int) -> Callable[..., UInt8[np.ndarray, "N H W C"]]:
    """`draw(prompts, weight=None, negative=None)`: from the same noise each time."""

    def draw(texts, weight=None, negative=None):
        cond, null = generate.conditions(
            run.model, jax.random.key(seed), columns, prompt=texts, negative_prompt=negative
        )
        return _draw(run, seed, np.arange(columns), cond, null, weight)

    return draw


def _draw(
    run: Run, seed: int, index: np.ndarray, cond: PyTree, null: PyTree = None, weight: float | None = None
) -> UInt8[np.ndarray, "N H W C"]:
    plan = generate.plan(run.model)
    w = generate.weight(run.model, run.weights) if weight is None else np.float32(weight)
    draw = generate.sampler(run.model)
    return np.asarray(draw(run.weights, jax.random.key(seed), plan, index, cond, w, null=null))
