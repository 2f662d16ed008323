"""Terms of an autoencoder's loss that a network judges: features of a classifier, and a discriminator of patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from gen_jax import checks
from gen_jax.likelihoods.base import as_float
from gen_jax.networks.classifier import Classifier
from gen_jax.types import NotNegative, Size

Features: TypeAlias = Callable[[PyTree, Array], Sequence[Array]]
"""`(frozen, x [B, H, W, C]) -> maps, each [B, h, w, D]`, of weights that are not trained."""


@checks.checked
@dataclass(frozen=True)
class Perceptual:
    """A distance between features of images (`feature_distance`), times `weight`, as a part of a loss.

    Args:
        features: of frozen weights, which reach the loss as `aux.frozen`, such as `classifier_features(net)`.
        weight: nats an image for a distance of 1.
    """

    features: Features
    weight: NotNegative = 1.0


@checks.checked
@dataclass(frozen=True)
class Adversary:
    """A discriminator, trained against the decoder, as a part of a loss (Esser et al. 2021, Eqs. 5 to 7).

    Args:
        net: `net.apply(params, x) -> logits`, such as `networks.discriminator.PatchDiscriminator`.
        weight: of the decoder's term, before the adaptive weight.
        start: step from which on both play, when reconstructions have become images. Needs `make_step(..., aux=True)`.
        last: where the kernel of the decoder's last layer is among the parameters of the autoencoder.
    """

    net: nn.Module
    weight: NotNegative = 0.5
    start: Size = 0
    last: tuple[str, ...] = ("params", "decoder", "out", "kernel")


def classifier_features(net: Classifier) -> Features:
    """The maps behind each residual block of a classifier, at time 0; `frozen` are its parameters."""
    names = [f"block_{level}" for level in range(len(net.channels))]

    def features(frozen: PyTree, x: Array) -> Sequence[Array]:
        _, found = net.apply(
            frozen,
            x,
            jnp.zeros(len(x)),
            capture_intermediates=lambda module, _: module.name in names,
            mutable=["intermediates"],
        )
        return [found["intermediates"][name]["__call__"][0] for name in names]

    return features


def feature_distance(a: Sequence[Array], b: Sequence[Array]) -> Float[Array, "B"]:
    """`sum_l mean_hw |a_l / |a_l| - b_l / |b_l||^2`, the norms over channels, for each example.

    It is between 0 and 4 for each map. Source: Zhang et al. 2018, Eq. 1, with equal weights of the channels.
    """
    unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
    apart = [
        jnp.square(unit(x) - unit(y)).sum(-1).mean((1, 2))
        for x, y in zip(map(as_float, a), map(as_float, b), strict=True)
    ]
    return jnp.stack(apart).sum(0)


def hinge(real: Float[Array, "*n"], drawn: Float[Array, "*m"]) -> Float[Array, ""]:
    """Loss of a discriminator, `(mean max(0, 1 - real) + mean max(0, 1 + drawn)) / 2` (Lim & Ye 2017, Eq. 1)."""
    return (nn.relu(1 - real).mean() + nn.relu(1 + drawn).mean()) / 2


def adaptive_weight(reconstruction: PyTree, adversarial: PyTree) -> Float[Array, ""]:
    """`|g_r| / (|g_a| + 1e-6)`, at most 1e4, of the gradients of two terms (Esser et al. 2021, Eq. 7)."""
    norm = lambda tree: jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(tree)))
    return jnp.clip(norm(reconstruction) / (norm(adversarial) + 1e-6), 0.0, 1e4)


def replaced(tree: PyTree, path: Sequence[str], value: Array) -> PyTree:
    """Nested dicts with another leaf at `path`."""
    if not path:
        return value
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


def found(tree: PyTree, path: Sequence[str]) -> Array:
    """The leaf of nested dicts at `path`; ValueError where there is none."""
    for i, name in enumerate(path):
        if not isinstance(tree, dict) or name not in tree:
            raise ValueError(
                f"the parameters have no {'/'.join(path[: i + 1])}: give the place of the decoder's last kernel, "
                "last=(...)."
            )
        tree = tree[name]
    return tree
