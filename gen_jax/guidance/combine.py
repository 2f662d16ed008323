"""Linear combinations of denoisers."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import asking, matching
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Times
from gen_jax.guidance import weights
from gen_jax.guidance.weights import Weight
from gen_jax.rows import flat

Part: TypeAlias = Annotated[ArrayLike, checks.Range(0, 1)]
"""A number from 0 to 1, which may be traced."""


@checks.checked
def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    weight: Weight,
    *,
    rescale: Part = 0.0,
    without: Denoiser | None = None,
) -> Denoiser:
    """Classifier-free guidance, `x0_hat = u + w (c - u)` of the two estimates `c` and `u`.

    At a fixed `t` the score is affine in `x0_hat`, so the guided score is `score_u + w (score_c - score_u)`, that of
    `p_t(x_t) p_t(y | x_t)^w`. Unless `w` is 0 or 1, these densities at different `t` do not belong to one noising
    process, so samples do not follow the density at `t = 0`. With `w` 0 or 1 the result is `unconditional` or
    `conditional` exactly.

    Args:
        conditional: the denoiser with the condition bound.
        unconditional: the denoiser without it; or one with a negative prompt, or a weaker model (autoguidance; Karras et
            al. 2024, Section 4).
        weight: `w`, see `Weight`.
        rescale: `phi` in [0, 1]. Each sample's estimate is multiplied by `1 - phi + phi std(c) / std(x0_hat)`, with
            standard deviations over its values, against the overexposure of strong guidance.
        without: `prediction.without_output(process, predicts=...)`: what `rescale` leaves as it is. What the network
            said, the rest of `x0_hat`, is multiplied in its place, by the ratio of its own deviations (Lin et al. 2024,
            Section 3.4; `guidance_rescale` of diffusers). None: `x0_hat` as a whole.

    Source: Ho & Salimans 2022, Eq. 6, whose weight is `w - 1`.
    """
    both = lambda x_t, t: (asking.ask(conditional, x_t, t), asking.ask(unconditional, x_t, t))
    return matching.as_those(_guided(both, weight, rescale, without), conditional, unconditional, without)


@checks.checked
def classifier_free_batched(
    denoise: Callable[[PyTree, Times, PyTree], PyTree],
    condition: PyTree[Shaped[Array | np.ndarray, "B ..."]],
    null: PyTree[Shaped[Array | np.ndarray, "B ..."]],
    weight: Weight,
    *,
    rescale: Part = 0.0,
    without: Denoiser | None = None,
) -> Denoiser:
    """`classifier_free` with both estimates from one call, of twice the batch.

        net_at = lambda x_t, t, label: prediction.as_denoiser(
            lambda x, t: net.apply(params, x, t, label), proc, predicts="v")(x_t, t)
        denoise = guidance.classifier_free_batched(net_at, label, jnp.full_like(label, num_classes), 2.0)

    Args:
        denoise: `(x_t [B, ...], t [], condition [B, ...]) -> x0_hat [B, ...]`, for any `B`.
        condition: labels, vectors or tokens: any pytree of arrays `[B, ...]`.
        null: the null condition or a negative one, of the same structure.
        weight: as in `classifier_free`.
        rescale: as in `classifier_free`.
        without: as in `classifier_free`.

    Raises:
        ValueError: `condition` and `null` differ in structure, shape or dtype; when it is asked, if they are not as many
            as the samples.
    """
    described = [
        jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a).name), c) for c in (condition, null)
    ]
    if described[0] != described[1]:
        raise ValueError(
            f"condition and null must be alike in structure, shapes and dtypes; got {described[0]} and {described[1]}."
        )

    def twice(a: PyTree, b: PyTree) -> PyTree:
        return jax.tree.map(lambda *pair: jnp.concatenate(pair), a, b)

    def part(tree: PyTree, k: int) -> PyTree:
        return jax.tree.map(lambda a: jnp.split(a, 2)[k], tree)

    def both(x_t: PyTree, t: Times) -> tuple[PyTree, PyTree]:
        asking.check_batch(condition, x_t)
        out = denoise(twice(x_t, x_t), t, twice(condition, null))
        return part(out, 0), part(out, 1)

    return matching.as_those(_guided(both, weight, rescale, without), denoise, without)


@checks.checked
def linear(
    denoisers: Sequence[Denoiser], weights: Sequence[Annotated[ArrayLike, checks.Range()]]
) -> Denoiser:
    """`x0_hat = sum_i w_i x0_hat_i`, with weights that sum to 1 and may be negative.

    The composition of conditions `u + sum_i w_i (c_i - u)` (Liu et al. 2022, Eq. 11) has the weights `1 - sum_i w_i` for
    the unconditional estimate `u`, and `w_i` for the conditional ones.

    Raises:
        ValueError: no denoiser, another number of weights than denoisers, or weights that do not sum to 1 (checked unless
            traced).
    """
    if len(denoisers) != len(weights) or not denoisers:
        raise ValueError(
            f"weights must be one for each of the denoisers, got {len(weights)} for {len(denoisers)} denoisers."
        )
    known = not any(isinstance(w, jax.core.Tracer) for w in weights)
    if known and abs(float(sum(jnp.asarray(w).sum() for w in weights)) - 1) > 1e-4:
        raise ValueError(
            f"weights must sum to 1, for x0_hat to be an estimate of the data; got {list(weights)}."
        )

    def weighted(*estimates: Array) -> Array:
        terms = (jnp.asarray(w, x.dtype) * x for w, x in zip(weights, estimates, strict=True))
        return functools.reduce(jnp.add, terms)

    return matching.as_those(
        lambda x_t, t: jax.tree.map(weighted, *(asking.ask(denoise, x_t, t) for denoise in denoisers)),
        *denoisers,
    )


def _guided(
    both: Callable[[PyTree, Times], tuple[PyTree, PyTree]],
    weight: Weight,
    rescale: Part,
    without: Denoiser | None,
) -> Denoiser:
    """`u + w (c - u)`, as `(1 - w) u + w c`, which is exactly `u` at 0 and `c` at 1."""

    def denoise(x_t: PyTree, t: Times) -> PyTree:
        c, u = both(x_t, t)
        w = weights.at(weight, t, x_t)
        guided = jax.tree.map(lambda c, u: (1 - w(u)) * u + w(c) * c, c, u)
        if not isinstance(rescale, jax.Array) and not np.any(rescale):
            return guided
        rest = jax.tree.map(jnp.zeros_like, guided) if without is None else without(x_t, t)
        return jax.tree.map(lambda x, c, r: _rescaled(x, c, r, rescale), guided, c, rest)

    return denoise


def _rescaled(x: Array, like: Array, rest: Array, amount: ArrayLike) -> Array:
    """`x` in whose place, where `amount` is 1, `x - rest` has the standard deviation of `like - rest` per example."""

    def std(a: Array) -> Array:
        return flat(a - rest).std(axis=1)

    change = jnp.asarray(amount, x.dtype) * (std(like) / std(x) - 1)
    return x + change.reshape(-1, *[1] * (x.ndim - 1)) * (x - rest)
