"""The chain of latents that is a diffusion model, against the bound of diffusion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm, hvae
from gen_jax.diffusion import likelihood, oracle, process
from tests.hvae.models import KEY
from tests.marks import slow


def mixture(dims=3):
    rng = np.random.default_rng(0)
    return gmm.GMM(
        jnp.asarray([0.3, 0.7], jnp.float32),
        jnp.asarray(rng.normal(size=(2, dims)), jnp.float32),
        jnp.asarray(rng.uniform(0.1, 0.4, (2, dims)), jnp.float32),
    )


@pytest.mark.parametrize(
    "proc",
    slow([process.VP(), process.FlowMatching(), process.DDPM(num_steps=8)], but=[process.DDPM(num_steps=8)]),
    ids=["vp", "flow", "ddpm"],
)
def test_elbo_of_the_noising_chain_is_the_bound_of_diffusion(proc):
    """Both estimates of the chain's bound agree with `likelihood.vlb` on the exact denoiser, within 4 standard errors."""
    data = mixture()
    x, _ = gmm.sample(KEY, data, 2)
    times = np.array([0.95, 0.6, 0.3, 0.1]) * proc.t_max
    times = np.asarray(proc.snap(times)) if isinstance(proc, process.DDPM) else times
    denoise = oracle.mixture(data, proc)
    noisy = hvae.diffusion_chain(denoise, proc, times)

    @jax.jit
    @jax.vmap
    def draw(key):
        bound = likelihood.vlb(key, denoise, proc, x, times=times)
        sampled, posterior = (hvae.elbo(key, noisy, x, terms=terms) for terms in ("sampled", "posterior"))
        terms = (
            (posterior.kl[:, -1], bound.prior),
            (posterior.kl[:, :-1].sum(1), bound.diffusion),
            (-posterior.reconstruction, bound.reconstruction),
            (-posterior.value, bound.nats),
            (-sampled.value, bound.nats),
        )
        return jnp.asarray([one for one, _ in terms]), jnp.asarray([other for _, other in terms])

    ours, theirs = draw(jax.random.split(KEY, 2000))
    error = ((ours.var(0) + theirs.var(0)) / len(ours)) ** 0.5
    assert (jnp.abs(ours.mean(0) - theirs.mean(0)) < 4 * error + 1e-4).all()


def test_levels_of_the_noising_chain_are_the_steps_of_diffusion():
    """With a denoiser that always says the same no term is random, and level by level the two agree to rounding."""
    with jax.enable_x64(True):
        proc, rng = process.VP(), np.random.default_rng(0)
        x, always = (jnp.asarray(rng.normal(size=(2, 5))) for _ in range(2))
        denoise = lambda x_t, t: jnp.broadcast_to(always, x_t.shape)
        times = np.array([0.9, 0.5, 0.3, 0.05])
        bound = hvae.elbo(KEY, hvae.diffusion_chain(denoise, proc, times), x, terms="posterior")
        whole = likelihood.vlb(KEY, denoise, proc, x, times=times)
        np.testing.assert_allclose(-bound.value, whole.nats, rtol=1e-10)
        np.testing.assert_allclose(bound.kl[:, -1], whole.prior, rtol=1e-10)
        for level, pair in enumerate(zip(times[::-1][1:], times[::-1], strict=False)):
            step = likelihood.vlb(KEY, denoise, proc, x, times=np.array(pair))
            np.testing.assert_allclose(bound.kl[:, level], step.diffusion, rtol=1e-10)


def test_latents_of_the_noising_chain_are_noised_data():
    """`z_t = alpha_t x + sigma_t eps` at every level, by its moments."""
    proc, x, times = process.VP(), jnp.asarray([[1.5, -0.7]]), np.array([0.9, 0.4, 0.1])
    noisy = hvae.diffusion_chain(lambda x_t, t: x_t, proc, times)
    latents = jax.vmap(lambda key: jnp.stack(hvae.infer(key, noisy, x)[0]))(jax.random.split(KEY, 50_000))
    for z, t in zip(latents[:, :, 0].swapaxes(0, 1), times[::-1], strict=True):
        np.testing.assert_allclose(z.mean(0), proc.alpha(t) * x[0], atol=0.02)
        np.testing.assert_allclose(z.std(0), proc.sigma(t), rtol=0.02)
