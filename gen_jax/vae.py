"""Step 7: the variational autoencoder, `z ~ N(0, I)`, `x ~ p(x | z)`, and a network that guesses `z` from `x`.

The mixture of step 4 with infinitely many components, and EM (step 5) with one change: the E-step's exact posterior is
out of reach, so an encoder `q(z | x) = N(mean(x), diag(std(x)^2))` stands in for it and both are trained on one bound,

    log p(x) >= ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))                    Kingma & Welling 2014, Eq. 3

    model = vae.VAE(MLPEncoder(20), MLPDecoder((28, 28, 1)), likelihoods.Bernoulli(), latent=20)
    params = model.init(key, x)
    model.elbo(params, key, x).value              # [B] nats, one sample of z
    model.iwae(params, key, x, 50)                # [B] nats, tighter with more samples
    model.log_prob(params, key, x)                # [B] nats, 5000 samples: the figure that papers report
    step = training.make_step(vae.loss(model), optimizer)

Each number says which bound it is; noise for example `i` comes from `fold_in(key, i)`, so none depends on the batch, on
chunks or on devices.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import keys
from gen_jax.likelihoods import Likelihood


class Params(NamedTuple):
    """Variables of the two networks."""

    encoder: PyTree
    decoder: PyTree


class Posterior(NamedTuple):
    """`q(z | x) = N(mean, diag(exp(log_std))^2)`."""

    mean: Float[Array, "B *L"]
    log_std: Float[Array, "B *L"]


class Elbo(NamedTuple):
    """A lower bound on `log p(x)` in nats, `value = reconstruction - sum of kl`, an unbiased estimate."""

    value: Float[Array, "B"]
    reconstruction: Float[Array, "B"]
    """`log p(x | z)`: what the latent does not tell of `x`."""
    kl: Float[Array, "B *levels"]
    """`KL(q(z | x) || p(z))`, what the latent tells; in a hierarchical VAE one a level."""

    @classmethod
    def of(cls, reconstruction: Float[Array, "B"], kl: Float[Array, "B *levels"]) -> "Elbo":
        """The bound with these terms."""
        return cls(reconstruction - kl.reshape(len(kl), -1).sum(1), reconstruction, kl)


def kl_to_prior(posterior: Posterior) -> Float[Array, "B *L"]:
    """`KL(N(mean, std^2) || N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std`, in nats, of each latent."""
    mean, log_std = posterior
    return (jnp.square(mean) + jnp.expm1(2 * log_std)) / 2 - log_std


@dataclass(frozen=True)
class VAE:
    """Two networks, and what the second one's output means."""

    encoder: nn.Module
    """`(x [B, ...], label [B]?) -> (mean, log_std)`, each `[B, *latent]`: `networks.autoencoder`, or your own."""
    decoder: nn.Module
    """`(z [B, *latent], label [B]?) -> out`, as the likelihood takes it."""
    likelihood: Likelihood
    latent: int | tuple[int, ...]
    """Numbers in a latent, or the shape of one."""

    def __post_init__(self):
        if not self.latent_shape or min(self.latent_shape) < 1:
            raise ValueError(f"latent must be at least 1 number, got {self.latent}.")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of an example."""
        return (self.latent,) if isinstance(self.latent, int) else tuple(self.latent)

    def init(
        self, key: Key[Array, ""], x: Float[Array, "B *x"], label: Int[Array, "B"] | None = None
    ) -> Params:
        """Parameters to start from; of `x` only the shape of an example matters."""
        key_encoder, key_decoder = jax.random.split(key)
        more = () if label is None else (label[:1],)
        encoder = self.encoder.init(key_encoder, x[:1], *more)
        return Params(encoder, self.decoder.init(key_decoder, jnp.zeros((1, *self.latent_shape)), *more))

    def encode(
        self, params: Params, x: Float[Array, "B *x"], label: Int[Array, "B"] | None = None
    ) -> Posterior:
        """`q(z | x)`.

        Raises ValueError where `x` is not floating, or the encoder's output is not of the latent's shape.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x must be floating, got {x.dtype}. For bytes: x / 255, or data.binarize.")
        posterior = Posterior(*self.encoder.apply(params.encoder, x, *_given(label)))
        if posterior.mean.shape != (len(x), *self.latent_shape):
            raise ValueError(
                f"the encoder gives latents of shape {posterior.mean.shape[1:]}, the model says {self.latent_shape}."
            )
        return posterior

    def decode(
        self, params: Params, z: Float[Array, "B *L"], label: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *x"]:
        """The mean of `p(x | z)`: the picture that a latent stands for."""
        return self.likelihood.mean(self._out(params, z, label))

    def elbo(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        label: Int[Array, "B"] | None = None,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> Elbo:
        """The bound, `log p(x | z)` at one draw of `z` and the KL in closed form (Kingma & Welling 2014, Eq. 10).

        Args:
            params: of the model.
            key: of the noise in `z`; that of example `i` is `fold_in(key, i)`'s.
            x: data, in the form that the likelihood takes.
            label: where the networks take them.
            index: numbers `i` of the examples, `0..B-1` of the global batch by default.
        """
        posterior = self.encode(params, x, label)
        z = posterior.mean + jnp.exp(posterior.log_std) * keys.normal(key, posterior.mean.shape, index)
        reconstruction = self.likelihood.log_prob(self._out(params, z, label), x)
        return Elbo.of(reconstruction, kl_to_prior(posterior).reshape(len(x), -1).sum(1))

    def _out(self, params: Params, z: Array, label: Array | None) -> Any:
        return self.decoder.apply(params.decoder, z, *_given(label))


def _given(label: Array | None) -> tuple[Array, ...]:
    return () if label is None else (label,)
