"""Time a sampling step without a network against diffusers and k-diffusion, and beside the `mnist` U-Net.

    python benchmarks/samplers_speed.py               # both tables, about two minutes
    python benchmarks/samplers_speed.py --no-unet     # the peers alone

First table: a denoiser that says `x / 2`, batch 64 of 28 x 28 x 1, float32. Ours is a whole `samplers.sample` of so many
steps, compiled and waited for; diffusers is its loop over `scheduler.step` (less `set_timesteps`), k-diffusion its own
loop, both in PyTorch on the CPU. Times are of one evaluation of the denoiser. Rounds alternate; printed are medians, the
median of the rounds' ratios, and the ratio of the least times, which a busy machine disturbs least. PyTorch runs on
`--threads` threads: one is the fastest for arrays of this size, more wait for each other.

Solvers that draw noise are listed twice: with it, where random numbers are nearly all of the time on every side (ours
are Threefry, one key a sample, so that a sample does not depend on its batch), and, marked "no noise", with the same
plan and nothing drawn, against a peer whose noise is a constant.

Second table: a sampling step of the `mnist` U-Net, and what of it is not the network. Needs the extra `bench`.
"""

import importlib
import importlib.util
import sys
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from gen_jax import samplers
from gen_jax.diffusion import prediction, process
from gen_jax.networks import unet

PROCESS = process.DDPM()
SHAPE = (64, 28, 28, 1)


@dataclass(frozen=True)
class Config:
    """What to time, and how often."""

    steps: int = 50
    rounds: int = 15
    threads: int = 1
    """Of PyTorch."""
    unet: bool = True
    unet_steps: int = 5
    unet_solvers: tuple[str, ...] = ("DDIM / Euler", "UniPC(3)", "DPM-Solver++(2M) SDE")
    """Of the second table; compiling the U-Net takes most of its time."""


class Row(NamedTuple):
    """A solver of ours and its namesakes."""

    solver: Any
    scheduler: str
    options: dict[str, Any]
    sampler: str | None
    noisy: bool = False


ROWS = {
    "DDIM / Euler": Row(samplers.DDIM(), "DDIMScheduler", {}, "euler"),
    "Euler": Row(samplers.DDIM(), "EulerDiscreteScheduler", {}, "euler"),
    "Heun": Row(samplers.Heun(), "HeunDiscreteScheduler", {}, "heun"),
    "LMS(4)": Row(samplers.LMS(4), "LMSDiscreteScheduler", {}, "lms"),
    "DPM-Solver++(2M)": Row(samplers.DPMSolverPP(2), "DPMSolverMultistepScheduler", {}, "dpmpp_2m"),
    "DPM-Solver++(3M)": Row(
        samplers.DPMSolverPP(3), "DPMSolverMultistepScheduler", {"solver_order": 3}, None
    ),
    "DEIS(3)": Row(samplers.DEIS(3), "DEISMultistepScheduler", {"solver_order": 3}, None),
    "UniPC(3)": Row(samplers.UniPC(3), "UniPCMultistepScheduler", {"solver_order": 3}, None),
    "DDPM / ancestral": Row(samplers.DDPM(), "DDPMScheduler", {}, "euler_ancestral", True),
    "DPM-Solver++(2M) SDE": Row(
        samplers.SDEDPMSolverPP(2),
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "dpmpp_2m_sde",
        True,
    ),
}


def half(x: Any, *_: Any) -> Any:
    """The denoiser."""
    return x * 0.5


def ours(solver: Any, denoise: Any, steps: int, *, noise: bool = True) -> Callable[[], float]:
    """Seconds an evaluation of a compiled `sample`."""
    plan = solver.plan(PROCESS, samplers.times.karras(PROCESS, steps))
    plan = plan if noise else plan._replace(noise=None)
    key, x_T = jax.random.key(0), PROCESS.prior(jax.random.key(1), SHAPE)
    sample = jax.jit(lambda key, plan, x_T: samplers.sample(key, denoise, plan, x_T))
    return timed(lambda: jax.block_until_ready(sample(key, plan, x_T)), plan.nfe)


def of_diffusers(row: Row, steps: int, *, noise: bool = True) -> Callable[[], float]:
    """Seconds of a `scheduler.step` and the denoiser, in a loop; setting the times is not counted."""
    scheduler = getattr(diffusers, row.scheduler)(**row.options)
    module = sys.modules[type(scheduler).__module__]
    start = torch.randn(SHAPE[0], SHAPE[3], *SHAPE[1:3])
    drawn = (lambda *args, **kwargs: start) if not noise else getattr(module, "randn_tensor", None)

    def run() -> float:
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "derivatives"):
            scheduler.derivatives = []
        scheduler.is_scale_input_called = True
        x, patch = start, mock.patch.object(module, "randn_tensor", drawn, create=True)
        with patch, torch.no_grad():
            begin = time.perf_counter()
            for t in scheduler.timesteps:
                x = scheduler.step(half(x), t, x, return_dict=False)[0]
            return (time.perf_counter() - begin) / len(scheduler.timesteps)

    return run


def of_k_diffusion(name: str, steps: int, *, noise: bool = True) -> Callable[[], float]:
    """Seconds an evaluation of k-diffusion's own loop."""
    grid, start = samplers.times.karras(PROCESS, steps), torch.randn(SHAPE[0], SHAPE[3], *SHAPE[1:3])
    sigmas = torch.from_numpy(PROCESS.sigma(grid) / PROCESS.alpha(grid)).float()
    sampler, options = getattr(k_sampling(), f"sample_{name}"), {}
    if "noise_sampler" in sampler.__wrapped__.__code__.co_varnames:
        options["noise_sampler"] = lambda *_: torch.randn_like(start) if noise else start
    nfe = 2 * steps - 1 if name == "heun" else steps
    return timed(lambda: sampler(half, start, sigmas, disable=True, **options), nfe)


def k_sampling() -> types.ModuleType:
    """`k_diffusion.sampling`, with none of the rest of the package, which imports a training set-up."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("k_diffusion is not installed: pip install -e '.[bench]'.")
    package: Any = types.ModuleType("k_diffusion")
    utils: Any = types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = list(spec.submodule_search_locations), utils
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    with mock.patch.dict(sys.modules, {"k_diffusion": package, "k_diffusion.utils": utils}):
        return importlib.import_module("k_diffusion.sampling")


def timed(run: Callable[[], Any], parts: int) -> Callable[[], float]:
    """Seconds of a part of `run`."""

    def seconds() -> float:
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) / parts

    return seconds


def alternating(sides: list[Callable[[], float]], rounds: int) -> np.ndarray:
    """Seconds `[rounds, sides]`, after a round that is not counted."""
    return np.array([[side() for side in sides] for _ in range(rounds + 1)][1:])


def against_peers(config: Config) -> list[dict]:
    """The first table."""
    print(
        f"{'':32}{'ours':>8}   {'diffusers':>22}   {'k-diffusion':>22}    microseconds; times ours (of least)"
    )
    results = []
    for name, row in ROWS.items():
        for noise in (True, False) if row.noisy else (True,):
            sides = [
                ours(row.solver, half, config.steps, noise=noise),
                of_diffusers(row, config.steps, noise=noise),
            ]
            if row.sampler:
                sides.append(of_k_diffusion(row.sampler, config.steps, noise=noise))
            seconds = alternating(sides, 3 if name == "LMS(4)" else config.rounds)
            median, least = np.median(seconds, axis=0), seconds.min(axis=0)
            ratio = np.median(seconds / seconds[:, :1], axis=0)
            result = {"solver": name + ("" if noise else ", no noise"), "ours_us": 1e6 * median[0]}
            line = f"{result['solver']:32}{1e6 * median[0]:8.1f}"
            for i, peer in enumerate(("diffusers", "k_diffusion")[: len(sides) - 1], 1):
                result |= {
                    f"{peer}_us": 1e6 * median[i],
                    f"times_{peer}": ratio[i],
                    f"least_{peer}": least[i] / least[0],
                }
                line += f"   {1e6 * median[i]:8.1f} {ratio[i]:5.0f} ({least[i] / least[0]:4.0f})"
            print(line, flush=True)
            results.append(result)
    return results


def beside_the_network(config: Config) -> list[dict]:
    """The second table: the share of a sampling step that is not the `mnist` U-Net."""
    net = unet.UNet(unet.mnist)
    params = net.init(jax.random.key(0), jnp.zeros(SHAPE), jnp.zeros(SHAPE[0]))
    denoise = prediction.as_denoiser(lambda x, t: net.apply(params, x, t), PROCESS, predicts="eps")
    results = []
    for name, row in ROWS.items():
        if name not in config.unet_solvers:
            continue
        sides = [ours(row.solver, denoise, config.unet_steps), ours(row.solver, half, config.steps)]
        whole, rest = np.median(alternating(sides, 3), axis=0)
        print(
            f"{name:32}{1e3 * whole:8.1f} ms a step, {1e3 * rest:6.3f} ms of it the solver: {rest / whole:6.2%}",
            flush=True,
        )
        results.append(
            {"solver": name, "unet_ms": 1e3 * whole, "solver_ms": 1e3 * rest, "share": rest / whole}
        )
    return results


def main(config: Config) -> list[dict]:
    """Print the tables."""
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(config.threads)
    results = against_peers(config)
    return results + (beside_the_network(config) if config.unet else [])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
