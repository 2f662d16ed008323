"""The denoiser of a model: its network with what it is told, guided, kept in the range of its codec."""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from gen_jax import checks, parameters
from gen_jax import guidance as guide
from gen_jax.diffusion import prediction
from gen_jax.diffusion.asking import check_batch
from gen_jax.guidance import weights as guide_weights
from gen_jax.model import Model
from gen_jax.types import RescaleOf
from gen_jax.types import Weights as Weights

Condition: TypeAlias = PyTree[Shaped[Array | np.ndarray, "B ..."]]


class Told(NamedTuple):
    """What a network is told of a batch, besides `x_t` and `t`."""

    condition: tuple[PyTree, ...] = ()
    beside: Float[Array | np.ndarray, "B ..."] | None = None
    """Channels that it sees after those of `x_t`."""


@checks.checked
def denoiser(
    model: Model,
    weights: Weights,
    cond: Condition | None = None,
    weight: guide.Weight | None = None,
    *,
    null: Condition | None = None,
    guide_model: Model | None = None,
    rescale: Annotated[ArrayLike, checks.Range(0, 1)] = 0.0,
    rescale_of: RescaleOf = "x0",
    rounded: bool = False,
    beside: Float[Array | np.ndarray, "B ..."] | None = None,
) -> prediction.Denoiser:
    """`denoise(x_t, t) -> x0_hat` of a model, kept in the range of its codec; guided where there is a `weight`.

    A model with a condition is guided away from what it says without one (classifier-free guidance), an unconditional
    one away from what a weaker model says (autoguidance; Karras et al. 2024, Section 4). A network that was distilled at
    many weights is told `weight - 1`, and asked once (Luo et al. 2023, LCM, Section 4.2). Call it inside `jit`, with
    `weights` and `cond` as arguments of the program.

    Args:
        model: what the weights are of.
        weights: "network", and what else the model needs.
        cond: conditions, `[B, ...]`; None is no condition.
        weight: of guidance; None is none.
        null: what guidance leads away from, like `cond`: a negative prompt. None is no condition.
        guide_model: the weaker model, by default the same with other parameters.
        rescale: as of `guidance.classifier_free`; 0 is none.
        rescale_of: "x0", the estimate of the data, or "output", what the network says (diffusers' `guidance_rescale`).
        rounded: whether the network is asked at the nearest time that occurs in training, see `samplers.Schedule.rounds`.
        beside: channels that the network sees after those of `x_t`, where `model.beside` says so.

    Raises:
        ValueError: a weight, and nothing to be guided by; or another `rescale_of`.
    """
    check_rescale_of(rescale_of)
    weights = parameters.named(weights)
    tell = functools.partial(model.condition.tell, weights.get("text"))
    ask = functools.partial(_ask, rounded=rounded)
    told = Told(() if cond is None else tell(cond), beside)
    whole = rescale_of == "x0"
    rest = None if whole else prediction.without_output(model.process, predicts=model.predicts)
    if distilled(model):
        denoise = ask(model, weights["network"], weight=1.0 if weight is None else weight)
        return model.codec.bound(lambda x_t, t: denoise(x_t, t, told))
    denoise = ask(model, weights["network"])
    if weight is None:
        out = lambda x_t, t: denoise(x_t, t, told)
    elif cond is not None and model.condition.guides:
        null = model.condition.null(len(jax.tree.leaves(cond)[0]), like=cond) if null is None else null
        away = Told(tell(null), beside)
        out = guide.classifier_free_batched(denoise, told, away, weight, rescale=rescale, without=rest)
    elif cond is None and "guide" in weights:
        weaker = ask(guide_model or model, weights["guide"])
        ours, other = (functools.partial(asked, told=told) for asked in (denoise, weaker))
        out = guide.classifier_free(ours, other, weight, rescale=rescale, without=rest)
    else:
        raise ValueError(NOTHING_TO_GUIDE_BY)
    return model.codec.bound(out)


def check_rescale_of(rescale_of: str) -> None:
    """ValueError for another choice than there is."""
    checks.choice("rescale_of", rescale_of, ("x0", "output"))


@checks.checked
def distilled(model: Model) -> bool:
    """Whether the network takes the weight of guidance as an input, so that one call says what two did."""
    return getattr(model.network, "guidance_features", None) is not None


NOTHING_TO_GUIDE_BY = (
    "there is nothing to be guided by: expected a condition that was dropped in training (dropout > 0), or for an "
    'unconditional model the weights of a weaker one, weights["guide"]. Without guidance the weight is 1.'
)


def _ask(
    model: Model, params: PyTree, *, rounded: bool, weight: guide.Weight | None = None
) -> Callable[..., PyTree]:
    """`(x_t, t, told) -> x0_hat` of a network; `weight` is that which it is told."""
    network = model.network.build()
    snap = (lambda t: jnp.asarray(model.process.snap(t))) if rounded else None

    def denoise(x_t: PyTree, t: Float[Array, ""], told: Told) -> PyTree:
        check_batch(told, x_t)
        options = {}
        if weight is not None:
            each = jnp.zeros(len(x_t))
            options["guidance"] = each + guide_weights.at(weight, t, x_t)(each) - 1

        def apply(x_t: PyTree, t: Float[Array, "B"]) -> PyTree:
            if told.beside is not None:
                x_t = jnp.concatenate([x_t, told.beside.astype(x_t.dtype)], axis=-1)
            return network.apply(params, x_t, t, *told.condition, **options)

        return prediction.as_denoiser(apply, model.process, predicts=model.predicts, time=snap)(x_t, t)

    return denoise
