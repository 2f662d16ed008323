"""Calls of step 9: `diffusion` and `samplers`."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import gmm, normal, samplers
from gen_jax.diffusion import loss, oracle, prediction, process, variance
from tests.api.walk import call

KEY = jax.random.key(0)
PROC = process.DDPM(50, beta_max=0.3)
FLOW = process.FlowMatching(t_min=0.01)
X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
STATE = {"a": X, "b": X[:, :1]}
DENOISE = oracle.gaussian(normal.Normal(jnp.array(0.5), jnp.array(1.0)), PROC)
IN_FLOW = oracle.gaussian(normal.Normal(jnp.array(0.5), jnp.array(1.0)), FLOW)
COVS = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
MIX = gmm.GMM(jnp.array([0.4, 0.6]), jnp.array([[0.0, 1], [2, 3]]), COVS)
ALPHA = jnp.array([0.8, 0.6, 0.5])
SIGMA = jnp.array([0.6, 0.8, 0.9])
GRID = samplers.times.uniform(PROC, 5)
PLAN = samplers.DPMSolverPP().plan(PROC, GRID)
LEARNED = samplers.learned.plan(PROC, GRID)
INDEX = np.arange(3)
STEP = variance.ancestral(PROC, jnp.array([1.0, 2.0, 50.0]))


def network(x_t, t):
    """It says nothing."""
    return jax.tree.map(jnp.zeros_like, x_t)


def pair(x_t, t):
    """So does this, of mean and variance."""
    return network(x_t, t), network(x_t, t)


def with_variance(x_t, t):
    """A denoiser that also says where the variance lies."""
    return DENOISE(x_t, t), jnp.zeros_like(x_t)


# One alpha_t is for all rows.
ONE = ("alpha_t: one axis less", "sigma_t: one axis less")
# A number that a network or a denoiser would turn into something finite is not known to be wrong.
# What a loop of one's own hands over at every step is not looked at.
NARROW = ("x_0: one column",)
"""Data of one column, which a network that takes any shape takes as well."""
LOOP = (
    *(
        f"{name}: {field}: {value}"
        for name, fields in (("plan", PLAN._fields), ("state", ("x", "past")))
        for field in fields
        for value in ("NaN", "infinity")
    ),
    "plan: t: negative",  # which the process of the denoiser says
)
DIFFUSION = {
    # the nearer end answers for a log_snr that no time has
    "process.at_log_snr": call(PROC, np.array([2.0, -1.0]), free=("values: infinity",)),
    # only the rank of `like` counts
    "process.expand": call(ALPHA, jnp.asarray(X), free=("like: NaN", "like: infinity")),
    "prediction.check_predicts": call("v"),
    "prediction.target": call(jnp.asarray(X), jnp.asarray(X), ALPHA, SIGMA, predicts="v", free=ONE),
    "prediction.to_x0": call(jnp.asarray(X), jnp.asarray(X), ALPHA, SIGMA, predicts="eps", free=ONE),
    "prediction.from_x0": call(jnp.asarray(X), jnp.asarray(X), ALPHA, SIGMA, predicts="eps", free=ONE),
    "prediction.error_ratio": call(ALPHA, SIGMA, predicts="v", free=ONE),
    "prediction.as_denoiser": call(network, PROC, predicts="v", time=lambda t: t - 1),
    "prediction.without_output": call(PROC, predicts="v"),
    "prediction.edm_preconditioned": call(network, PROC, sigma_data=0.5),
    "prediction.dynamic_threshold": call(DENOISE, 0.9),
    "prediction.clipped": call(DENOISE, -1.0, 1.0),
    "loss.denoising": (
        call(KEY, network, PROC, X, predicts="v", weighting=loss.snr, offset_noise=0.1, free=NARROW),
        call(KEY, network, PROC, STATE),
    ),
    "loss.hybrid": call(KEY, pair, PROC, X, predicts="eps", weight=0.1, bins=256),
    "loss.variational": call(
        KEY, network, PROC, X, predicts="v", time_sampling=loss.independent, free=NARROW
    ),
    "loss.second_moment": call(KEY, network, PROC, X, predicts="v", free=NARROW),
    "loss.stratified": call(KEY, 4),
    "loss.independent": call(KEY, 4),
    "loss.logit_normal": call(0.5, 1.0, uniform=loss.independent),
    "loss.min_snr": call(5.0),
    "loss.edm": call(0.5),
    "loss.p2": call(1.0, 1.0),
    "loss.sigmoid": call(2.0),
    "loss.snr": call(ALPHA),
    "oracle.mixture": (
        call(MIX, PROC, labels=np.array([0, 1]), free=("params: covs: one axis less",)),  # variances
        call(MIX._replace(covs=jnp.ones((2, 1))), PROC),
    ),
    "oracle.gaussian": (
        call(normal.Normal(jnp.array(0.5), jnp.array(1.0)), PROC),
        call(normal.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), PROC),
    ),
    "oracle.empirical": call(X, PROC, weights=np.ones(3, np.float32), labels=np.array([0, 1, 1])),
    "likelihood.vlb": (
        call(KEY, DENOISE, PROC, X, num_steps=3, num_samples=2, index=INDEX),
        call(KEY, DENOISE, PROC, X, times=GRID[:-1], reconstruction="discretized", bins=256),
    ),
    "likelihood.ode": call(
        KEY, IN_FLOW, FLOW, X, t=0.0, num_probes=2, index=INDEX, rtol=1e-2, atol=1e-2, max_steps=64
    ),
    "likelihood.ode_log_prob": call(KEY, IN_FLOW, FLOW, X, rtol=1e-2, atol=1e-2, free=("x: one column",)),
    "variance.ancestral": call(PROC, jnp.array([1.0, 2.0, 50.0])),
    "variance.log_variance": call(STEP, jnp.asarray(X)),
    "variance.kl": call(STEP, jnp.asarray(X), jnp.asarray(X)),
    "variance.split": call(jnp.zeros((3, 4)), free=("output: NaN", "output: infinity")),  # only cut in two
    "variance.as_denoiser": call(pair, PROC, predicts="v"),
}
GRIDS = {
    "uniform": call(PROC, 5, final="denoise", t_start=40.0, t_end=2.0),
    "quadratic": call(PROC, 5, final="denoise", t_start=40.0, t_end=2.0),
    "power": call(PROC, 5, p=0.5, final="denoise", t_start=40.0, t_end=2.0),
    "beta": call(PROC, 5, a=0.6, b=0.6, final="denoise", t_start=40.0, t_end=2.0),
    "leading": call(PROC, 5, offset=1, skip=1, final="denoise"),
    "log_snr": call(PROC, 5, final="denoise", t_start=40.0, t_end=2.0),
    "exponential": call(PROC, 5, p=1.5, final="denoise", t_start=40.0, t_end=2.0),
    "karras": call(PROC, 5, rho=7.0, final="denoise", t_start=40.0, t_end=2.0),
    "cosine": call(PROC, 5, final="denoise", t_start=40.0, t_end=2.0),
    "interpolated": call(FLOW, np.array([2.0, 1.0, 0.5]), 5, final="denoise", t_start=0.6),
}
SAMPLERS = {
    "init": call(PLAN, X),
    "step": call(KEY, DENOISE, PLAN, samplers.init(PLAN, X), index=INDEX, free=LOOP),
    "finalize": call(samplers.init(PLAN, X), free=LOOP),
    "sample": (
        call(
            *(KEY, DENOISE, PLAN, X),
            index=INDEX,
            trace=lambda x, x0_hat: x,
            checkpoint=True,
            check_finite=True,
            on_step=lambda step, x0_hat: None,
        ),
        call(KEY, prediction.as_denoiser(network, PROC, predicts="v"), PLAN, STATE),
    ),
    "recommended": call(PROC, 5),
    "named.find": call("ddim"),
    "named.plan": call(PROC, "ddim", 5, t_start=40.0),
    "named.first_time": call(PROC, -3.0),
    "schedule.find": call("lcm"),
    "schedule.first_step": call(10, 0.5),
    "learned.plan": call(PROC, GRID),
    "learned.sample": call(KEY, with_variance, LEARNED, X, index=INDEX),
    "adaptive.ode": call(
        *(IN_FLOW, FLOW, X),
        t_start=1.0,
        t_end=0.0,
        final="denoise",
        rtol=1e-2,
        atol=1e-2,
        solver=diffrax.Bosh3(),
        max_steps=64,
    ),
}
EXAMPLES = {
    **{f"diffusion.{name}": example for name, example in DIFFUSION.items()},
    **{f"samplers.{name}": example for name, example in SAMPLERS.items()},
    **{f"samplers.times.{name}": example for name, example in GRIDS.items()},
}
